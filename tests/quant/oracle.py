"""Independent arithmetic: ggml's own functions, called inside the xllamacpp wheel.

That build is plain x86-64 without FMA, as llama.cpp's quantizers are in every CMake build.

ggml ends the process, by GGML_ASSERT or GGML_ABORT, where the sums of a grid type (IQ1, IQ2, IQ3)
overflow: a distance that is infinite or NaN finds no grid point (iq2_find_best_neighbour and its
kin), and infinity / infinity is no scale (`GGML_ASSERT(scale >= 0)`). `survivable` says which rows
are far from that, whatever their values are.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.types import FLOAT_TYPES, TYPES, QuantType

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
# dequantize_row_* of every type that has blocks, by type.
DEQUANTIZE_ROW = {
    t.name: f"dequantize_row_{t.name.lower().replace('_k', '_K')}"
    for t in TYPES.values()
    if t not in FLOAT_TYPES
}
# IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ3_S, IQ2_S, IQ1_M
GRID_TYPES = frozenset({16, 17, 18, 19, 21, 22, 29})


@cache
def ggml() -> ctypes.CDLL:
    """Load the wheel's extension module as a plain shared library; its package is not imported."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None, "xllamacpp is a development dependency: pip install -e .[llama-cpp]"
    assert spec.origin is not None
    library = ctypes.CDLL(str(Path(spec.origin).with_name("xllamacpp.abi3.so")))
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_row_size.argtypes = [ctypes.c_int, i64]
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_init.restype = None
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    for name in (
        *DEQUANTIZE_ROW.values(),
        "ggml_fp32_to_fp16_row",
        "ggml_fp16_to_fp32_row",
        "ggml_fp32_to_bf16_row",
        "ggml_bf16_to_fp32_row",
    ):
        function = getattr(library, name)
        function.argtypes = [pointer, pointer, i64]
        function.restype = None
    return library


def row_bytes(type_id: int, n_in: int) -> int:
    """Say how many bytes ggml gives a row of n_in values."""
    return int(ggml().ggml_row_size(type_id, n_in))


def requires_importance(type_id: int) -> bool:
    """Whether ggml makes this type only with an importance matrix."""
    return bool(ggml().ggml_quantize_requires_imatrix(type_id))


def survivable(
    x: NDArray[np.float32], type_id: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.bool_]:
    """Say for each row of [n_out, n_in] whether ggml is sure to come back from quantizing it.

    The grid types sum, over at most 32 values, weight * x * q and sqrt(weight) * (x - d * q)^2
    with q up to 15; the weight is x^2, or importance * sqrt(x^2 + twice the mean of x^2).
    """
    if type_id not in GRID_TYPES:
        return np.ones(len(x), np.bool_)
    peak = np.abs(x).max(axis=1, initial=0).astype(np.float64)
    if importance is None:
        return peak < 1e11
    weight = 2.0 * float(importance.max(initial=0)) * peak
    return (peak < 1e11) & (1e3 * weight * np.maximum(peak, 1) < 1e38)


def quantize(
    x: NDArray[np.float32], type_id: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize [n_out, n_in] to uint8 [n_out, row bytes] with ggml_quantize_chunk.

    `importance` is float32 [n_in]. Refuses what may end the process.
    """
    assert x.dtype == np.float32
    x = np.ascontiguousarray(x)
    n_out, n_in = x.shape
    if importance is not None:
        assert importance.dtype == np.float32
        assert importance.shape == (n_in,)
        importance = np.ascontiguousarray(importance)
    assert importance is not None or not requires_importance(type_id)
    assert survivable(x, type_id, importance).all()
    blocks = np.zeros((n_out, row_bytes(type_id, n_in)), np.uint8)
    ggml().ggml_quantize_init(type_id)
    written = ggml().ggml_quantize_chunk(
        type_id,
        x.ctypes.data,
        blocks.ctypes.data,
        0,
        n_out,
        n_in,
        None if importance is None else importance.ctypes.data,
    )
    assert written == blocks.nbytes
    return blocks


def dequantize(blocks: NDArray[np.uint8], quant_type: QuantType) -> NDArray[np.float32]:
    """Dequantize uint8 [..., row bytes] to float32 [..., n_in] with dequantize_row_*."""
    blocks = np.ascontiguousarray(blocks)
    n_blocks = blocks.shape[-1] // quant_type.block_bytes
    x = np.empty((*blocks.shape[:-1], n_blocks * quant_type.block_elements), np.float32)
    function = getattr(ggml(), DEQUANTIZE_ROW[quant_type.name])
    function(blocks.ctypes.data, x.ctypes.data, x.size)
    return x


def narrow(x: NDArray[np.float32], type_id: int) -> NDArray[np.uint16]:
    """Convert flat float32 to the bits of float16 or bfloat16."""
    function = {F16: "ggml_fp32_to_fp16_row", BF16: "ggml_fp32_to_bf16_row"}[type_id]
    halves = np.empty(x.size, np.uint16)
    getattr(ggml(), function)(x.ctypes.data, halves.ctypes.data, x.size)
    return halves


def widen(halves: NDArray[np.uint16], type_id: int) -> NDArray[np.float32]:
    """Convert the flat bits of float16 or bfloat16 to float32."""
    function = {F16: "ggml_fp16_to_fp32_row", BF16: "ggml_bf16_to_fp32_row"}[type_id]
    x = np.empty(halves.size, np.float32)
    getattr(ggml(), function)(halves.ctypes.data, x.ctypes.data, halves.size)
    return x
