"""Samples of matrices to be compared: some rows or columns as float32, and how well they fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare import floats, read_rows, rows_float32
from weightcast.converters.engine import slab_buffer
from weightcast.converters.graph import View

_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Fit:
    """The fit of rows to another's times a factor: error relative to the rows, and the factor."""

    error: float
    factor: float


def fit(rows: NDArray[np.float32], source: NDArray[np.float32]) -> Fit:
    """Fit rows by a multiple of other rows of the same shape."""
    x, y = source.astype(np.float64).ravel(), rows.astype(np.float64).ravel()
    squares, size = float(x @ x), float(y @ y)
    if not squares or not size:
        return Fit(np.inf, 0.0)
    factor = float(x @ y) / squares
    return Fit(sqrt(float(np.square(y - factor * x).sum()) / size), factor)


def columns(view: View, first: int, last: int) -> NDArray[np.float32]:
    """Columns [first, last) of a matrix whose elements lie one by one: float32 [out, columns]."""
    start = view.start + first * view.strides[1]
    shape = (view.shape[0], last - first)
    values = unscaled(View(view.array, start, shape, view.strides), 0, shape[0])
    if view.scales is not None:
        scales = rows_float32(view.scales, 0, view.shape[0])
        groups = np.arange(first, last) * scales.shape[1] // view.shape[1]
        values = values * scales[:, groups]
    return values


def unscaled(view: View, row0: int, row1: int) -> NDArray[np.float32]:
    """Read rows as float32 [rows, in], int8 codes without their scales."""
    buffer = memoryview(slab_buffer(view.slab_bytes(row0, row1)))
    slab = read_rows(replace(view, scales=None), row0, row1, buffer)
    if view.dtype == "I8":
        slab = replace(slab, scales=np.ones((1, row1 - row0), np.float32))
    return floats(slab, 0, row1 - row0)


def middle(n_out: int, multiple: int) -> tuple[int, int]:
    """A few rows in the middle of a matrix, from a multiple on."""
    count = -(-_ROWS // multiple) * multiple
    start = max(0, (n_out - count) // 2) // multiple * multiple
    return start, min(start + count, n_out)
