"""Collect the sizes of a model from shapes and hyperparameters, and refuse contradictions."""

from __future__ import annotations

from collections.abc import Iterable

from weightcast.errors import LayoutError
from weightcast.text import option

Number = int | float


class Dimensions:
    """Sizes by name, each with where it is known from; the first contradiction is refused."""

    def __init__(self, told: Iterable[tuple[str, int]], origin: str) -> None:
        """Start from what `origin` tells. Raises LayoutError if it contradicts itself."""
        self._sizes: dict[str, tuple[int, str]] = {}
        self._origin = origin
        for name, size in told:
            self.check(name, size, origin)

    def check(self, name: str, size: int, where: str) -> None:
        """Note a size, or compare it with the known one. Raises LayoutError naming both origins."""
        known = self._sizes.setdefault(name, (size, where))
        if known[0] != size:
            hint = ""
            if known[1] == self._origin:
                spec = option("spec", "FILE")
                hint = f"; if the model is another one, describe it with {spec}"
            raise LayoutError(f"{name} is {size} by {where}, but {known[0]} by {known[1]}{hint}")

    def __getitem__(self, name: str) -> int:
        return self._sizes[name][0]
