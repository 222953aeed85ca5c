"""FP8 (e4m3): floats of 8 bits, x = weight * scale; the arithmetic, by numpy.

A scale is the largest magnitude that it covers / 448, so nothing saturates. In MXFP8 it is a power
of two for runs of 32 weights of a row. A search for the least error tries scales up to twice as
large: the largest weights have the largest errors, and some scale puts them near numbers of e4m3.
Sources: the numbers of e4m3: https://arxiv.org/abs/2209.05433; those of MX:
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import Fp8Type

_LARGEST: Final = np.float32(448)
MXFP8: Final = Fp8Type(1, 32)
# By effort, the steps from a scale to its double, which is as good. Rows of a transformer's weights
# gain 0.39, 0.49 and 0.70 dB, blocks of 128 x 128 a fifth of that.
_STEPS: Final = {1: 4, 2: 8, 3: 32}
# Errors that differ by less than this are the same: sums are in another order on another processor.
_SAME: Final = 1e-9
_TILE: Final = 1 << 17  # weights whose errors are measured at once


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows of one matrix in floats of 8 bits."""

    weights: NDArray[Any]  # [rows, in], float8_e4m3fn
    scales: NDArray[np.float32]  # [ceil(rows / type.rows), ceil(in / type.columns)]


def quantize_fp8(
    rows: NDArray[np.float32],
    fp8_type: Fp8Type,
    importance: NDArray[np.float32] | None = None,
    search: Search = GGML,
) -> Fp8Rows:
    """Round [rows, in] float32 to e4m3 with scales, to the nearest, ties to even.

    A search for the least error weighs squares by `importance`, float32 [in], and leaves MXFP8 as
    it is. Raises LayoutError if a value is not finite.
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
    if search.is_least_error and fp8_type != MXFP8:
        for of_rows, of_scales, columns in _tiles(rows.shape, fp8_type):
            factors = None if importance is None else importance[columns].astype(np.float64)
            tile = np.ascontiguousarray(rows[of_rows, columns])
            scales[of_scales] = _least_error(tile, scales[of_scales], fp8_type, factors, search)
    return Fp8Rows(_rounded(rows, scales, fp8_type), scales)


def _rounded(
    rows: NDArray[np.float32], scales: NDArray[np.float32], fp8_type: Fp8Type
) -> NDArray[Any]:
    """Round rows over their scales to e4m3."""
    quotients = rows / spread_scales(scales, fp8_type, rows.shape)
    # Next to a subnormal scale a quotient may exceed the range, which would become a NaN.
    np.clip(quotients, -_LARGEST, _LARGEST, out=quotients)
    return quotients.astype(ml_dtypes.float8_e4m3fn)


def _tiles(
    shape: tuple[int, int], fp8_type: Fp8Type
) -> Iterator[tuple[slice, tuple[slice, slice], slice]]:
    """Cut a matrix into tiles of whole scales: rows, the scales of the tile, columns."""
    n_out, n_in = shape
    high, wide = fp8_type.rows or n_out, fp8_type.columns or n_in
    n_wide = max(1, _TILE // (high * wide))  # scales side by side in a tile
    step_in = min(n_wide * wide, n_in)
    n_high = max(1, _TILE // (high * step_in))
    for high0 in range(0, -(-n_out // high), n_high):
        for wide0 in range(0, -(-n_in // wide), n_wide):
            scales = slice(high0, high0 + n_high), slice(wide0, wide0 + n_wide)
            rows = slice(high0 * high, (high0 + n_high) * high)
            yield rows, scales, slice(wide0 * wide, (wide0 + n_wide) * wide)


def _least_error(
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    fp8_type: Fp8Type,
    importance: NDArray[np.float64] | None,
    search: Search,
) -> NDArray[np.float32]:
    """Choose for each scale the multiple, up to the double, of least error: itself of equals."""
    best, least = scales, _errors(rows, scales, fp8_type, importance)
    steps = _STEPS[search.effort]
    for step in range(1, steps):
        candidates = scales * np.float32(1 + step / steps)
        errors = _errors(rows, candidates, fp8_type, importance)
        is_less = errors < least * (1 - _SAME)
        best = np.where(is_less, candidates, best)
        least = np.where(is_less, errors, least)
    return best


def _errors(
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    fp8_type: Fp8Type,
    importance: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Sum importance * (y - x)^2 under each scale."""
    made = Fp8Rows(_rounded(rows, scales, fp8_type), scales)
    squares = np.subtract(dequantize_fp8(made, fp8_type), rows, dtype=np.float64)
    squares *= squares
    if importance is not None:
        squares *= importance
    found: NDArray[np.float64] = _over_scales(np.add, squares, fp8_type)
    return found


def dequantize_fp8(rows: Fp8Rows, fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Compute weight * scale, float32 [rows, in]."""
    spread = spread_scales(rows.scales, fp8_type, rows.weights.shape)
    return rows.weights.astype(np.float32) * spread


def largest_magnitudes(magnitudes: NDArray[np.float32], fp8_type: Fp8Type) -> NDArray[np.float32]:
    """Give the largest magnitude under each scale; the last blocks may be smaller."""
    found: NDArray[np.float32] = _over_scales(np.maximum, magnitudes, fp8_type)
    return found


def _over_scales(function: np.ufunc, values: NDArray[Any], fp8_type: Fp8Type) -> NDArray[Any]:
    """Reduce the values under each scale to one."""
    starts = range(0, values.shape[1], fp8_type.columns or values.shape[1])
    found: NDArray[Any] = function.reduceat(values, starts, axis=1)
    if fp8_type.rows != 1:
        starts = range(0, len(values), fp8_type.rows or len(values))
        found = function.reduceat(found, starts, axis=0)
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
