"""Error feedback: codes chosen so that errors make up for each other in products with inputs.

Scales and zero points are those of a search; codes are then chosen one input column after another,
those with the largest second moments first, and the error of each column is carried to those that
are left. This is GPTQ (https://arxiv.org/abs/2210.17323) in the form of LDLQ
(https://arxiv.org/abs/2307.13304), which needs no inverse. What is made less is the cost of the
errors E of a row, E H E', with the second moments H of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.backend import Backend, CpuBackend, as_matrix
from weightcast.quant.cpu.feedback import Factor, Grid, factor_hessian, round_with_feedback
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.grids import as_blocks, grid_of
from weightcast.quant.groups import Groups, measure_groups
from weightcast.quant.host import as_numpy
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, USUAL_EFFORT, Search
from weightcast.quant.types import F32, GroupType, QuantType, WeightType

# The share of the mean second moment that is added to each, as in GPTQ: few tokens leave directions
# of which nothing is known.
DAMPING: Final = 0.01
# Of the largest second moment; float32 sums in another order differ by less.
_ASYMMETRY: Final = 1e-3
# Values of working memory that rows are rounded in at a time, and the least rows.
_WORK_VALUES: Final = 1 << 22
_LEAST_ROWS: Final = 64
_CHECKED_ROWS: Final = 256


def has_feedback(weight_type: WeightType) -> bool:
    """Tell whether codes of a type can be chosen one by one: not floats, nor points of a grid."""
    if isinstance(weight_type, QuantType):
        return grid_of(weight_type) is not None
    return isinstance(weight_type, GroupType)


def check_moments(moments: NDArray[np.float32]) -> None:
    """Raise LayoutError for what is no sum of products x x' of inputs, [in, in]."""
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        raise LayoutError(f"{list(moments.shape)} values are no square matrix")
    diagonal = np.diagonal(moments)
    if not np.isfinite(diagonal).all():
        raise LayoutError("NaN or infinity on the diagonal")
    if diagonal.min(initial=0) < 0:
        raise LayoutError("a second moment is negative")
    most = np.float32(_ASYMMETRY) * diagonal.max(initial=0)
    for start in range(0, len(moments), _CHECKED_ROWS):
        rows = slice(start, start + _CHECKED_ROWS)
        # NaN is not at most anything.
        if not (np.abs(moments[rows] - moments[:, rows].T) <= most).all():
            raise LayoutError("not symmetric, or NaN")


