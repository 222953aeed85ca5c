"""Half-quadratic quantization in numpy, from its description, to compare with.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023), with
the parameters of its published code: p = 0.7, beta = 10 growing by 1 % a step, at most 20 steps,
which end for all groups together once the mean error grows. Scales stay those of the extremes; zero
points are real numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NORM, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20


def shrunk(x: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
    """The proximal operator of the p-norm, generalized soft thresholding."""
    size = np.abs(x)
    with np.errstate(divide="ignore"):
        return np.sign(x) * np.maximum(size - size ** (NORM - 1) / beta, 0)


def half_quadratic(
    x: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find scales and real zero points [n, 1] of groups [n, size]: x = (q - zero point) * scale."""
    levels = np.float32(2**bits - 1)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (high - low) / levels
    zero = np.where(scale > 0, -low / np.where(scale > 0, scale, 1), 0).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    beta, least = BETA, np.inf
    for _ in range(STEPS):
        q = np.clip(np.rint(x / scale + zero), 0, levels)
        residual = x - (q - zero) * scale
        zero = (q - (x - shrunk(residual, beta)) / scale).mean(1, keepdims=True)
        error = float(np.abs(residual).mean())
        if error >= least:
            break
        least = error
    return scale, zero
