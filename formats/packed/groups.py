"""Integers in groups: their coding, and the checks that all layouts of them share."""

from __future__ import annotations

from functools import partial
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import LoadedRows
from weightcast.formats.packed.coding import ENCODED, Quantized
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    MatrixLayout,
    MatrixShape,
    check_array,
)
from weightcast.quant.backend import Backend
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix
from weightcast.quant.groups import (
    Groups,
    carry_groups,
    check_carried,
    dequantize_groups,
    measure_groups,
)
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import F32, I8, GroupType, QuantType, WeightType

_SIGN: Final = np.uint8(128)


class GroupCoding:
    """Codes a byte each, scales and maybe zero points."""

    working_bytes: Final = 2  # a code, and once more as it is packed

    def is_searched(self, search: Search) -> bool:
        return True

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: GroupType,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
        search: Search = GGML,
    ) -> Quantized[Groups]:
        errors = None
        if baseline is None:
            groups = backend.quantize_groups(
                source, weight_type, importance, effort=search.group_effort
            )
        else:
            groups, errors = backend.quantize_and_measure_groups(
                source, weight_type, importance, baseline, effort=search.group_effort
            )
        was_int8 = isinstance(source, Matrix) and source.scales is not None
        requantized = groups.scales.size if was_int8 and weight_type.bits == 8 else 0
        return Quantized(groups, errors, BlockCounts(requantized=requantized))

    def carry(self, matrix: Matrix, weight_type: GroupType) -> Quantized[Groups]:
        groups = carry_groups(matrix, weight_type)
        return Quantized(groups, counts=BlockCounts(exact=groups.scales.size))

    def check_carried(self, matrix: Matrix, rows: Groups, weight_type: GroupType) -> None:
        check_carried(matrix, rows, weight_type)

    def measure(
        self,
        matrix: Matrix,
        rows: Groups,
        weight_type: GroupType,
        importance: NDArray[np.float32] | None,
        baseline: Baseline,
    ) -> Errors:
        return measure_groups(matrix, rows, weight_type, importance, baseline)

    def values(self, rows: Groups, weight_type: GroupType) -> tuple[QuantType, NDArray[np.uint8]]:
        values = np.ascontiguousarray(dequantize_groups(rows, weight_type))
        return F32, values.reshape(-1).view(np.uint8)

    def memory_dtype(self, weight_type: GroupType) -> str:
        return I8.name if weight_type.carries_codes else ENCODED

    def load(self, rows: Groups, weight_type: GroupType, out: NDArray[np.uint8]) -> LoadedRows:
        if weight_type.carries_codes:
            np.bitwise_xor(rows.codes, _SIGN, out=out)
            return LoadedRows(scales=np.ascontiguousarray(rows.scales.T, np.float32))
        np.copyto(out, rows.codes)
        kept = Groups(out, rows.scales, rows.zero_points)
        return LoadedRows(decode=partial(_decode, kept, weight_type))


GROUPS: Final = GroupCoding()


def _decode(groups: Groups, weight_type: GroupType, row0: int, row1: int) -> NDArray[np.float32]:
    zero_points = groups.zero_points
    rows = Groups(
        groups.codes[row0:row1],
        groups.scales[row0:row1],
        None if zero_points is None else zero_points[row0:row1],
    )
    return dequantize_groups(rows, weight_type)


def is_group_type(weight_type: WeightType) -> TypeGuard[GroupType]:
    """Tell integers in groups from all other types."""
    return isinstance(weight_type, GroupType)


def group_count(shape: MatrixShape[GroupType]) -> int:
    """Count the groups of a row. Raises LayoutError for a shape that no layout stores."""
    size = shape.type.group_size
    if shape.n_out < 1 or shape.n_in < 1:
        raise LayoutError(f"a matrix [{shape.n_out}, {shape.n_in}] has no weights to pack")
    if size == 0:
        return 1
    if shape.n_in % size:
        raise LayoutError(f"rows of {shape.n_in} values are not whole groups of {size}")
    return shape.n_in // size


def check_rows(
    layout: MatrixLayout[GroupType, Groups],
    groups: Groups,
    shape: MatrixShape[GroupType],
    row0: int,
) -> None:
    """Raise LayoutError if rows [row0, ...) do not belong to the matrix or cannot be packed."""
    n_groups, group_type = group_count(shape), shape.type
    codes, scales, zero_points = groups.codes, groups.scales, groups.zero_points
    rows = len(codes)
    end, multiple = row0 + rows, layout.row_multiple(group_type)
    if row0 < 0 or end > shape.n_out or row0 % multiple or (end % multiple and end != shape.n_out):
        raise LayoutError(
            f"rows {row0} to {end} of {shape.n_out} cannot be packed: {layout.name} packs "
            f"{multiple} at a time"
        )
    check_array("codes", codes, np.dtype(np.uint8), (rows, shape.n_in))
    check_array("scales", scales, NUMPY_DTYPES[group_type.scale_dtype], (rows, n_groups))
    if (zero_points is None) != group_type.symmetric:
        raise LayoutError("zero points belong to asymmetric groups, and only to these")
    if zero_points is not None:
        check_array("zero points", zero_points, np.dtype(np.uint8), (rows, n_groups))
    largest = (1 << group_type.bits) - 1
    for name, array in (("code", codes), ("zero point", zero_points)):
        if array is not None and array.size and array.max() > largest:
            raise LayoutError(f"{name} {array.max()} does not fit {group_type.bits} bits")
