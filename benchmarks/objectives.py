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
    return _by_magnitude(x, name, 0.25)


def large_one(x: NDArray[Any], name: str, importance: None) -> NDArray[np.uint8]:
    """Weigh each weight by 1 + x^2."""
    return _by_magnitude(x, name, 1.0)


def large_four(x: NDArray[Any], name: str, importance: None) -> NDArray[np.uint8]:
    """Weigh each weight by 1 + 4 x^2."""
    return _by_magnitude(x, name, 4.0)


def _by_magnitude(x: NDArray[Any], name: str, share: float) -> NDArray[np.uint8]:
    squares = np.square(x, dtype=np.float32)
    means = np.maximum(squares.mean(axis=-1, keepdims=True), np.float32(1e-30))
    weights = 1 + np.float32(share) * squares / means
    rows = [_made(row[None], name, w) for row, w in zip(x, weights, strict=True)]
    return np.concatenate(rows)


def _raised(importance: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    return importance + np.float32(share) * importance.mean(axis=-1, keepdims=True)


def _made(x: NDArray[Any], name: str, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    return weightcast.quantize(x, name, weights.astype(np.float32), search="least-error")
