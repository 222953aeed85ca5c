"""FP8 (e4m3) as compressed-tensors stores it ("float-quantized"), by channel or by square block.

    .weight        float8_e4m3fn [out, in]
    .weight_scale  float32 [out, 1], or [ceil(out / block), ceil(in / block)]

x = weight * scale; a scale is the largest magnitude that it covers / 448, so nothing saturates.
Source: compressed_tensors/compressors/naive_quantized of
https://pypi.org/project/compressed-tensors/0.20.0; the numbers of e4m3: https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import LoadedRows
from weightcast.formats.packed.codes import rows_of
from weightcast.formats.packed.coding import ENCODED, NO_CODES, Quantized
from weightcast.formats.packed.find import ModuleTensors
from weightcast.formats.packed.layout import MatrixShape, Part, Segment, check_parts
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.library import Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.types import F32, Fp8Type, QuantType, WeightType
from weightcast.text import shown

WEIGHT: Final = ".weight"
SCALE: Final = ".weight_scale"
_LARGEST: Final = np.float32(448)


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows of one matrix in floats of 8 bits."""

    weights: NDArray[Any]  # [rows, in], float8_e4m3fn
    scales: NDArray[np.float32]  # [rows, 1], or [ceil(rows / block), ceil(in / block)]


class Fp8Coding:
    """Floats of 8 bits and their scales, by numpy."""

    is_searched: Final = False
    working_bytes: Final = 16  # float32, its magnitude, quotient and scale

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: Fp8Type,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
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
        scales = rows.scales
        if weight_type.block:
            scales = scales.repeat(weight_type.block, axis=0)[: len(out)]
        return LoadedRows(decode=partial(_decode, out, scales, weight_type))


FP8: Final = Fp8Coding()


def _decode(
    weights: NDArray[np.uint8],
    scales: NDArray[np.float32],
    weight_type: Fp8Type,
    row0: int,
    row1: int,
) -> NDArray[np.float32]:
    spread = scales[row0:row1]
    if weight_type.block:
        spread = spread.repeat(weight_type.block, axis=1)[:, : weights.shape[1]]
    floats = weights[row0:row1].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
        values: NDArray[np.float32] = floats * spread
    return values


def is_fp8_type(weight_type: WeightType) -> TypeGuard[Fp8Type]:
    """Tell floats of 8 bits from all other types."""
    return isinstance(weight_type, Fp8Type)


class Fp8Layout:
    """Weights and scales as two tensors."""

    name: Final = "float-quantized"
    format: Final = "float-quantized"
    coding: Final = FP8
    scales: Final = SCALE

    def holds(self, weight_type: WeightType) -> bool:
        return is_fp8_type(weight_type)

    def parts(self, shape: MatrixShape[Fp8Type]) -> tuple[Part, ...]:
        """Name the tensors of a matrix. Raises LayoutError if it is empty."""
        n_out, n_in, block = shape.n_out, shape.n_in, shape.type.block
        if n_out < 1 or n_in < 1 or block < 0:
            raise LayoutError(f"a matrix [{n_out}, {n_in}] in blocks of {block}: not possible")
        of_scales = (-(-n_out // block), -(-n_in // block)) if block else (n_out, 1)
        scales = Part(SCALE, "F32", of_scales, rows_each=self.row_multiple(shape.type))
        return (Part(WEIGHT, "F8_E4M3", (n_out, n_in)), scales)

    def row_multiple(self, weight_type: Fp8Type) -> int:
        return weight_type.block or 1

    def pack(self, rows: Fp8Rows, shape: MatrixShape[Fp8Type], row0: int) -> Iterator[Segment]:
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
        return Fp8Rows(*check_parts(self.name, self.parts(shape), parts))

    def arguments(self, weight_type: Fp8Type) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Describe weights by channel or block; inputs are quantized on the fly, as kernels do."""
        floats = {"num_bits": 8, "type": "float"}
        inputs = floats | {"symmetric": True, "dynamic": True}
        block = weight_type.block
        if block:
            blocks = {"strategy": "block", "block_structure": [block, block]}
            return floats | blocks, inputs | {"strategy": "group", "group_size": block}
        return floats | {"strategy": "channel"}, inputs | {"strategy": "token"}


FP8_LAYOUT: Final = Fp8Layout()


def quantize_fp8(rows: NDArray[np.float32], fp8_type: Fp8Type) -> Fp8Rows:
    """Round [rows, in] float32 to e4m3 with scales, to the nearest, ties to even.

    Raises LayoutError if a value is not finite.
    """
    if rows.dtype != np.float32:
        raise LayoutError(
            f"{rows.dtype} {list(rows.shape)} are not float32 rows of {rows.shape[1]}"
        )
    largest = _largest(np.abs(rows), fp8_type)
    if not np.all(np.isfinite(largest)):
        raise LayoutError("NaN or infinity cannot be quantized")
    scales = largest / _LARGEST
    scales[scales == 0] = 1
    spread = _spread(scales, fp8_type, rows.shape)
    # Next to a subnormal scale a quotient may exceed the range, which would become a NaN.
    quotients = np.clip(rows / spread, -_LARGEST, _LARGEST)
    return Fp8Rows(quotients.astype(ml_dtypes.float8_e4m3fn), scales)


def dequantize_fp8(rows: Fp8Rows, fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Compute weight * scale, float32 [rows, in]."""
    spread = _spread(rows.scales, fp8_type, rows.weights.shape)
    return rows.weights.astype(np.float32) * spread


def _largest(magnitudes: NDArray[np.float32], fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Give the largest magnitude under each scale; the last blocks may be smaller."""
    block = fp8_type.block
    if not block:
        rows: NDArray[np.float32] = magnitudes.max(axis=1, keepdims=True)
        return rows
    columns: NDArray[np.float32] = np.maximum.reduceat(
        magnitudes, range(0, magnitudes.shape[1], block), axis=1
    )
    blocks: NDArray[np.float32] = np.maximum.reduceat(
        columns, range(0, len(magnitudes), block), axis=0
    )
    return blocks


def _spread(
    scales: NDArray[np.float32], fp8_type: Fp8Type, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Repeat scales over the weights they belong to, or leave a column that broadcasts."""
    block = fp8_type.block
    if not block:
        return scales
    return scales.repeat(block, axis=0)[: shape[0]].repeat(block, axis=1)[:, : shape[1]]


def fp8_shape(module: ModuleTensors, config: Mapping[str, Any]) -> MatrixShape[Fp8Type]:
    """Tell the type of a matrix by its scales and the config. Raises LayoutError."""
    weight = module.matrix(WEIGHT)
    if weight.dtype != "F8_E4M3":
        raise LayoutError(f"weights of {weight.dtype} with scales are not read")
    n_out, n_in = weight.shape
    by_row = module.matrix(SCALE).shape == (n_out, 1)
    return MatrixShape(Fp8Type() if by_row else _block_type(config), n_out, n_in)


def _block_type(config: Mapping[str, Any]) -> Fp8Type:
    """Tell the block from the config, which is the only place that has it."""
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
    return Fp8Type(block)


def _square(text: str) -> int:
    """Take N from "[N, N]"; 0 if it is anything else."""
    rows, _, columns = text.strip("[]").partition(", ")
    return int(rows) if rows == columns and rows.isdecimal() and len(rows) < 6 else 0
