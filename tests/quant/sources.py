"""Source matrices for the tests: layouts in memory, what is made of them, and the expected floats.

The families of values are in families.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.quant.families import BFLOAT16
from weightcast.quant.cpu.library import BlockCounts, Matrix, ScaleOverflowError, quantize_matrix
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

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


def source_of(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Cast float32 to a source's dtype, clipped to its range."""
    limit = np.float32({"F16": 65504, "BF16": 3.3e38, "F32": np.finfo(np.float32).max}[dtype])
    return np.clip(x, -limit, limit).astype(DTYPES[dtype])


def quantized(
    x: NDArray[Any],
    quant_type: QuantType,
    scales: NDArray[np.float32] | None = None,
    importance: NDArray[np.float32] | None = None,
    search: Search = GGML,
) -> tuple[NDArray[np.uint8], BlockCounts]:
    """Quantize [n_out, n_in] to uint8 [n_out, row bytes]; rows start as a pattern, not as zeros."""
    rows = np.full((x.shape[0], quant_type.row_bytes(x.shape[1])), 0xA5, np.uint8)
    try:
        counts = quantize_matrix(matrix(x, scales), quant_type, rows, importance, search)
    except ScaleOverflowError as overflow:
        counts = overflow.counts  # the blocks are complete and ggml's all the same
    return rows, counts


def products(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply codes [n_out, n_in] by scales [groups, n_out], each product rounded once."""
    group_rows = codes.shape[1] // scales.shape[0]
    return codes.astype(np.float32) * np.repeat(scales, group_rows, axis=0).T


def random_rows(seed: int, quant_type: QuantType, n_rows: int, n_blocks: int) -> NDArray[np.uint8]:
    """Draw any bytes for rows of blocks."""
    shape = (n_rows, n_blocks * quant_type.block_bytes)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def assert_same_floats(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Equal bits, or both of them some NaN."""
    assert ours.shape == theirs.shape
    differ = ours.view(np.uint32) != theirs.view(np.uint32)
    assert np.count_nonzero(differ & ~(np.isnan(ours) & np.isnan(theirs))) == 0
