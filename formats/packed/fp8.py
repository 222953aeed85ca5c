"""FP8 (e4m3) as compressed-tensors stores it ("float-quantized"), by channel or by square block.

    .weight        float8_e4m3fn [out, in]
    .weight_scale  float32 [out, 1], or [ceil(out / block), ceil(in / block)]

x = weight * scale; a scale is the largest magnitude that it covers / 448, so nothing saturates.
Source: compressed_tensors/compressors/naive_quantized of
https://pypi.org/project/compressed-tensors/0.20.0; the numbers of e4m3: https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.layout import Fp8Type, Part, Segment, check_parts, rows_of

WEIGHT: Final = ".weight"
SCALE: Final = ".weight_scale"
_NAME: Final = "float-quantized"
_LARGEST: Final = np.float32(448)


def parts(fp8_type: Fp8Type, n_out: int, n_in: int) -> tuple[Part, ...]:
    """Name the tensors of a matrix. Raises LayoutError if it is empty."""
    if n_out < 1 or n_in < 1 or fp8_type.block < 0:
        raise LayoutError(f"a matrix [{n_out}, {n_in}] in blocks of {fp8_type.block}: not possible")
    shape = _scales_shape(fp8_type, n_out, n_in)
    scales = Part(SCALE, "F32", shape, rows_each=row_multiple(fp8_type))
    return (Part(WEIGHT, "F8_E4M3", (n_out, n_in)), scales)


def row_multiple(fp8_type: Fp8Type) -> int:
    """Rows that share scales: pieces start at multiples, and only the last ends elsewhere."""
    return fp8_type.block or 1


def pack(
    rows: NDArray[np.float32], fp8_type: Fp8Type, n_out: int, n_in: int, row0: int
) -> Iterator[Segment]:
    """Quantize float32 rows [row0, ...) of a matrix. Raises LayoutError if one is not finite."""
    end, multiple = row0 + len(rows), row_multiple(fp8_type)
    if rows.dtype != np.float32 or rows.shape != (len(rows), n_in):
        raise LayoutError(f"{rows.dtype} {list(rows.shape)} are not float32 rows of {n_in}")
    if row0 < 0 or end > n_out or row0 % multiple or (end % multiple and end != n_out):
        raise LayoutError(f"rows {row0} to {end} of {n_out}: {multiple} are packed at a time")
    weights, scales = quantize_fp8(rows, fp8_type)
    yield rows_of(WEIGHT, weights, row0)
    yield rows_of(SCALE, scales, row0 // multiple)


def quantize_fp8(
    rows: NDArray[np.float32], fp8_type: Fp8Type
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Round [rows, in] float32 to e4m3 with scales, to the nearest, ties to even."""
    largest = _largest(np.abs(rows), fp8_type)
    if not np.all(np.isfinite(largest)):
        raise LayoutError("NaN or infinity cannot be quantized")
    scales = largest / _LARGEST
    scales[scales == 0] = 1
    spread = _spread(scales, fp8_type, rows.shape)
    # Next to a subnormal scale a quotient may exceed the range, which would become a NaN.
    quotients = np.clip(rows / spread, -_LARGEST, _LARGEST)
    return quotients.astype(ml_dtypes.float8_e4m3fn), scales


def unpack(
    found: Mapping[str, NDArray[Any]], fp8_type: Fp8Type, n_out: int, n_in: int
) -> NDArray[np.float32]:
    """Read a whole matrix as float32 [out, in], weight * scale."""
    weights, scales = check_parts(_NAME, parts(fp8_type, n_out, n_in), found)
    return weights.astype(np.float32) * _spread(scales, fp8_type, (n_out, n_in))


def _scales_shape(fp8_type: Fp8Type, n_out: int, n_in: int) -> tuple[int, int]:
    block = fp8_type.block
    return (-(-n_out // block), -(-n_in // block)) if block else (n_out, 1)


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
