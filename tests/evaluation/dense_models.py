"""Tiny dense models of several architectures, which llama.cpp runs as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests import gguf_files
from tests.adapters import float32
from tests.gguf_files import floats, string, u32

WIDTH, HEADS, KV_HEADS, HIDDEN, VOCABULARY = 64, 4, 2, 96, 48
Values = NDArray[np.float32]


def head_size(architecture: str) -> int:
    """Give the width of a head; llama.cpp's Qwen 2 has heads that make up the embedding."""
    return WIDTH // HEADS if architecture == "qwen2" else 24


def write_dense(
    path: Path,
    architecture: str,
    layers: int = 2,
    *,
    tensors: Mapping[str, gguf_files.Part | None] | None = None,
    **more: bytes,
) -> Path:
    """Write a model in F32; `more` are metadata, with __ for a point, over those it has anyway.

    So are `tensors`; None leaves one out.
    """
    head = head_size(architecture)
    sizes = {
        "block_count": u32(layers),
        "context_length": u32(2048),
        "embedding_length": u32(WIDTH),
        "feed_forward_length": u32(HIDDEN),
        "attention.head_count": u32(HEADS),
        "attention.head_count_kv": u32(KV_HEADS),
        "attention.key_length": u32(head),
        "attention.value_length": u32(head),
        "attention.layer_norm_rms_epsilon": float32(1e-5),
        "rope.dimension_count": u32(head),
        "rope.freq_base": float32(10000.0),
        "vocab_size": u32(VOCABULARY),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    metadata = {
        "general.architecture": string(architecture),
        **{f"{architecture}.{key}": value for key, value in sizes.items()},
        "tokenizer.ggml.model": string("no_vocab"),
    }
    own = {name: floats(values) for name, values in dense_tensors(architecture, layers).items()}
    parts = {name: part for name, part in {**own, **(tensors or {})}.items() if part is not None}
    return gguf_files.write(path, metadata, parts)


def dense_tensors(architecture: str, layers: int) -> Mapping[str, Values]:
    """Draw the weights of an architecture."""
    rng = np.random.default_rng(7)

    def matrix(n_out: int, n_in: int) -> Values:
        return (rng.standard_normal((n_out, n_in)) / n_in**0.5).astype(np.float32)

    def vector(n: int) -> Values:
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    head = head_size(architecture)
    q, kv = HEADS * head, KV_HEADS * head
    found = {"token_embd.weight": matrix(VOCABULARY, WIDTH), "output_norm.weight": vector(WIDTH)}
    for layer in range(layers):
        own = {
            "attn_norm.weight": vector(WIDTH),
            "attn_q.weight": 3 * matrix(q, WIDTH),  # so that attention is far from even
            "attn_k.weight": 3 * matrix(kv, WIDTH),
            "attn_v.weight": matrix(kv, WIDTH),
            "attn_output.weight": matrix(WIDTH, q),
            "ffn_norm.weight": vector(WIDTH),
            "ffn_gate.weight": matrix(HIDDEN, WIDTH),
            "ffn_up.weight": matrix(HIDDEN, WIDTH),
            "ffn_down.weight": matrix(WIDTH, HIDDEN),
        }
        if architecture == "qwen2":
            own |= {"attn_q.bias": vector(q), "attn_k.bias": vector(kv), "attn_v.bias": vector(kv)}
        if architecture in ("qwen3", "gemma3"):
            own |= {"attn_q_norm.weight": vector(head), "attn_k_norm.weight": vector(head)}
        if architecture == "gemma3":
            own |= {
                "post_attention_norm.weight": vector(WIDTH),
                "post_ffw_norm.weight": vector(WIDTH),
            }
        found |= {f"blk.{layer}.{name}": values for name, values in own.items()}
    if architecture == "llama":
        found["output.weight"] = matrix(VOCABULARY, WIDTH)
    return found
