"""FP8 (e4m3): a float of 8 bits for each weight, and scales.

    .weight        float8_e4m3fn [out, in]
    .weight_scale  [out, 1], or [ceil(out / block), ceil(in / block)]: by channel, or square block

x = weight * scale; a scale is the largest magnitude that it covers / 448, so nothing saturates.
So compressed-tensors stores it ("float-quantized"), with scales in float32 here. Others are read:
scales in bfloat16 or float16, one for a whole matrix, or MXFP8 ("mxfp8-quantized"), where runs of
32 weights of a row share a power of two, a byte with the exponent.
Sources: compressed_tensors/compressors/{naive_quantized,mxfp8} of
https://pypi.org/project/compressed-tensors/0.20.1; the numbers of e4m3: https://arxiv.org/abs/2209.05433;
those of MX: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Final, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import LoadedRows, StoredArray
from weightcast.formats.packed.codes import rows_of
from weightcast.formats.packed.coding import ENCODED, NO_CODES, Quantized
from weightcast.formats.packed.find import ModuleTensors, packed_matrix
from weightcast.formats.packed.layout import (
    MatrixShape,
    PackedLayout,
    PackedMatrix,
    Part,
    Segment,
    check_parts,
)
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.library import Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.fp8 import (
    MXFP8,
    Fp8Rows,
    along_columns,
    along_rows,
    dequantize_fp8,
    quantize_fp8,
)
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import Search
from weightcast.quant.types import F32, Fp8Type, QuantType, WeightType
from weightcast.text import shown

WEIGHT: Final = ".weight"
SCALE: Final = ".weight_scale"
_FLOATS: Final = ("F32", "BF16", "F16")
_EXPONENTS: Final = ("U8", "F8_E8M0")


class Fp8Coding:
    """Floats of 8 bits and their scales, by numpy."""

    working_bytes: Final = 16  # float32, its magnitude, quotient and scale

    def is_searched(self, search: Search) -> bool:
        return False

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: Fp8Type,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
        search: Search,
    ) -> Quantized[Fp8Rows]:
        matrix = as_matrix(source)
        values = np.empty((matrix.n_out, matrix.n_in), np.float32)
        quantize_matrix(matrix, F32, values.view(np.uint8))
        rows = quantize_fp8(values, weight_type)
        if baseline is None:
            return Quantized(rows)
        return Quantized(rows, self.measure(matrix, rows, weight_type, importance, baseline))

    def carry(self, matrix: Matrix, weight_type: Fp8Type) -> Quantized[Fp8Rows]:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def check_carried(self, matrix: Matrix, rows: Fp8Rows, weight_type: Fp8Type) -> None:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def measure(
        self,
        matrix: Matrix,
        rows: Fp8Rows,
        weight_type: Fp8Type,
        importance: NDArray[np.float32] | None,
        baseline: Baseline,
    ) -> Errors:
        return measure_matrix(matrix, *self.values(rows, weight_type), importance, baseline)

    def values(self, rows: Fp8Rows, weight_type: Fp8Type) -> tuple[QuantType, NDArray[np.uint8]]:
        values = np.ascontiguousarray(dequantize_fp8(rows, weight_type))
        return F32, values.reshape(-1).view(np.uint8)

    def memory_dtype(self, weight_type: Fp8Type) -> str:
        return ENCODED

    def load(self, rows: Fp8Rows, weight_type: Fp8Type, out: NDArray[np.uint8]) -> LoadedRows:
        np.copyto(out, rows.weights.view(np.uint8))
        scales = along_rows(rows.scales, weight_type, len(out))
        return LoadedRows(decode=partial(_decode, out, scales, weight_type))


FP8: Final = Fp8Coding()


def _decode(
    weights: NDArray[np.uint8],
    scales: NDArray[np.float32],
    weight_type: Fp8Type,
    row0: int,
    row1: int,
) -> NDArray[np.float32]:
    spread = along_columns(scales[row0:row1], weight_type, weights.shape[1])
    floats = weights[row0:row1].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
        values: NDArray[np.float32] = floats * spread
    return values


def is_fp8_type(weight_type: WeightType) -> TypeGuard[Fp8Type]:
    """Tell floats of 8 bits from all other types."""
    return isinstance(weight_type, Fp8Type)


@dataclass(frozen=True, slots=True)
class Fp8Layout:
    """Weights and scales as two tensors; scales of a dtype under a suffix."""

    name: str = "float-quantized"
    scales: str = SCALE
    scale_dtype: str = "F32"

    @property
    def format(self) -> str:
        return self.name

    @property
    def coding(self) -> Fp8Coding:
        return FP8

    @property
    def is_written(self) -> bool:
        return self == FP8_LAYOUT

    def holds(self, weight_type: WeightType) -> bool:
        return is_fp8_type(weight_type) and weight_type.rows == (weight_type.columns or 1)

    def parts(self, shape: MatrixShape[Fp8Type]) -> tuple[Part, ...]:
        """Name the tensors of a matrix. Raises LayoutError if it is empty."""
        n_out, n_in, rows = shape.n_out, shape.n_in, shape.type.rows
        if n_out < 1 or n_in < 1 or rows < 0 or shape.type.columns < 0:
            raise LayoutError(f"a matrix [{n_out}, {n_in}] of {shape.type}: not possible")
        scales = Part(self.scales, self.scale_dtype, _scales_shape(shape), rows_each=rows or 1)
        if rows == 0:
            scales = replace(scales, out_axis=None)
        return (Part(WEIGHT, "F8_E4M3", (n_out, n_in)), scales)

    def row_multiple(self, weight_type: Fp8Type) -> int:
        return weight_type.rows or 1

    def pack(self, rows: Fp8Rows, shape: MatrixShape[Fp8Type], row0: int) -> Iterator[Segment]:
        if not self.is_written:
            raise LayoutError(f"{self.name} with scales of {self.scale_dtype} is only read")
        row1, multiple = row0 + len(rows.weights), self.row_multiple(shape.type)
        if (
            row0 < 0
            or row1 > shape.n_out
            or row0 % multiple
            or (row1 % multiple and row1 != shape.n_out)
        ):
            raise LayoutError(
                f"rows {row0} to {row1} of {shape.n_out}: {multiple} are packed at a time"
            )
        found = {WEIGHT: rows.weights, SCALE: rows.scales}
        check_parts(self.name, self.parts(shape.of_rows(row1 - row0)), found)
        yield rows_of(WEIGHT, rows.weights, row0)
        yield rows_of(SCALE, rows.scales, row0 // multiple)

    def constants(self, shape: MatrixShape[Fp8Type]) -> dict[str, bytes]:
        return {}

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[Fp8Type]) -> Fp8Rows:
        weights, scales = check_parts(self.name, self.parts(shape), parts)
        if scales.dtype == np.uint8:
            scales = scales.view(ml_dtypes.float8_e8m0fnu)
        values = scales.astype(np.float32)
        if np.any(values < 0):
            raise LayoutError(f"{self.scales} has a negative number")
        return Fp8Rows(weights, values)

    def arguments(self, weight_type: Fp8Type) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Describe weights by channel or block; inputs are quantized on the fly, as kernels do."""
        floats = {"num_bits": 8, "type": "float"}
        inputs = floats | {"symmetric": True, "dynamic": True}
        block = weight_type.columns
        if block:
            blocks = {"strategy": "block", "block_structure": [block, block]}
            return floats | blocks, inputs | {"strategy": "group", "group_size": block}
        return floats | {"strategy": "channel"}, inputs | {"strategy": "token"}


