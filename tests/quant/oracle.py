"""Independent arithmetic: ggml's own functions, called inside the xllamacpp wheel.

That build is plain x86-64 without FMA, as llama.cpp's quantizers are in every CMake build.
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


def quantize(x: NDArray[np.float32], type_id: int) -> NDArray[np.uint8]:
    """Quantize [n_out, n_in] to uint8 [n_out, row bytes] with ggml_quantize_chunk."""
    assert x.dtype == np.float32
    x = np.ascontiguousarray(x)
    n_out, n_in = x.shape
    blocks = np.zeros((n_out, row_bytes(type_id, n_in)), np.uint8)
    written = ggml().ggml_quantize_chunk(
        type_id, x.ctypes.data, blocks.ctypes.data, 0, n_out, n_in, None
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
