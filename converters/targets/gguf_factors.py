"""Find factors for what becomes NVFP4 in GGUF, so that small weights keep their precision.

Scales of NVFP4 blocks are 8-bit floats: below 2^-6 they lose digits, below 2^-10 all. A factor
beside the blocks brings the largest weight of a matrix near 6 * 448, the largest that they hold;
blocks whose weights are up to 14,000 times smaller then have scales as precise as any. It is a
power of two, by which dividing is exact. As SQNR of normally distributed weights of an RMS:

    RMS             0.05     0.02     0.01    0.005    0.003    0.001
    without      20.4 dB  19.7 dB  18.0 dB  17.4 dB   4.7 dB     0 dB
    with         20.4 dB  20.4 dB  20.4 dB  20.4 dB  20.4 dB  20.1 dB

llama.cpp's tools write factors only of models that were trained in NVFP4, and llama-quantize none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import frexp, isfinite
from typing import Final

import numpy as np

from weightcast.converters.graph import Tensor, TensorGraph
from weightcast.converters.graph.values import chunks
from weightcast.converters.recipes import Decision
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.factors import factor_name, is_multiplied
from weightcast.quant.types import NVFP4

_LARGEST: Final = 6.0 * 448
# Factors and their inverses are normal float32.
_MOST: Final = 120


def find_factors(
    graph: TensorGraph, chosen: Mapping[str, Decision]
) -> dict[str, tuple[float, ...]]:
    """Find factors, one or one for each expert, of tensors that llama.cpp will multiply by them.

    Reads these tensors whole, in bounded memory. Raises CheckpointError.
    """
    return {
        name: _factors(graph[name])
        for name, decision in chosen.items()
        if decision.type == NVFP4 and _may_have_one(graph, name)
    }


def _may_have_one(graph: TensorGraph, name: str) -> bool:
    tensor = graph[name]
    # llama.cpp adds biases before it multiplies there, and stops rather than do it.
    has_bias = ".ffn_" in name and factor_name(name, ".bias") in graph
    is_matrix = isinstance(tensor.origin, StoredArray) and len(tensor.shape) > 1
    return (
        is_matrix
        and tensor.dtype != NVFP4.name
        and not has_bias
        and factor_name(name) not in graph
        and is_multiplied(graph.family.architecture, name, NVFP4.name)
    )


def _factors(tensor: Tensor) -> tuple[float, ...]:
    largest = np.zeros(tensor.shape[0] if len(tensor.shape) == 3 else 1, np.float32)
    for index, values in chunks(tensor):
        place = index[0] if len(tensor.shape) == 3 else 0
        largest[place] = max(largest[place], np.abs(values).max())
    return tuple(map(_factor, largest.tolist()))


def _factor(largest: float) -> float:
    """Give the least power of two by which the largest weight divides to 6 * 448 or less."""
    if not (isfinite(largest) and largest > 0):
        return 1.0  # what is not finite is refused when it is converted
    mantissa, exponent = frexp(largest / _LARGEST)
    power = exponent - (mantissa == 0.5)
    return 2.0 ** max(-_MOST, min(power, _MOST))
