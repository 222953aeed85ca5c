"""Compare what models predict: divergence, perplexity, and how sure their means are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
# What rounding in float32 makes of a divergence of 0; ratios of less than that mean nothing.
_FLOOR = 1e-7
_BLOCK = 1 << 18  # values


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over tokens or texts, and its standard error, taking these as independent."""

    value: float
    error: float

    @property
    def z(self) -> float:
        """Distance from 0 in standard errors; 0 for equal samples."""
        return self.value / self.error if self.error > 0 else 0.0


def mean_of(samples: F64) -> Mean:
    """Average samples [n]; the error is infinite for fewer than two."""
    n = len(samples)
    error = float(samples.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    return Mean(float(samples.mean()), error)


def log_ratio(samples: F64, others: F64) -> Mean:
    """Average log(sample / other) over pairs of positive samples [n].

    Means are of few large samples, such as tokens that another expert gets; this is of all.
    """
    ratios = np.maximum(samples, _FLOOR) / np.maximum(others, _FLOOR)
    return mean_of(np.log(ratios))


def perplexity(losses: F64) -> Mean:
    """Give exp of the mean of negative log-probabilities [tokens], with its error."""
    loss = mean_of(losses)
    value = float(np.exp(loss.value))
    return Mean(value, value * loss.error)


def log_softmax(logits: F32) -> F32:
    """Give log-probabilities of rows of logits [n, vocab]; sums are in float64."""
    found = np.empty_like(logits)
    for rows in _blocks(logits):
        shifted = logits[rows] - logits[rows].max(axis=-1, keepdims=True)
        total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
        found[rows] = shifted - np.log(total)
    return found


def divergences(reference: F32, other: F32) -> F64:
    """Give the Kullback-Leibler divergence [n], sum p (log p - log q), of log-probabilities.

    Rows [n, vocab] are as `log_softmax` gives them; p is the reference.
    """
    found = np.empty(len(other))
    for rows in _blocks(other):
        p = np.asarray(reference[rows])
        found[rows] = (np.exp(p) * (p - other[rows])).sum(axis=-1, dtype=np.float64)
    return found


def _blocks(array: F32) -> Iterator[slice]:
    """Cut rows [n, vocab] to blocks that stay in the cache: a vocabulary can be 262,144 wide."""
    n = max(1, _BLOCK // array.shape[-1])
    for start in range(0, len(array), n):
        yield slice(start, start + n)


def losses(log_probabilities: F32, tokens: NDArray[np.int64]) -> F64:
    """Give the negative log-probability [n] of tokens [n] by rows [n, vocab]."""
    picked = np.take_along_axis(log_probabilities, tokens[:, None], axis=-1)[:, 0]
    return -picked.astype(np.float64)


def cosine_distances(a: F32, b: F32) -> F64:
    """Give 1 - cosine [n] of rows [n, width]; exact also where they hardly differ."""
    a64, b64 = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a.astype(float), b.astype(float))
    )
    result: F64 = np.square(a64 - b64).sum(axis=-1) / 2
    return result