FP8_LAYOUT: Final = Fp8Layout()


def _scales_shape(shape: MatrixShape[Fp8Type]) -> tuple[int, int]:
    """Count the scales of a matrix along both axes."""
    rows, columns = shape.type.rows or shape.n_out, shape.type.columns or shape.n_in
    return -(-shape.n_out // rows), -(-shape.n_in // columns)


def fp8_matrix(
    layout: PackedLayout, module: ModuleTensors, suffix: str, blocks: Fp8Type
) -> PackedMatrix:
    """Find a matrix with scales under a suffix; `blocks` is what its config says of them.

    Raises LayoutError.
    """
    weight, scale = module.matrix(WEIGHT), module.part(suffix)
    if weight.dtype != "F8_E4M3":
        raise LayoutError(f"weights of {weight.dtype} with scales are not read")
    if scale.dtype not in (*_FLOATS, *_EXPONENTS):
        raise LayoutError(f"{suffix} is {scale.dtype}, which scales of FP8 are not")
    n_out, n_in = weight.shape
    shape = MatrixShape(_type_of(scale, n_out, n_in, blocks), n_out, n_in)
    wanted = _scales_shape(shape)
    if _without_ones(scale.shape) == _without_ones(wanted):  # said with other axes of one
        module = module.seen_as(suffix, scale.dtype, wanted)
    name = FP8_LAYOUT.name if FP8_LAYOUT.holds(shape.type) else shape.type.label.lower()
    return packed_matrix(layout, shape, module, Fp8Layout(name, suffix, scale.dtype))


def _type_of(scale: StoredArray, n_out: int, n_in: int, blocks: Fp8Type) -> Fp8Type:
    """Tell what a scale covers by how many there are, and by the config."""
    if scale.dtype in _EXPONENTS:
        return MXFP8
    by_row, whole = Fp8Type(), Fp8Type(0, 0)
    if scale.shape in ((n_out,), (n_out, 1)) or (blocks, scale.shape) == (by_row, (1, n_out)):
        return by_row
    is_one_block = _scales_shape(MatrixShape(blocks, n_out, n_in)) == scale.shape
    return whole if prod(scale.shape) == 1 and not is_one_block else blocks


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def block_type(config: Mapping[str, Any]) -> Fp8Type:
    """Tell from config groups of compressed-tensors, which alone have it, what a scale covers."""
    groups = config.get("config_groups")
    blocks = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("block_structure") is not None:
            said = weights["block_structure"]
            blocks.add(said if isinstance(said, str) else shown(said))
    if not blocks:
        return Fp8Type()
    block = _square(blocks.pop()) if len(blocks) == 1 else 0
    if not block:
        raise LayoutError("its block_structure is not a single square in the config")
    return Fp8Type(block, block)


def _square(text: str) -> int:
    """Take N from "[N, N]"; 0 if it is anything else."""
    rows, _, columns = text.strip("[]").partition(", ")
    return int(rows) if rows == columns and rows.isdecimal() and len(rows) < 6 else 0
