"""Families of values that quantizers find hard, each a function of a generator and a shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random_finite(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw any finite float32, each bit pattern alike."""
    bits = rng.integers(0, 2**32, shape, np.uint64).astype(np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0x807FFFFF
    return bits.view(np.float32)


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def grok_like(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Int8 codes times a bfloat16 scale per column, 1e-5 to 1e-2."""
    codes = rng.integers(-128, 128, shape).astype(np.float32)
    return codes * (10 ** rng.uniform(-5, -2, (*shape[:-1], 1))).astype(BFLOAT16).astype(np.float32)


def one_outlier(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    x = gaussian(rng, shape)
    x[:, 7] *= 1e4
    return x


def sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.where(rng.random(shape) < 0.02, gaussian(rng, shape), np.float32(0))


def equal_maxima(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    x = rng.uniform(-1, 1, shape).astype(np.float32)
    x[:, 3::32], x[:, 20::32] = 1.5, -1.5
    return x


def ties(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Halves of d, exactly: the maximum 127 makes d = 1, so every k + 0.5 is a tie."""
    x = rng.integers(-254, 255, shape).astype(np.float32) / 2
    x[:, 31::32] = 127
    return x * np.ldexp(np.float32(1), rng.integers(-12, 12, (shape[0], 1))).astype(np.float32)


def near_ties(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    x = ties(rng, shape)
    towards = np.where(rng.random(shape) < 0.5, -np.inf, np.inf).astype(np.float32)
    return np.nextafter(x, towards)


def subnormals(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    fractions = rng.integers(0, 1 << 23, shape, np.uint32)
    fractions >>= rng.integers(0, 24, (shape[0], 1), np.uint32)
    bits = fractions | rng.integers(0, 2, shape, np.uint32) << 31
    return bits.view(np.float32)


def scaled(
    rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int
) -> NDArray[np.float32]:
    """Draw Gaussians times a power of ten from 10^low to 10^high for each row."""
    factors = 10 ** rng.uniform(low, high, (shape[0], 1))
    return (rng.standard_normal(shape) * factors).astype(np.float32)


def per_block(
    rng: np.random.Generator, shape: tuple[int, ...], block: int, low: float, high: float
) -> NDArray[np.float32]:
    """Draw powers of ten from 10^low to 10^high, the same for all values of a block."""
    blocks = 10 ** rng.uniform(low, high, (shape[0], -(-shape[1] // block)))
    return np.repeat(blocks, block, axis=1)[:, : shape[1]].astype(np.float32)


def mixed_blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return gaussian(rng, shape) * per_block(rng, shape, 16, -4, 4)


def zero_blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Half of the 16-value blocks of a row are zero."""
    zero = per_block(rng, shape, 16, -1, 1) < 1
    return np.where(zero, np.float32(0), gaussian(rng, shape))


def mixed_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Int8 codes whose scale, 1e-6 to 1, changes every 48 values: inside blocks of every type."""
    codes = rng.integers(-128, 128, shape).astype(np.float32)
    return codes * per_block(rng, shape, 48, -6, 0).astype(BFLOAT16).astype(np.float32)


def maxima_anywhere(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Up to five of every 32 values are the maximum or minus it, in any order."""
    x = rng.uniform(-1, 1, shape).astype(np.float32)
    extreme = rng.random(shape) < 5 / 32
    return np.where(extreme, rng.choice(np.float32([-1.25, 1.25]), shape), x)


# What the codes of the types stand for, before the scale.
LEVELS = {
    "Q4_0": np.arange(-8, 8),
    "Q4_1, Q4_K": np.arange(16),
    "Q5_0": np.arange(-16, 16),
    "Q5_1, Q5_K": np.arange(32),
    "Q6_K": np.arange(-32, 32),
    "Q2_K": np.arange(4),
    "Q3_K": np.arange(-4, 4),
    "TQ1_0, TQ2_0": np.arange(-1, 2),
    "Q2_0": np.arange(-1, 3),
    "IQ2": np.array([-5, -3, -1, 1, 3, 5]),
    "IQ3": np.arange(-15, 16, 2),
    "MXFP4, NVFP4": np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]),
    "IQ4": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
}


def ties_of_levels(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values halfway between two levels of a type, or on one, times a power of two for each row.

    The first and last level are in every 16 values, so that they set the scale.
    """
    x = np.empty(shape, np.float32)
    tables = list(LEVELS.values())
    for row in range(shape[0]):
        levels = tables[row % len(tables)].astype(np.float32)
        middle = (levels[:-1] + levels[1:]) / 2
        x[row] = rng.choice(np.concatenate([middle, middle, levels]), shape[1])
        x[row, 5::16], x[row, 11::16] = levels[0], levels[-1]
    return x * np.ldexp(np.float32(1), rng.integers(-12, 12, (shape[0], 1))).astype(np.float32)


def near(rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take each value, or the float below it, or the one above."""
    neighbours = [np.nextafter(x, np.float32(-np.inf)), x, np.nextafter(x, np.float32(np.inf))]
    return np.choose(rng.integers(0, 3, x.shape), neighbours)


def powers_of_two(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Powers of two and their neighbours, each maximum at a row's own power."""
    powers = np.ldexp(np.float32(1), rng.integers(-8, 1, shape)).astype(np.float32)
    x = near(rng, powers) * rng.choice(np.float32([-1, 1]), shape)
    return x * np.ldexp(np.float32(1), rng.integers(-100, 100, (shape[0], 1))).astype(np.float32)


def near_epsilon(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Maxima around the thresholds below which ggml calls a block zero (GROUP_MAX_EPS and kin).

    Each 256 values have the next of them, or the float below it, or the one above.
    """
    thresholds = np.float32([1e-15, 1e-12, 1e-8, 1e-7])
    low, high = (np.nextafter(thresholds, np.float32(end)) for end in (0, 1))
    peaks = np.concatenate([thresholds, low, high])
    places = np.arange(shape[0])[:, None] * -(-shape[1] // 256) + np.arange(shape[1]) // 256
    x = rng.uniform(-1, 1, shape).astype(np.float32)
    x[:, 9::16] = rng.choice(np.float32([-1, 1]), x[:, 9::16].shape)
    return x * peaks[places % peaks.size]


def close_to_minus_one(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values that differ in their last bits only, so that the sums of fits cancel."""
    steps = rng.random(shape) * 10 ** rng.uniform(1, 5, (shape[0], 1))
    return (-1 - np.floor(steps) * 2.0**-23).astype(np.float32)


FAMILIES = {
    "gaussian": gaussian,
    "grok_like": grok_like,
    "zeros": lambda rng, shape: np.zeros(shape, np.float32),
    "minus_zeros": lambda rng, shape: np.full(shape, -0.0, np.float32),
    "constant": lambda rng, shape: np.full(shape, -0.37, np.float32),
    "all_negative": lambda rng, shape: -np.abs(gaussian(rng, shape)),
    "all_positive": lambda rng, shape: np.abs(gaussian(rng, shape)),
    "far_from_zero": lambda rng, shape: 1000 + np.float32(1e-3) * gaussian(rng, shape),
    "close_to_minus_one": close_to_minus_one,
    "two_values": lambda rng, shape: rng.choice(np.float32([-0.7, 0.7]), shape),
    "one_outlier": one_outlier,
    "sparse": sparse,
    "zero_blocks": zero_blocks,
    "mixed_blocks": mixed_blocks,
    "mixed_scales": mixed_scales,
    "equal_maxima": equal_maxima,
    "maxima_anywhere": maxima_anywhere,
    "ties": ties,
    "near_ties": near_ties,
    "ties_of_levels": ties_of_levels,
    "powers_of_two": powers_of_two,
    "near_epsilon": near_epsilon,
    "subnormals": subnormals,
    "1e30": lambda rng, shape: gaussian(rng, shape) * np.float32(1e30),
    "d_overflows_float16": lambda rng, shape: scaled(rng, shape, 5, 9),
    "d_underflows_float16": lambda rng, shape: scaled(rng, shape, -9, -3),
    "d_is_subnormal": lambda rng, shape: scaled(rng, shape, -6, -2),
    "inverse_overflows": lambda rng, shape: scaled(rng, shape, -40, -35),
    "random_finite": random_finite,
}


def stack(n_rows: int, n_in: int) -> tuple[NDArray[np.float32], list[str]]:
    """Make rows [families * n_rows, n_in] of every family, and name the family of each."""
    rng = np.random.default_rng(22)
    rows = np.concatenate([make(rng, (n_rows, n_in)) for make in FAMILIES.values()])
    return rows.astype(np.float32), [family for family in FAMILIES for _ in range(n_rows)]
