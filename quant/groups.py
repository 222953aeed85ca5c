"""Groups: integers with a scale, and maybe a zero point, along rows; x = (q - zero_point) * scale.

The algebra of int4 and int8 checkpoints for GPUs (compressed-tensors, GPTQ, AWQ), before anything
is packed. The arithmetic is in kernels/groups/search.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu import groups as group_library
from weightcast.quant.cpu.library import Matrix, shaped_importance
from weightcast.quant.metrics import Baseline, Errors, of_moments
from weightcast.quant.search import USUAL_EFFORT
from weightcast.quant.types import GroupType

SCALE_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one matrix as groups."""

    codes: NDArray[np.uint8]  # [rows, in], 0 .. 2**bits - 1, one a byte
    scales: NDArray[Any]  # [rows, groups], float32, float16 or bfloat16
    zero_points: NDArray[np.uint8] | None  # [rows, groups] if asymmetric


def empty_groups(group_type: GroupType, n_out: int, n_in: int) -> Groups:
    """Make room for the groups of [n_out, n_in]. Raises LayoutError if they do not fill rows."""
    shape = (n_out, group_type.groups_in(n_in))
    return Groups(
        np.empty((n_out, n_in), np.uint8),
        np.empty(shape, SCALE_DTYPES[group_type.scale_dtype]),
        None if group_type.symmetric else np.empty(shape, np.uint8),
    )


def _described(group_type: GroupType, n_in: int, effort: int = 0) -> group_library._GroupType:
    return group_library.group_type(
        group_type.bits,
        group_type.size_in(n_in),
        group_type.symmetric,
        group_type.scale_dtype,
        effort,
    )


def quantize_groups(
    matrix: Matrix,
    group_type: GroupType,
    importance: NDArray[np.float32] | None = None,
    *,
    effort: int = USUAL_EFFORT,
) -> Groups:
    """Quantize a matrix [n_out, n_in]; scales (and zero points) are those of least squared error.

    `importance`, float32 [n_in], weighs the errors. `effort` is how long scales are searched for: 0
    takes them from the extremes alone (the largest magnitude over 2**(bits - 1) - 1/2, or the span
    of the values and 0 over 2**bits - 1); 1, 2 and 3 try about 12, 32 and 110. No group is ever
    worse with a search, as long as float32 holds its squared errors without subnormals (1e-38).
    Scales of symmetric groups can be negative.
    Groups of zeros have scale 1 and codes 2**(bits - 1). Raises SourceValueError for NaN, infinity
    or values beyond a float16 scale, LayoutError if groups do not fill rows.
    """
    groups = empty_groups(group_type, matrix.n_out, matrix.n_in)
    if importance is not None:
        importance = shaped_importance(importance, matrix.n_in)
    described = _described(group_type, matrix.n_in, effort)
    group_library.make(
        matrix, described, importance, groups.codes, groups.scales, groups.zero_points
    )
    return groups


def quantize_and_measure_groups(
    matrix: Matrix,
    group_type: GroupType,
    importance: NDArray[np.float32] | None = None,
    baseline: Baseline = Baseline.STORED,
    *,
    effort: int = USUAL_EFFORT,
) -> tuple[Groups, Errors]:
    """Do as `quantize_groups` and then `measure_groups` do, to the same bits, in less time."""
    groups = empty_groups(group_type, matrix.n_out, matrix.n_in)
    if importance is not None:
        importance = shaped_importance(importance, matrix.n_in)
    described = _described(group_type, matrix.n_in, effort)
    made = groups.codes, groups.scales, groups.zero_points
    moments = group_library.make_and_measure(matrix, described, importance, baseline, *made)
    return groups, of_moments(moments, matrix.n_in)


