"""Tokens and logits from llama.cpp on the CPU, by the C functions inside the xllamacpp wheel.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
# Where llama_context_params has the function that sees tensors, and the pointer it is given.
_CB_EVAL: Final = 88
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
# Called with a ggml_tensor before it is computed, with True, to ask whether it is wanted; if so,
# again when its values are there. False then stops the computation.
TensorCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
_TOKENS: Final = ctypes.POINTER(ctypes.c_int32)
_LIMIT_AND_FLAGS: Final = (ctypes.c_int32, ctypes.c_bool, ctypes.c_bool)
_PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "llama_log_set": (None, [_LogCallback, ctypes.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Params]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _Params]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_tokenize": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, _TOKENS, *_LIMIT_AND_FLAGS],
    ),
    "llama_detokenize": (
        ctypes.c_int32,
        [ctypes.c_void_p, _TOKENS, ctypes.c_int32, ctypes.c_char_p, *_LIMIT_AND_FLAGS],
    ),
    "llama_n_ctx": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_batch_init": (_Batch, [ctypes.c_int32] * 3),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
    "llama_adapter_lora_init": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "llama_set_adapters_lora": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_float),
        ],
    ),
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


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF file that llama.cpp has loaded: its tokenizer, and contexts to run it in."""

    path: Path
    threads: int
    _library: ctypes.CDLL
    _model: int
    _log: list[str]
    _adapters: Mapping[int, float] = field(default_factory=dict)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Split a text into token ids with the file's tokenizer.

        With `special`, those are added that the model expects around a text, such as a first one.
        """
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 2))()
        arguments = (raw, len(raw), ids, len(ids), special, False)
        count = self._library.llama_tokenize(self._vocabulary, *arguments)
        if count < 0:
            raise self.failed("does not tokenize")
        return list(ids[:count])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Put token ids together to a text."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        text = ctypes.create_string_buffer(64 * len(tokens) + 64)
        arguments = (ids, len(ids), text, len(text), False, False)
        nbytes = self._library.llama_detokenize(self._vocabulary, *arguments)
        if nbytes < 0:
            raise self.failed("does not detokenize")
        return text.raw[:nbytes].decode(errors="replace")

    @contextmanager
    def context(
        self, size: int, on_tensor: Callable[[int, bool], bool] | None = None
    ) -> Iterator[Callable[[Sequence[int]], NDArray[np.float32]]]:
        """Open a context of `size` tokens: a function that adds some and gives their logits.

        Logits are float32 [positions, vocab]. Float32 key/value cache, no flash attention.
        `on_tensor` gets the address of each ggml_tensor as `TensorCallback` says.
        """
        params = _context_params(size, self.threads)
        if on_tensor is not None:
            # Alive as long as this frame, which outlives the context.
            callback = TensorCallback(lambda tensor, ask, _: on_tensor(tensor, ask))
            _set_callback(params, callback)
        context = self._library.llama_init_from_model(self._model, params)
        if not context:
            raise self.failed("cannot run it")
        added = 0

        def add(tokens: Sequence[int]) -> NDArray[np.float32]:
            nonlocal added
            found = self._decode(context, tokens, added)
            added += len(tokens)
            return found

        try:
            is_float32 = any("K (f32)" in line for line in self._log)
            if not is_float32 or self._library.llama_n_ctx(context) != _context_size(size):
                raise self.failed("has another parameter layout than expected")
            self._adapt(context)
            yield add
        finally:
            self._library.llama_free(context)

    def with_adapter(self, path: Path, scale: float = 1.0) -> Model:
        """Use an adapter, too, in contexts that are opened from now on."""
        pointer = self._library.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not pointer:
            raise self.failed(f"does not load {path}")
        return replace(self, _adapters={**self._adapters, pointer: scale})

    def _adapt(self, context: int) -> None:
        count = len(self._adapters)
        pointers, scales = (ctypes.c_void_p * count)(), (ctypes.c_float * count)()
        pointers[:], scales[:] = list(self._adapters), list(self._adapters.values())
        if count and self._library.llama_set_adapters_lora(context, pointers, count, scales):
            raise self.failed("does not use the adapters")

    def failed(self, what: str) -> CheckpointError:
        """Make an error with the last that llama.cpp said."""
        said = " ".join("".join(self._log[-_LOG_LINES:]).split())
        return CheckpointError(f"{self.path}: llama.cpp {what}: {said}")

    @property
    def _vocabulary(self) -> int:
        vocabulary: int = self._library.llama_model_get_vocab(self._model)
        return vocabulary

    def _decode(self, context: int, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        n_vocab = self._library.llama_vocab_n_tokens(self._vocabulary)
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for position, token in enumerate(tokens):
                batch.token[position] = int(token)
                batch.pos[position] = start + position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = 1
            status = self._library.llama_decode(context, batch)
            if status:
                raise CheckpointError(
                    f"{self.path}: llama.cpp cannot run it: decoding failed with status {status}"
                )
            rows = [self._library.llama_get_logits_ith(context, row) for row in range(len(tokens))]
            return np.stack([np.ctypeslib.as_array(row, (n_vocab,)).copy() for row in rows])
        finally:
            self._library.llama_batch_free(batch)


@contextmanager
def loaded(path: Path, threads: int = 2) -> Iterator[Model]:
    """Load a GGUF file. Raises CheckpointError with llama.cpp's own words if that fails."""
    library = _library()
    lines: list[str] = []

    def log(level: int, text: bytes, data: object) -> None:
        lines.append(text.decode(errors="replace"))

    callback = _LogCallback(log)
    library.llama_log_set(callback, None)
    pointer = library.llama_model_load_from_file(
        os.fsencode(path), library.llama_model_default_params()
    )
    model = Model(path, threads, library, pointer, lines)
    try:
        if not pointer:
            raise model.failed("does not load it")
        yield model
    finally:
        if pointer:
            library.llama_model_free(pointer)
        library.llama_log_set(_LogCallback(), None)


def logits(
    path: Path,
    tokens: Sequence[Sequence[int]],
    threads: int = 2,
    adapters: Mapping[Path, float] | None = None,
) -> NDArray[np.float32]:
    """Run a GGUF file over sequences of token ids: float32 [sequences, positions, vocab].

    `adapters` are GGUF files, and what each counts.

    Raises CheckpointError with llama.cpp's own words if it does not load.
    """
    results = []
    with loaded(path, threads) as model:
        for adapter, scale in (adapters or {}).items():
            model = model.with_adapter(adapter, scale)
        for sequence in tokens:
            with model.context(len(sequence)) as add:
                results.append(add(sequence))
    return np.stack(results)


def _set_callback(params: _Params, callback: Any) -> None:
    field = ctypes.c_void_p.from_buffer(params, _CB_EVAL)
    if field.value is not None:
        raise CheckpointError(
            "this llama.cpp has another parameter layout (cb_eval is set): install the version of "
            "the llama-cpp extra"
        )
    field.value = ctypes.cast(callback, ctypes.c_void_p).value


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
