"""Match each tensor of an artifact to the tensor of the source that it ought to hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from weightcast.converters.families.generic import stored_tensor
from weightcast.converters.families.graphs import joined as join_shares
from weightcast.converters.graph import (
    Place,
    StoredMatrix,
    Tensor,
    TensorGraph,
    matrices,
    stored,
    take,
    windows,
)
from weightcast.converters.sources import Weights
from weightcast.converters.verify.result import MOST_ALIKE, Problem, plain
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.text import count, some

ANOTHER_MODEL: Final = "another model"


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """A tensor of an artifact beside the one of the source that it ought to hold.

    `gguf` is the canonical name, `own` the one that weightcast gives it. `joined` is a tensor that
    several files have a share of; `array` then is the first of these, in the whole shape. `expert`
    is set where each expert is a tensor of its own; `place` is None where the family has no table;
    `tied` is the canonical name of a copy of another tensor.
    """

    name: str
    gguf: str
    array: StoredArray
    source: Tensor
    place: Place | None
    expert: int | None = None
    tied: str | None = None
    own: str = ""
    joined: Tensor | None = None

    @property
    def views(self) -> list[tuple[StoredMatrix, StoredMatrix]]:
        """The matrices of both, source first. Raises LayoutError if there are not as many."""
        of_source = matrices(self.source)
        made = stored if self.place is not None else stored_tensor
        of_artifact: list[StoredMatrix] = list(windows(made(self.name, self.array)))
        if self.joined is not None:
            of_artifact = list(matrices(self.joined))
        if [v.shape for v in of_source] != [v.shape for v in of_artifact]:
            raise LayoutError(f"{self.name}: shape {list(self.array.shape)} cannot be compared")
        return list(zip(of_source, of_artifact, strict=True))


def match(
    source: TensorGraph,
    weights: Weights,
    conventions: tuple[str, str],
    artifact: Path,
) -> tuple[list[TensorMatch], list[Problem]]:
    """Match tensors by name; say what is missing, extra or of another shape.

    Where most are of another shape, that is all that is said, and nothing is matched.

    `conventions` are that of the artifact's names, and weightcast's own of such artifacts.
    """
    found: list[TensorMatch] = []
    problems: list[Problem] = []
    unlike: list[Problem] = []
    missing: list[str] = []
    left: dict[str, StoredArray] = dict(weights.arrays)
    joined: set[str] = set()
    for wanted in _wanted(source, conventions, [*weights.arrays, *weights.shares]):
        tensor = wanted.source
        name = next((n for n in wanted.names if n in left or n in weights.shares), None)
        if name is None:
            missing.append(wanted.names[0])
            continue
        whole = None
        if name in weights.shares:
            assert wanted.place is not None
            shares = weights.shares[name]
            joined.add(name)
            try:
                whole = join_shares(source.family, wanted.place, name, shares)
            except LayoutError as problem:
                problems.append(Problem(str(artifact), str(problem), plain(name), mistake="ranks"))
                continue
            nbytes = sum(share.nbytes for share in shares)
            array = replace(shares[0], shape=whole.shape, nbytes=nbytes)
        else:
            array = left.pop(name)
        if ggml_shape(array.shape) == ggml_shape(tensor.shape):
            array = replace(array, shape=tensor.shape)
            found.append(
                TensorMatch(
                    name,
                    wanted.gguf,
                    array,
                    tensor,
                    wanted.place,
                    wanted.expert,
                    wanted.tied,
                    wanted.own or name,
                    whole,
                )
            )
            continue
        what, mistake = f"is {list(array.shape)}, in the source {list(tensor.shape)}", "shape"
        if array.shape == (*tensor.shape[:-2], *reversed(tensor.shape[-2:])):
            what, mistake = f"{what}: transposed", "transposed"
        unlike.append(Problem(str(array.path), what, plain(name), "convert again", mistake))
    other = [problem for problem in unlike if problem.mistake == "shape"]
    if len(other) > max(MOST_ALIKE, len(found)):
        number, first = count(len(other), "tensor"), f"{other[0].tensor}, which {other[0].what}"
        what = f"is of another model: {number} of other shapes, such as {first}"
        remedy = "name the source that this was made of"
        return [], [Problem(str(artifact), what, None, remedy, ANOTHER_MODEL)]
    problems += unlike
    if missing:
        remedy = "convert again, or name the source that this was made of"
        said = "is missing" if len(missing) == 1 else "are missing"
        problems.append(Problem(str(artifact), said, _some(missing), remedy, "missing"))
    extra = [*left, *(name for name in weights.shares if name not in joined)]
    if extra:
        remedy = "remove it if no reader needs it"
        said = "is not in the source" if len(extra) == 1 else "are not in the source"
        file = next((array.path for array in left.values()), artifact)
        problems.append(Problem(str(file), said, _some(extra), remedy, "extra"))
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
    own: str = ""


def _wanted(
    source: TensorGraph, conventions: tuple[str, str], there: Collection[str]
) -> Iterator[_Wanted]:
    """List the tensors that an artifact ought to have."""
    family = source.family
    convention, usual = conventions
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
                own = family.name_in(place, usual, n)
                yield _Wanted((called,), name, expert, place, n, own=own)
        else:
            names = tuple(family.names_in(place, convention))
            written = family.written(place, convention, tensor)
            # Experts that only weightcast has one by one are planned so: no one name is theirs.
            one = family.stored(place, usual).is_one_expert
            own = "" if one else family.name_in(place, usual)
            yield _Wanted(names, name, written, place, own=own)
        # A tied tensor need not be there.
        tied = family.ties.get(name)
        if tied is None or tied.role.name not in family.names[convention]:
            continue
        head = family.name_in(tied, convention)
        if head in there:
            copy = family.written(tied, convention, tensor)
            own = family.name_in(tied, usual)
            yield _Wanted((head,), name, copy, place, tied=tied.name, own=own)
