"""Other objectives than the importance itself, for `python -m benchmarks.least_error --searches`.

Names of functions here are searches: `benchmarks.objectives:root`. Each makes blocks for the least
error, weighed by something else. With importance: by something that is more even than that of the
columns, as a remedy for importance that was collected on other text would be. Without: by the
magnitudes of the weights themselves, as ggml does it in some types, row by row, as kernels take one
weight for a column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import weightcast

_SHARE_OF_OUTLIERS = 0.05


def root(x: NDArray[Any], name: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Weigh columns by the root of their importance."""
    return _made(x, name, np.sqrt(importance))


def power(x: NDArray[Any], name: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Weigh columns by the 3/4th power of their importance."""
    return _made(x, name, importance**0.75)


def tenth(x: NDArray[Any], name: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Add a tenth of the mean importance to that of each column."""
    return _made(x, name, _raised(importance, 0.1))


def third(x: NDArray[Any], name: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Add three tenths of the mean importance to that of each column."""
    return _made(x, name, _raised(importance, 0.3))


def mean(x: NDArray[Any], name: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Add the mean importance to that of each column."""
    return _made(x, name, _raised(importance, 1.0))


def large_quarter(x: NDArray[Any], name: str, importance: None) -> NDArray[np.uint8]:
    """Weigh each weight by 1 + x^2 / 4, relative to the mean square of its row."""
    return _each_row(x, name, _by_magnitude(x, 0.25))


def large_one(x: NDArray[Any], name: str, importance: None) -> NDArray[np.uint8]:
    """Weigh each weight by 1 + x^2, relative to the mean square of its row."""
    return _each_row(x, name, _by_magnitude(x, 1.0))


def outliers(x: NDArray[Any], name: str, importance: None) -> NDArray[np.uint8]:
    """Weigh by 1 + x^2 / 20 where rows have weights of 8 times their root mean square or more.

    Nearly all rows stay as they are, and so do nearly all weights of the others.
    """
    weights = _by_magnitude(x, _SHARE_OF_OUTLIERS)
    found = weights.max(axis=-1) >= 1 + _SHARE_OF_OUTLIERS * 8**2
    blocks = weightcast.quantize(x, name, search="least-error")
    if found.any():
        blocks[found] = _each_row(x[found], name, weights[found])
    return blocks


def _by_magnitude(x: NDArray[Any], share: float) -> NDArray[np.float32]:
    squares = np.square(x, dtype=np.float32)
    means = np.maximum(squares.mean(axis=-1, keepdims=True), np.float32(1e-30))
    return 1 + np.float32(share) * squares / means


def _each_row(x: NDArray[Any], name: str, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    rows = [_made(row[None], name, w) for row, w in zip(x, weights, strict=True)]
    return np.concatenate(rows)


def _raised(importance: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    return importance + np.float32(share) * importance.mean(axis=-1, keepdims=True)


def _made(x: NDArray[Any], name: str, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    return weightcast.quantize(x, name, weights.astype(np.float32), search="least-error")
