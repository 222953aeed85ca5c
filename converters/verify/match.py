"""Match each tensor of an artifact to the tensor of the source that it ought to hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import frexp
from pathlib import Path
from typing import Final

import numpy as np

from weightcast.converters.families.generic import stored_tensor
from weightcast.converters.families.graphs import joined as join_shares
from weightcast.converters.graph import (
    Place,
    Scaled,
    StoredMatrix,
    Tensor,
    TensorGraph,
    matrices,
    scaled,
    split_factor,
    stored,
    take,
    unscaled,
    windows,
)
from weightcast.converters.sources.prune import are_last_layers
from weightcast.converters.sources.weights import Weights
from weightcast.converters.verify.result import MOST_ALIKE, Problem, plain
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.factors import Factors
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.text import count, option, some

ANOTHER_MODEL: Final = "another model"
_AGAIN: Final = "convert again"


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """A tensor of an artifact beside the one of the source that it ought to hold.

    `gguf` is the canonical name, `own` the one that weightcast gives it. `joined` is a tensor that
    several files have a share of; `array` then is the first of these, in the whole shape. `expert`
    is set where each expert is a tensor of its own; `place` is None where the family has no table;
    `tied` is the canonical name of a copy of another tensor. Where `factors` lie beside the tensor,
    one or one for each expert, `source` is what it ought to hold without them.
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
    factors: tuple[float, ...] = (1.0,)

    @property
    def is_divided(self) -> bool:
        """Tell whether `source` was divided, and rounded, by factors that the artifact alone has.

        By powers of two dividing is exact.
        """
        is_exact = all(abs(frexp(factor)[0]) == 0.5 for factor in self.factors)
        return isinstance(self.source.origin, Scaled) and not is_exact

    def factor_of(self, matrix: int) -> float:
        """Give what lies beside a matrix of it, by which its values are multiplied."""
        return self.factors[matrix if len(self.factors) > 1 else 0]

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
    factors: Factors,
) -> tuple[list[TensorMatch], list[Problem]]:
    """Match tensors by name; say what is missing, extra or of another shape.

    Where most are of another shape, that is all that is said, and nothing is matched. What lies
    beside weights is part of them: either side may have other `factors` than the other, or none.

    `conventions` are that of the artifact's names, and weightcast's own of such artifacts.
    """
    found: list[TensorMatch] = []
    problems: list[Problem] = []
    unlike: list[Problem] = []
    missing: list[str] = []
    inputs = source.factors.input_scales | factors.input_scales
    beside = factors.names | {name for name in inputs if name not in source}
    left = {name: array for name, array in weights.arrays.items() if name not in beside}
    joined: set[str] = set()
    for wanted in _wanted(source, conventions, [*weights.arrays, *weights.shares]):
        tensor = wanted.source
        name = next((n for n in wanted.names if n in left or n in weights.shares), None)
        if name is None:
            if wanted.names[0] not in inputs:
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
        own = factors.of.get(name, (1.0,))
        if ggml_shape(array.shape) == ggml_shape(tensor.shape):
            array = replace(array, shape=tensor.shape)
            try:
                tensor = _without(tensor, own)
            except LayoutError as problem:
                problems.append(Problem(str(array.path), str(problem), plain(name), _AGAIN))
                continue
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
                    own,
                )
            )
            continue
        unlike.append(_of_another_shape(name, array, tensor))
    other = [problem for problem in unlike if problem.mistake == "shape"]
    if len(other) > max(MOST_ALIKE, len(found)):
        number, first = count(len(other), "tensor"), f"{other[0].tensor}, which {other[0].what}"
        what = f"is of another model: {number} of other shapes, such as {first}"
        remedy = "name the source that this was made of"
        return [], [Problem(str(artifact), what, None, remedy, ANOTHER_MODEL)]
    problems += unlike
    if missing:
        problems.append(_missing(source, artifact, missing))
    extra = [*left, *(name for name in weights.shares if name not in joined)]
    if extra:
        problems.append(_extra(next((a.path for a in left.values()), artifact), extra))
    return found, problems


def _of_another_shape(name: str, array: StoredArray, wanted: Tensor) -> Problem:
    what, mistake = f"is {list(array.shape)}, in the source {list(wanted.shape)}", "shape"
    if array.shape == (*wanted.shape[:-2], *reversed(wanted.shape[-2:])):
        what, mistake = f"{what}: transposed", "transposed"
    return Problem(str(array.path), what, plain(name), _AGAIN, mistake)


def _missing(source: TensorGraph, artifact: Path, names: Sequence[str]) -> Problem:
    remedy = "convert again, or name the source that this was made of"
    if not source.family.has_table and are_last_layers(names, source):
        given = option("prune_layers", "N")
        remedy = f"if layers were left out, name them: {given}; or else {remedy}"
    said = "is missing" if len(names) == 1 else "are missing"
    return Problem(str(artifact), said, _some(names), remedy, "missing")


def _extra(file: Path, names: Sequence[str]) -> Problem:
    said = "is not in the source" if len(names) == 1 else "are not in the source"
    return Problem(str(file), said, _some(names), "remove it if no reader needs it", "extra")


def _without(tensor: Tensor, factors: tuple[float, ...]) -> Tensor:
    """Divide a source by the factors that an artifact has beside the tensor.

    Raises LayoutError for those that leave nothing of the weights.
    """
    own = tensor.origin.factors if isinstance(tensor.origin, Scaled) else (1.0,)
    if own == factors:
        return unscaled(tensor)
    blocks, factor = split_factor(tensor)
    if factors == (factor,):
        return replace(blocks, name=tensor.name)
    with np.errstate(all="ignore"):
        inverses = 1 / np.array(factors, np.float32)
    lost = np.flatnonzero(~np.isfinite(inverses))
    if len(lost):
        raise LayoutError(f"the factor beside it is {factors[lost[0]]:g}, which leaves no weights")
    return scaled(tensor, inverses.tolist())


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
            if name not in source.factors.names:
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
