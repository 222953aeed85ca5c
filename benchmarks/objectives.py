"""Other objectives than the importance itself, for `python -m benchmarks.least_error --searches`.

Names of functions here are searches: `benchmarks.objectives:root`. Each makes blocks for the least
error, weighed by something that is more even than the importance of the columns, as a remedy for
importance that was collected on other text would be.
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


def _raised(importance: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    return importance + np.float32(share) * importance.mean(axis=-1, keepdims=True)


def _made(x: NDArray[Any], name: str, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    return weightcast.quantize(x, name, weights.astype(np.float32), search="least-error")
