"""Which tensor of the source each tensor of an artifact ought to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.converters.families.any_gguf import stored_tensor
from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.families.grok1.tensors import EMBEDDING, Place, places
from weightcast.converters.graph import (
    StoredMatrix,
    Tensor,
    View,
    matrices,
    stored,
    take,
    windows,
)
from weightcast.converters.sources.open import AnyGraph
from weightcast.converters.verify.result import Problem, plain
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.text import some

HEADS: Final = {"gguf": "output.weight", "safetensors": "lm_head.weight"}


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of an artifact beside the one of the source that it ought to hold.

    `expert` is set where each expert is a tensor of its own; `place` is None outside Grok-1.
    """

    name: str
    gguf: str
    array: StoredArray
    source: Tensor
    place: Place | None
    expert: int | None = None

    @property
    def views(self) -> list[tuple[StoredMatrix, View]]:
        """The matrices of both, source first. Raises LayoutError if there are not as many."""
        of_source = matrices(self.source)
        made = stored if self.place is not None else stored_tensor
        of_artifact = list(windows(made(self.name, self.array)))
        if [v.shape for v in of_source] != [v.shape for v in of_artifact]:
            raise LayoutError(f"{self.name}: shape {list(self.array.shape)} cannot be compared")
        return list(zip(of_source, of_artifact, strict=True))


def match(
    source: AnyGraph, arrays: Mapping[str, StoredArray], kind: str, artifact: Path
) -> tuple[list[Held], list[Problem]]:
    """Match tensors by name; say what is missing, extra or of another shape."""
    found: list[Held] = []
    problems: list[Problem] = []
    missing: list[str] = []
    left = dict(arrays)
    for names, gguf, tensor, place, expert in _wanted(source, kind, arrays):
        name = next((n for n in names if n in left), None)
        if name is None:
            missing.append(names[0])
            continue
        array = left.pop(name)
        if array.shape == tensor.shape:
            found.append(Held(name, gguf, array, tensor, place, expert))
            continue
        what, mistake = f"is {list(array.shape)}, in the source {list(tensor.shape)}", "shape"
        if array.shape == (*tensor.shape[:-2], *reversed(tensor.shape[-2:])):
            what, mistake = f"{what}: transposed", "transposed"
        problems.append(Problem(str(array.path), what, name, "convert again", mistake))
    if missing:
        remedy = "convert again, or name the source that this was made of"
        said = "is missing" if len(missing) == 1 else "are missing"
        problems.append(Problem(str(artifact), said, _some(missing), remedy, "missing"))
    if left:
        remedy = "remove what nothing needs that reads the file"
        said = "is not in the source" if len(left) == 1 else "are not in the source"
        file = next(iter(left.values())).path
        problems.append(Problem(str(file), said, _some(list(left)), remedy, "extra"))
    return found, problems


def _some(names: Sequence[str]) -> str:
    return some([plain(name) for name in names])


_Wanted = tuple[tuple[str, ...], str, Tensor, Place | None, int | None]


def _wanted(source: AnyGraph, kind: str, there: Mapping[str, StoredArray]) -> Iterator[_Wanted]:
    """The tensors that an artifact ought to have: possible names, and what they are."""
    if not isinstance(source.spec, Grok1Spec):
        for name, tensor in source.items():
            yield (name,), name, tensor, None, None
        return
    for place in places(source.spec.num_layers):
        tensor = source[place.name]
        experts = range(tensor.shape[0]) if place.role.is_experts else ()
        if kind == "safetensors" and experts:
            for n in experts:
                yield (place.hugging_face(n),), place.gguf, take(tensor, n), place, n
        elif kind == "safetensors":
            yield (place.hugging_face(),), place.gguf, tensor, place, None
        else:
            names = [place.gguf, place.old_gguf]
            yield tuple(n for n in names if n), place.gguf, tensor, place, None
        # The head is the embedding table, and need not be there.
        if place.name == EMBEDDING and HEADS[kind] in there:
            yield (HEADS[kind],), place.gguf, tensor, place, None
