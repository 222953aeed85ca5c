"""Logits from llama.cpp on the CPU, through the C functions inside the xllamacpp wheel.

The wheel's Python API gives probabilities of generated tokens only, so the library's own functions
are called. Its parameter structs have no stable Python form: they are handled as opaque bytes, of
which a few fields at the start are set. Before that, the library's defaults are compared with those
expected at these places, so another layout is refused instead of misread. Tied to the version in
the `llama-cpp` extra. Source of the layout: llama_context_params and llama_batch in llama.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError

# Fields of llama_context_params, all 32-bit: byte offset and default.
_FIELDS: Final = {
    "n_ctx": (0, 512),
    "n_batch": (4, 2048),
    "n_ubatch": (8, 512),
    "n_seq_max": (12, 1),
    "n_outputs_max": (20, 0),
    "n_outputs_max_per_seq": (24, 1),
    "n_threads": (28, 4),
    "n_threads_batch": (32, 4),
    "flash_attn_type": (52, -1),
    "type_k": (104, 1),
    "type_v": (108, 1),
}
_GGML_F32 = 0
_LOG_LINES = 20


class _Params(ctypes.Structure):
    """A parameter struct by value. Longer than the real ones: what follows them is never read."""

    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "llama_log_set": (None, [_LogCallback, ctypes.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Params]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _Params]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_n_ctx": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_batch_init": (_Batch, [ctypes.c_int32] * 3),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
    "llama_free": (None, [ctypes.c_void_p]),
    "llama_model_free": (None, [ctypes.c_void_p]),
}


def library_path() -> Path | None:
    """Find the wheel's library without importing the wheel; None if it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("xllamacpp.abi3.so")
    return path if path.is_file() else None


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise CheckpointError("llama.cpp is not installed: pip install 'weightcast[llama-cpp]'")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    return library


def logits(path: Path, tokens: Sequence[Sequence[int]], threads: int = 2) -> NDArray[np.float32]:
    """Run a GGUF file over sequences of token ids: float32 [sequences, positions, vocab].

    Float32 key/value cache, no flash attention. Raises CheckpointError with llama.cpp's own words
    if it does not load.
    """
    library = _library()
    lines: list[str] = []

    def log(level: int, text: bytes, data: object) -> None:
        lines.append(text.decode(errors="replace"))

    def failed(what: str) -> CheckpointError:
        said = " ".join("".join(lines[-_LOG_LINES:]).split())
        return CheckpointError(f"{path}: llama.cpp {what}: {said}")

    callback = _LogCallback(log)
    library.llama_log_set(callback, None)
    model = library.llama_model_load_from_file(
        os.fsencode(path), library.llama_model_default_params()
    )
    if not model:
        raise failed("does not load it")
    try:
        results = []
        for sequence in tokens:
            context = library.llama_init_from_model(model, _context_params(len(sequence), threads))
            if not context:
                raise failed("cannot run it")
            try:
                if library.llama_n_ctx(context) != _context_size(len(sequence)):
                    raise failed("has another parameter layout than expected")
                results.append(_decode(library, model, context, sequence))
            finally:
                library.llama_free(context)
        if not any("K (f32)" in line for line in lines):
            raise failed("has another parameter layout than expected")
        return np.stack(results)
    finally:
        library.llama_model_free(model)
        library.llama_log_set(_LogCallback(), None)


def _context_size(n_tokens: int) -> int:
    return max(256, -(-n_tokens // 256) * 256)


def _context_params(n_tokens: int, threads: int) -> _Params:
    params: _Params = _library().llama_context_default_params()
    values = {
        "n_ctx": _context_size(n_tokens),
        "n_batch": max(32, n_tokens),
        "n_ubatch": max(32, n_tokens),
        "n_outputs_max": n_tokens,
        "n_outputs_max_per_seq": n_tokens,
        "n_threads": threads,
        "n_threads_batch": threads,
        "flash_attn_type": 0,
        "type_k": _GGML_F32,
        "type_v": _GGML_F32,
    }
    for name, (offset, default) in _FIELDS.items():
        field = ctypes.c_int32.from_buffer(params, offset)
        if field.value != default:
            raise CheckpointError(
                f"this llama.cpp has another parameter layout ({name} is {field.value}, "
                f"expected {default}): install the version of the llama-cpp extra"
            )
        field.value = values.get(name, default)
    return params


def _decode(
    library: ctypes.CDLL, model: int, context: int, tokens: Sequence[int]
) -> NDArray[np.float32]:
    n_vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    batch = library.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position] = int(token)
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        status = library.llama_decode(context, batch)
        if status:
            raise CheckpointError(f"llama.cpp: decoding failed with status {status}")
        rows = [library.llama_get_logits_ith(context, n) for n in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (n_vocab,)).copy() for row in rows])
    finally:
        library.llama_batch_free(batch)
