"""Collect what llama-imatrix does while a network runs: squared inputs of matrices, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.evaluation.arithmetic import Arithmetic, Array
from weightcast.evaluation.networks import Moments
from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums

_KINDS: Final = ("squares", "counts", "plain")


class Importance:
    """Sums over all tokens by tensor name, in float64; see `Watch`.

    Sums of blocks are added in the order of these, so that they do not depend on the workers.
    """

    def __init__(self) -> None:
        self.entries: dict[str, TensorSums] = {}

    def moments(self, arithmetic: Arithmetic, x: Array) -> Moments:
        return Moments(len(x), arithmetic.square_sums(x), arithmetic.sums(x))

    def add(
        self,
        names: Sequence[str],
        n_in: int,
        found: Sequence[Moments | None],
        expert: int = 0,
        n_experts: int = 1,
    ) -> None:
        for name in names:
            if name not in self.entries:
                self.entries[name] = _zeros(n_experts, n_in)
            entry = self.entries[name]
            assert entry.plain is not None
            for moments in filter(None, found):
                entry.squares[expert] += moments.squares
                entry.plain[expert] += moments.sums
                entry.counts[expert] += moments.tokens

    def sums(self, dataset: str, chunk_size: int) -> ImportanceSums:
        """Give what was collected from a text, of chunks of so many tokens."""
        return ImportanceSums(dict(self.entries), (dataset,), chunk_size)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all that was collected as arrays by name."""
        return {
            f"{kind}:{name}": getattr(entry, kind)
            for name, entry in self.entries.items()
            for kind in _KINDS
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `arrays` gave."""
        names = [key.partition(":")[2] for key in arrays if key.startswith("squares:")]
        for name in names:
            squares, counts, plain = (arrays[f"{kind}:{name}"] for kind in _KINDS)
            self.entries[name] = TensorSums(squares, counts, plain)


def _zeros(n_experts: int, n_in: int) -> TensorSums:
    shape = (n_experts, n_in)
    return TensorSums(np.zeros(shape), np.zeros(n_experts, np.int64), np.zeros(shape))
