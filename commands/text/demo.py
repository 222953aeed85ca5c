"""The demo's table: how far each artifact's logits are from those of the source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-softmax over the last axis, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


class Table:
    """Lines of the table, against log-probabilities that are expected."""

    HEADER = (
        f"{'artifact':<16} {'run by':<10} {'MB':>7} {'seconds':>8} {'difference':>11}  next tokens"
    )

    def __init__(self, expected: NDArray[np.float32]) -> None:
        self._expected = log_probabilities(expected)

    def line(
        self, name: str, runner: str, size: int, seconds: float, logits: NDArray[np.float32]
    ) -> str:
        found = log_probabilities(logits)
        difference = np.abs(found - self._expected).max()
        same = found.argmax(axis=-1) == self._expected.argmax(axis=-1)
        return (
            f"{name:<16} {runner:<10} {size / 1e6:>7.2f} {seconds:>8.2f} {difference:>11.1e}  "
            f"{same.sum()} of {same.size} agree"
        )
