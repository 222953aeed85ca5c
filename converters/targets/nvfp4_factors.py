"""Factors for NVFP4 of other weights: one beside the blocks of a matrix keeps small ones precise.

Scales of NVFP4 blocks are 8-bit floats: below 2^-6 they lose digits, below 2^-10 all. A factor
beside the blocks brings the largest weight of a matrix near 6 * 240; blocks whose weights are up to
7,000 times smaller then have scales as precise as any. (Scales go up to 448, but from 248 on ggml's
rule takes 448 for all, which cost matrices up to 0.3 dB.) It is a power of two, by which dividing
is exact. As SQNR of normally distributed weights of an RMS:

    RMS             0.05     0.02     0.01    0.005    0.003    0.001
    without      20.4 dB  19.7 dB  18.0 dB  17.4 dB   4.7 dB     0 dB
    with         20.4 dB  20.4 dB  20.4 dB  20.4 dB  20.4 dB  20.4 dB

With a search for the least error, factors between these gain 0.01 dB at most (eight an octave,
matrices of a transformer and Gaussians, the best scale of every block), and are not tried.
"""

from __future__ import annotations

from math import frexp, isfinite
from typing import Final

import numpy as np

from weightcast.converters.graph import Tensor
from weightcast.converters.graph.values import chunks

_LARGEST: Final = 6.0 * 240
# Factors and their inverses are normal float32.
_MOST: Final = 120


def largest_magnitudes(tensor: Tensor) -> tuple[float, ...]:
    """Find the largest magnitude of a matrix, or of each expert's, by reading it in chunks.

    Those of chunks with NaN do not count, which is refused when it is converted. Raises
    CheckpointError.
    """
    largest = np.zeros(tensor.shape[0] if len(tensor.shape) == 3 else 1, np.float32)
    for index, values in chunks(tensor):
        place = index[0] if len(tensor.shape) == 3 else 0
        largest[place] = max(largest[place], values.max(), -values.min())
    return tuple(largest.tolist())


def factor_for(largest: float) -> float:
    """Give the least power of two by which the largest weight divides to 6 * 240 or less."""
    if not (isfinite(largest) and largest > 0):
        return 1.0  # what is not finite is refused when it is converted
    mantissa, exponent = frexp(largest / _LARGEST)
    power = exponent - (mantissa == 0.5)
    return 2.0 ** max(-_MOST, min(power, _MOST))
