"""Source matrices for the tests: families of values, layouts in memory, and the expected floats."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.quant.library import BlockCounts, Matrix, ScaleOverflowError, quantize_matrix
from weightcast.quant.types import QuantType

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BFLOAT16}
NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    BFLOAT16: "BF16",
    np.dtype(np.int8): "I8",
}
LAYOUTS = ("out_in", "in_out", "steps")


def place(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """Copy [n_out, n_in] to a layout; what lies between the steps are ones (NaN-free, non-zero)."""
    if layout == "out_in":  # GGUF, safetensors
        return np.ascontiguousarray(x)
    if layout == "in_out":  # JAX
        return np.asfortranarray(x)
    wide = np.ones((3 * x.shape[0], 2 * x.shape[1]), x.dtype)
    wide[1::3, ::2] = x
    return wide[1::3, ::2]


def matrix(x: NDArray[Any], scales: NDArray[np.float32] | None = None) -> Matrix:
    """Describe [n_out, n_in] at positive strides, and float32 scales [groups, n_out] for int8."""
    n_out, n_in = x.shape
    stride_out, stride_in = (stride // x.itemsize for stride in x.strides)
    span = 1 + (n_out - 1) * stride_out + (n_in - 1) * stride_in if x.size else 0
    flat = np.lib.stride_tricks.as_strided(x, (span,), (x.itemsize,))
    return Matrix(flat, NAMES[x.dtype], n_out, n_in, stride_out, stride_in, scales=scales)


def quantized(
    x: NDArray[Any], quant_type: QuantType, scales: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.uint8], BlockCounts]:
    """Quantize [n_out, n_in] to uint8 [n_out, row bytes]; rows start as a pattern, not as zeros."""
    rows = np.full((x.shape[0], quant_type.row_bytes(x.shape[1])), 0xA5, np.uint8)
    try:
        counts = quantize_matrix(matrix(x, scales), quant_type, rows)
    except ScaleOverflowError as overflow:
        counts = overflow.counts  # the blocks are complete and ggml's all the same
    return rows, counts


def products(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply codes [n_out, n_in] by scales [groups, n_out], each product rounded once."""
    group_rows = codes.shape[1] // scales.shape[0]
    return codes.astype(np.float32) * np.repeat(scales, group_rows, axis=0).T


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


FAMILIES = {
    "gaussian": gaussian,
    "grok_like": grok_like,
    "zeros": lambda rng, shape: np.zeros(shape, np.float32),
    "minus_zeros": lambda rng, shape: np.full(shape, -0.0, np.float32),
    "constant": lambda rng, shape: np.full(shape, -0.37, np.float32),
    "one_sign": lambda rng, shape: -np.abs(gaussian(rng, shape)),
    "one_outlier": one_outlier,
    "sparse": sparse,
    "equal_maxima": equal_maxima,
    "ties": ties,
    "near_ties": near_ties,
    "subnormals": subnormals,
    "1e30": lambda rng, shape: gaussian(rng, shape) * np.float32(1e30),
    "d_overflows_float16": lambda rng, shape: scaled(rng, shape, 5, 9),
    "d_underflows_float16": lambda rng, shape: scaled(rng, shape, -9, -3),
    "inverse_overflows": lambda rng, shape: scaled(rng, shape, -40, -35),
    "random_finite": random_finite,
}