def as_weights(diagonal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weigh columns by their second moments [in], times the power of two that float32 sums keep.

    Where all are 0 nothing is known, and all columns count the same.
    """
    if not diagonal.any():
        return np.ones_like(diagonal)
    weights: NDArray[np.float32] = np.ldexp(diagonal, 1 - math.frexp(float(diagonal.max()))[1])
    return weights


def factor(moments: NDArray[np.float32], damping: float = DAMPING) -> Factor:
    """Factor second moments [in, in] of a matrix's inputs, to round the largest columns first.

    Takes 8 bytes for each of their values. Raises LayoutError if they cannot be second moments, or
    if all are 0.
    """
    check_moments(moments)
    diagonal = np.diagonal(moments).astype(np.float64)
    mean = diagonal.mean() if diagonal.size else 0.0
    if mean == 0:
        raise LayoutError("all second moments are 0")
    order = np.argsort(diagonal, kind="stable")
    values = np.empty(moments.shape)
    for start in range(0, len(order), _CHECKED_ROWS):
        rows = order[start : start + _CHECKED_ROWS]
        values[start : start + _CHECKED_ROWS] = moments[rows][:, order]
    values[np.diag_indices_from(values)] += damping * mean
    factor_hessian(values)
    return Factor(values, order)


def improve_blocks(
    source: Matrix | Blocks, quant_type: QuantType, rows: NDArray[np.uint8], by: Factor
) -> None:
    """Choose the codes of blocks again, in place: uint8, the rows of a matrix [n_out, n_in].

    No row costs more than before. Types that `has_feedback` denies stay as they are. Raises
    LayoutError for a factor of another size.
    """
    taken = grid_of(quant_type)
    _check_size(source.n_in, by)
    if taken is None:
        return
    weights = _values(source)
    found = rows.reshape(source.n_out, -1)
    for part in _parts(*weights.shape):
        blocks = as_blocks(found[part], quant_type)
        shape = weights[part].shape
        codes = np.ascontiguousarray(taken.take(blocks).reshape(shape))
        if _improve(weights[part], by, taken.grid(blocks, shape[0]), codes):
            taken.put(blocks, codes.reshape(len(blocks), -1))


def improve_groups(
    source: Matrix | Blocks, group_type: GroupType, groups: Groups, by: Factor
) -> None:
    """Choose the codes of groups again, in place; see `improve_blocks`."""
    _check_size(source.n_in, by)
    weights = _values(source)
    for part in _parts(*weights.shape):
        steps = groups.scales[part].astype(np.float32)
        zeros: NDArray[np.uint8] | int = 1 << (group_type.bits - 1)
        if groups.zero_points is not None:
            zeros = groups.zero_points[part]
        grid = Grid(steps, -steps * np.float32(zeros), 1 << group_type.bits)
        _improve(weights[part], by, grid, groups.codes[part])


def _improve(
    weights: NDArray[np.float32], by: Factor, grid: Grid, codes: NDArray[np.uint8]
) -> bool:
    """Replace the codes of the rows that cost less with others; tell whether there are such."""
    chosen = codes.copy()
    costs = round_with_feedback(weights, by, grid, chosen, choose=True)
    better = costs < round_with_feedback(weights, by, grid, codes, choose=False)
    codes[better] = chosen[better]
    return bool(better.any())


def _parts(n_out: int, n_in: int) -> Iterator[slice]:
    """Cut rows into parts, of which working memory holds one."""
    step = max(_WORK_VALUES // max(n_in, 1), _LEAST_ROWS)
    for start in range(0, n_out, step):
        yield slice(start, min(start + step, n_out))


def _check_size(n_in: int, by: Factor) -> None:
    if by.n_in != n_in:
        raise LayoutError(f"second moments of {by.n_in} inputs for rows of {n_in} values")


def _values(source: Matrix | Blocks) -> NDArray[np.float32]:
    """Give a matrix as float32 [n_out, n_in], row-major."""
    matrix = as_matrix(source)
    values = np.empty((matrix.n_out, matrix.n_in), np.float32)
    quantize_matrix(matrix, F32, values.reshape(-1).view(np.uint8))
    return values


class ArrayFactors:
    """Factors for the matrices of an array [..., out, in], from second moments given with it.

    `hessian` is [in, in] for all matrices or [..., in, in]. Raises LayoutError for other shapes and
    for what is not real numbers.
    """

    def __init__(self, hessian: Any, shape: tuple[int, ...]) -> None:
        try:
            given = as_numpy(hessian, "use").astype(np.float32, casting="same_kind")
        except TypeError:
            raise LayoutError("second moments must be real numbers") from None
        square = (shape[-1], shape[-1])
        each = (*shape[:-2], *square)
        if given.shape not in (square, each):
            other = f", or {list(each)}, for each matrix" if each != square else ""
            raise LayoutError(
                f"second moments of shape {list(given.shape)} for an array of {list(shape)}: they "
                f"must be {list(square)}{other}"
            )
        self._given = given
        self._for_all = factor(given) if given.ndim == 2 else None

    def backend(
        self, index: tuple[int, ...], importance: NDArray[np.float32] | None
    ) -> tuple[Backend, NDArray[np.float32] | None]:
        """Give what quantizes the matrix at `index`, and by what importance.

        Raises LayoutError for what is no second moments.
        """
        moments = self._given if self._for_all is not None else self._given[index]
        diagonal = np.diagonal(moments)
        weights = as_weights(diagonal) if importance is None else importance
        if not diagonal.any():
            return CpuBackend(), weights
        by = factor(moments) if self._for_all is None else self._for_all
        return FeedbackBackend(CpuBackend(), by), weights


class FeedbackBackend:
    """Quantize with another backend, then choose codes with feedback, here."""

    def __init__(self, backend: Backend, by: Factor) -> None:
        self._backend = backend
        self._by = by

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        counts = self._backend.quantize(source, quant_type, dst, importance, search)
        improve_blocks(source, quant_type, dst, self._by)
        return counts

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        search: Search = GGML,
    ) -> tuple[BlockCounts, Errors]:
        counts = self.quantize(source, quant_type, dst, importance, search)
        return counts, measure_matrix(as_matrix(source), quant_type, dst, importance, baseline)

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        *,
        effort: int = USUAL_EFFORT,
    ) -> Groups:
        groups = self._backend.quantize_groups(source, group_type, importance, effort=effort)
        improve_groups(source, group_type, groups, self._by)
        return groups

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        *,
        effort: int = USUAL_EFFORT,
    ) -> tuple[Groups, Errors]:
        groups = self.quantize_groups(source, group_type, importance, effort=effort)
        errors = measure_groups(as_matrix(source), groups, group_type, importance, baseline)
        return groups, errors

    def close(self) -> None:
        """Leave the backend to whom it belongs."""
