"""FP8 (e4m3): floats of 8 bits, x = weight * scale; the arithmetic, by numpy.

A scale is the largest magnitude that it covers / 448, so nothing saturates. In MXFP8 it is a power
of two for runs of 32 weights of a row.
Sources: the numbers of e4m3: https://arxiv.org/abs/2209.05433; those of MX:
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.types import Fp8Type

_LARGEST: Final = np.float32(448)
MXFP8: Final = Fp8Type(1, 32)


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows of one matrix in floats of 8 bits."""

    weights: NDArray[Any]  # [rows, in], float8_e4m3fn
    scales: NDArray[np.float32]  # [ceil(rows / type.rows), ceil(in / type.columns)]


def quantize_fp8(rows: NDArray[np.float32], fp8_type: Fp8Type) -> Fp8Rows:
    """Round [rows, in] float32 to e4m3 with scales, to the nearest, ties to even.

    Raises LayoutError if a value is not finite.
    """
    if rows.dtype != np.float32:
        raise LayoutError(
            f"{rows.dtype} {list(rows.shape)} are not float32 rows of {rows.shape[1]}"
        )
    largest = largest_magnitudes(np.abs(rows), fp8_type)
    if not np.all(np.isfinite(largest)):
        raise LayoutError("NaN or infinity cannot be quantized")
    if fp8_type == MXFP8:
        # The largest keeps the exponent of 448; what is above that is cut.
        exponents = np.floor(np.log2(largest, where=largest > 0, out=np.zeros_like(largest))) - 8
        scales = np.exp2(np.clip(exponents, -127, 127)).astype(np.float32)
    else:
        scales = largest / _LARGEST
    scales[scales == 0] = 1
    spread = spread_scales(scales, fp8_type, rows.shape)
    # Next to a subnormal scale a quotient may exceed the range, which would become a NaN.
    quotients = np.clip(rows / spread, -_LARGEST, _LARGEST)
    return Fp8Rows(quotients.astype(ml_dtypes.float8_e4m3fn), scales)


def dequantize_fp8(rows: Fp8Rows, fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Compute weight * scale, float32 [rows, in]."""
    spread = spread_scales(rows.scales, fp8_type, rows.weights.shape)
    return rows.weights.astype(np.float32) * spread


def largest_magnitudes(magnitudes: NDArray[np.float32], fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Give the largest magnitude under each scale; the last blocks may be smaller."""
    starts = range(0, magnitudes.shape[1], fp8_type.columns or magnitudes.shape[1])
    found: NDArray[np.float32] = np.maximum.reduceat(magnitudes, starts, axis=1)
    if fp8_type.rows != 1:
        starts = range(0, len(magnitudes), fp8_type.rows or len(magnitudes))
        found = np.maximum.reduceat(found, starts, axis=0)
    return found


def spread_scales(
    scales: NDArray[np.float32], fp8_type: Fp8Type, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Repeat scales over the weights they belong to, or leave a column that broadcasts."""
    return along_columns(along_rows(scales, fp8_type, shape[0]), fp8_type, shape[1])


def along_rows(scales: NDArray[np.float32], fp8_type: Fp8Type, n_out: int) -> NDArray[np.float32]:
    """Give the scales of each row, [n_out, n]."""
    if fp8_type.rows == 1:
        return scales
    return scales.repeat(fp8_type.rows or n_out, axis=0)[:n_out]


def along_columns(scales: NDArray[np.float32], fp8_type: Fp8Type, n_in: int) -> NDArray[np.float32]:
    """Repeat scales over the columns, or leave one, which broadcasts."""
    if not fp8_type.columns:
        return scales
    return scales.repeat(fp8_type.columns, axis=1)[:, :n_in]
