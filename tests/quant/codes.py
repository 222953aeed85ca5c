"""Int8 codes and their float32 scales [groups, n_out], exact in float16 or not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.quant.families import BFLOAT16


def random_codes(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.int8]:
    """Draw any int8, -128 more often than by chance."""
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    codes[rng.random(shape) < 0.05] = -128
    return codes


def grok_scales(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """bfloat16 from 1e-5 to 1e-2: all of them exact in float16."""
    return (10 ** rng.uniform(-5, -2, shape)).astype(BFLOAT16).astype(np.float32)


def any_float16(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Any finite float16: negative ones, both zeros, subnormals, the largest."""
    bits = rng.integers(0, 0x7C00, shape) | rng.integers(0, 2, shape) << 15
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def mixed(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Half of them exact; the others lie between float16 values, below or above all of them."""
    others = (10 ** rng.uniform(-12, 30, shape)).astype(np.float32) * rng.choice([-1, 1], shape)
    return np.where(rng.random(shape) < 0.5, any_float16(rng, shape), others).astype(np.float32)


SCALES = {
    "grok": grok_scales,
    "any_float16": any_float16,
    "mixed": mixed,
    "negative": lambda rng, shape: -grok_scales(rng, shape),
    "zero": lambda rng, shape: np.zeros(shape, np.float32),
    "minus_zero": lambda rng, shape: np.full(shape, -0.0, np.float32),
    "subnormal_float16": lambda rng, shape: (
        np.float32(2**-24) * rng.integers(1, 1024, shape).astype(np.float32)
    ),
    "below_float16": lambda rng, shape: (
        np.float32(2**-25) * rng.uniform(0.01, 1, shape).astype(np.float32)
    ),
    "above_float16": lambda rng, shape: rng.uniform(65520, 1e7, shape).astype(np.float32),
    "subnormal_float32": lambda rng, shape: rng.integers(1, 1 << 23, shape, np.uint32).view(
        np.float32
    ),
    "largest": lambda rng, shape: np.full(shape, np.nextafter(np.float32(2**121), 0), np.float32),
}
