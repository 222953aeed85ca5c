"""Moments of errors in plain float64 numpy: the oracle of what the library measures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def in_runs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut rows into runs of 32, [rows, runs, 32]; the last is filled up with zeros."""
    rows, n_in = values.shape
    return np.pad(values, ((0, 0), (0, -n_in % 32))).reshape(rows, -1, 32)


def bin_of(ratio: float) -> int:
    """The bin of a ratio of squares, by the words of the schema."""
    if not ratio < 1:
        return 0
    return min(1 - math.frexp(ratio)[1], 30) if ratio else 30


def histogram(error: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.int64]:
    found = np.zeros((len(x), 32), np.int64)
    errors, weights_of = (in_runs(error) ** 2).sum(-1), (in_runs(x) ** 2).sum(-1)
    for row, run in np.ndindex(errors.shape):
        e, w = errors[row, run], weights_of[row, run]
        found[row, 31 if e == 0 else bin_of(e / w if w else math.inf)] += 1
    return found


def compared(
    x: NDArray[np.float32], y: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Compute the moments of each row in whatever order numpy likes."""
    largest = [np.abs(in_runs(values)).max(axis=-1) for values in (x, y)]
    zeroed = (largest[1] == 0) & (largest[0] > 0)
    clipped = (largest[1] < largest[0] * np.float32(0.875)) & (largest[1] > 0)
    y, x = y.astype(np.float64), x.astype(np.float64)
    error = y - x
    factors = 0 if importance is None else importance.astype(np.float64)
    return {
        "error_squares": (error**2).sum(axis=1),
        "source_squares": (x**2).sum(axis=1),
        "output_squares": (y**2).sum(axis=1),
        "weighted_error_squares": (factors * error**2).sum(axis=1),
        "weighted_source_squares": (factors * x**2).sum(axis=1),
        "cross": (x * error).sum(axis=1),
        "errors": error.sum(axis=1),
        "largest": np.abs(error).max(axis=1),
        "largest_in": np.abs(error).argmax(axis=1),
        "exact": (x == y).sum(axis=1),
        "zeroed_runs": zeroed.sum(axis=1),
        "clipped_runs": clipped.sum(axis=1),
        "histogram": histogram(error, x),
        "size_of_errors": np.abs(error).sum(axis=1),  # what a sum that cancels is exact to
        "size_of_cross": np.abs(x * error).sum(axis=1),
    }