def carry_groups(matrix: Matrix, group_type: GroupType) -> Groups:
    """Carry an int8 matrix as it is: codes plus 128, scales repeated for each group.

    Raises LayoutError if a group straddles two scales of the source, InexactScaleError, which is
    one, at the first value whose scale the scale dtype cannot hold exactly.
    """
    if matrix.scales is None:
        raise LayoutError(f"{matrix.dtype} values have no codes to carry: quantize them")
    if group_type.bits != 8 or not group_type.symmetric:
        raise LayoutError("int8 codes can be carried into symmetric groups of 8 bits only")
    groups = empty_groups(group_type, matrix.n_out, matrix.n_in)
    size = group_type.size_in(matrix.n_in)
    scale_rows, rest = divmod(matrix.n_in, matrix.scales.shape[0])
    if rest or scale_rows % size:
        raise LayoutError(
            f"groups of {size} values straddle scales of {scale_rows} values: use a divisor of them"
        )
    described = _described(group_type, matrix.n_in)
    group_library.make(
        matrix, described, None, groups.codes, groups.scales, groups.zero_points, carry=True
    )
    return groups


def check_carried(matrix: Matrix, groups: Groups, group_type: GroupType) -> None:
    """Prove that groups stand for exactly the codes and scales of an int8 matrix.

    Raises group_library.NotCarriedError at the first value for which they do not, LayoutError if
    groups of this type cannot be those of the matrix.
    """
    if groups.codes.shape != (matrix.n_out, matrix.n_in) or not group_type.symmetric:
        raise LayoutError(f"codes {list(groups.codes.shape)} are not those of the int8 matrix")
    codes, scales, _ = _checked(groups, group_type)
    described = _described(group_type, matrix.n_in)
    group_library.check_carried(matrix, described, codes, scales)


def dequantize_groups(groups: Groups, group_type: GroupType) -> NDArray[np.float32]:
    """Compute (q - zero_point) * scale, float32 [rows, in], each product rounded once.

    Raises LayoutError for shapes or dtypes that are not of this type.
    """
    contiguous = _checked(groups, group_type)
    described = _described(group_type, groups.codes.shape[1])
    return group_library.dequantize(described, *contiguous)


def measure_groups(
    matrix: Matrix,
    groups: Groups,
    group_type: GroupType,
    importance: NDArray[np.float32] | None = None,
    baseline: Baseline = Baseline.STORED,
) -> Errors:
    """Compare a matrix with groups, as `error_library.measure_matrix` does with blocks.

    Raises LayoutError for shapes or dtypes that do not go together.
    """
    contiguous = _checked(groups, group_type)
    shape = (matrix.n_out, matrix.n_in)
    if groups.codes.shape != shape:
        raise LayoutError(f"codes {list(groups.codes.shape)} for a matrix {list(shape)}")
    if importance is not None:
        importance = shaped_importance(importance, matrix.n_in)
    described = _described(group_type, matrix.n_in)
    moments = group_library.measure(matrix, described, contiguous, importance, baseline)
    return of_moments(moments, matrix.n_in)


def _checked(
    groups: Groups, group_type: GroupType
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint8] | None]:
    """Give what groups hold, contiguous. Raises LayoutError if it is of another type."""
    rows, n_in = groups.codes.shape
    shape = (rows, group_type.groups_in(n_in))
    dtype = SCALE_DTYPES[group_type.scale_dtype]
    if groups.scales.shape != shape or groups.scales.dtype != dtype:
        found = f"{groups.scales.dtype} {list(groups.scales.shape)}"
        raise LayoutError(f"scales are {found}, expected {dtype} {list(shape)}")
    zero_points = groups.zero_points
    if (zero_points is None) != group_type.symmetric:
        raise LayoutError("zero points belong to asymmetric groups, and to those alone")
    if zero_points is not None and zero_points.shape != shape:
        raise LayoutError(f"zero points are {list(zero_points.shape)}, expected {list(shape)}")
    return (
        np.ascontiguousarray(groups.codes),
        np.ascontiguousarray(groups.scales),
        None if zero_points is None else np.ascontiguousarray(zero_points),
    )
