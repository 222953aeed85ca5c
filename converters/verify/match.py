"""Match each tensor of an artifact to the tensor of the source that it ought to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.families.generic import stored_tensor
from weightcast.converters.graph import (
    Place,
    StoredMatrix,
    Tensor,
    TensorGraph,
    View,
    matrices,
    stored,
    take,
    windows,
)
from weightcast.converters.targets.target import Target
from weightcast.converters.verify.result import Problem, plain
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.text import some


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """A tensor of an artifact beside the one of the source that it ought to hold.

    `gguf` is the canonical name. `expert` is set where each expert is a tensor of its own; `place`
    is None where the family has no table; `tied` is the canonical name of a copy of another tensor.
    """

    name: str
    gguf: str
    array: StoredArray
    source: Tensor
    place: Place | None
    expert: int | None = None
    tied: str | None = None

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
    source: TensorGraph, arrays: Mapping[str, StoredArray], target: Target, artifact: Path
) -> tuple[list[TensorMatch], list[Problem]]:
    """Match tensors by name; say what is missing, extra or of another shape."""
    found: list[TensorMatch] = []
    problems: list[Problem] = []
    missing: list[str] = []
    left = dict(arrays)
    for wanted in _wanted(source, target.convention, arrays):
        tensor = wanted.source
        name = next((n for n in wanted.names if n in left), None)
        if name is None:
            missing.append(wanted.names[0])
            continue
        array = left.pop(name)
        if array.shape == tensor.shape:
            found.append(
                TensorMatch(
                    name, wanted.gguf, array, tensor, wanted.place, wanted.expert, wanted.tied
                )
            )
            continue
        what, mistake = f"is {list(array.shape)}, in the source {list(tensor.shape)}", "shape"
        if array.shape == (*tensor.shape[:-2], *reversed(tensor.shape[-2:])):
            what, mistake = f"{what}: transposed", "transposed"
        problems.append(Problem(str(array.path), what, plain(name), "convert again", mistake))
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


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor that an artifact ought to have, by any of its names; see TensorMatch."""

    names: tuple[str, ...]
    gguf: str
    source: Tensor
    place: Place | None = None
    expert: int | None = None
    tied: str | None = None


def _wanted(
    source: TensorGraph, convention: str, there: Mapping[str, StoredArray]
) -> Iterator[_Wanted]:
    """List the tensors that an artifact ought to have."""
    family = source.family
    if not family.has_table:
        for name, tensor in source.items():
            yield _Wanted((name,), name, tensor)
        return
    for name, place in source.places.items():
        tensor = source[name]
        if family.stored(place, convention).is_one_expert:
            for n in range(tensor.shape[0]):
                called = family.name_in(place, convention, n)
                expert = family.written(place, convention, take(tensor, n))
                yield _Wanted((called,), name, expert, place, n)
        else:
            names = tuple(family.names_in(place, convention))
            written = family.written(place, convention, tensor)
            yield _Wanted(names, name, written, place)
        # A tied tensor need not be there.
        tied = family.ties.get(name)
        if tied is None or tied.role.name not in family.names[convention]:
            continue
        head = family.name_in(tied, convention)
        if head in there:
            copy = family.written(tied, convention, tensor)
            yield _Wanted((head,), name, copy, place, tied=tied.name)
