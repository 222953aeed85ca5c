"""Grok-1's hyperparameters as GGUF metadata, both ways.

Source of the keys: conversion/grok.py and src/models/grok.cpp in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from weightcast.converters.families.grok1.spec import (
    GROK_1,
    Grok1Spec,
    Number,
    checked,
    default_key_size,
)
from weightcast.converters.families.grok1.tensors import places
from weightcast.converters.graph.tensor import TensorGraph
from weightcast.formats.gguf.layout import new_writer
from weightcast.formats.tokenizer.sentencepiece import Vocabulary, add_to_gguf

if TYPE_CHECKING:
    from gguf import GGUFWriter


ARCHITECTURE: Final = "grok"
# hyperparameter -> metadata key, and llama.cpp's default where it has one.
_KEYS: Final[dict[str, tuple[str, Number | None]]] = {
    "num_layers": ("grok.block_count", None),
    "context_length": ("grok.context_length", None),
    "emb_size": ("grok.embedding_length", None),
    "num_q_heads": ("grok.attention.head_count", None),
    "num_kv_heads": ("grok.attention.head_count_kv", None),
    "num_experts": ("grok.expert_count", None),
    "num_selected_experts": ("grok.expert_used_count", None),
    "rms_norm_eps": ("grok.attention.layer_norm_rms_epsilon", None),
    "rope_base": ("grok.rope.freq_base", 10000.0),
    "attn_logit_cap": ("grok.attn_logit_softcapping", 30.0),
    "attn_output_multiplier": ("grok.attention.output_scale", 0.08838834764831845),
    "embedding_multiplier_scale": ("grok.embedding_scale", 78.38367176906169),
    "output_multiplier_scale": ("grok.logit_scale", 0.5773502691896257),
}
# Those that shapes tell as well: compared where they are there.
_OPTIONAL_KEYS: Final = {
    "vocab_size": "grok.vocab_size",
    "ffn_size": "grok.feed_forward_length",
    "key_size": "grok.attention.key_length",
}


def metadata_writer(
    graph: TensorGraph[Grok1Spec],
    vocabulary: Vocabulary | None,
    file_type: int,
    split_bytes: int,
) -> GGUFWriter:
    """Collect all metadata of a Grok-1 GGUF file; without a vocabulary it says "no_vocab".

    `file_type` is llama.cpp's number for what the file is mostly.
    """
    from gguf import GGML_QUANT_VERSION

    spec = graph.spec
    writer = new_writer(ARCHITECTURE, split_bytes)
    writer.add_type("model")
    writer.add_name("Grok 1")
    writer.add_size_label(_size_label(graph))
    writer.add_license("apache-2.0")
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.emb_size)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.num_q_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_rope_freq_base(spec.rope_base)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_expert_count(spec.num_experts)
    writer.add_expert_used_count(spec.num_selected_experts)
    writer.add_key_length(spec.key_size)
    writer.add_value_length(spec.key_size)
    writer.add_file_type(file_type)
    writer.add_float32("grok.attn_logit_softcapping", spec.attn_logit_cap)
    # The reference does not cap router logits; llama.cpp stores the key without using it.
    writer.add_float32("grok.router_logit_softcapping", 0.0)
    writer.add_expert_feed_forward_length(spec.ffn_size)
    writer.add_float32("grok.attention.output_scale", spec.attn_output_multiplier)
    writer.add_float32("grok.embedding_scale", spec.embedding_multiplier_scale)
    writer.add_float32("grok.logit_scale", spec.output_multiplier_scale)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    if vocabulary is None:
        writer.add_uint32("grok.vocab_size", spec.vocab_size)
    add_to_gguf(writer, vocabulary)
    return writer


def _size_label(graph: TensorGraph[Grok1Spec]) -> str:
    from gguf.utility import size_label

    names = [p.name for p in places(graph.spec.num_layers) if p.role.is_experts]
    experts = sum(graph[name].size for name in names)
    shared = graph.parameters - experts
    count = graph.spec.num_experts
    return str(size_label(graph.parameters, shared, experts // count, count))


def read_hyperparameters(path: Path, metadata: Mapping[str, Any]) -> dict[str, Number]:
    """Take the hyperparameters out of GGUF metadata. Raises FormatError for absent keys."""
    given: dict[str, Number] = {}
    for name, (key, default) in _KEYS.items():
        value = checked(path, name, key, metadata.get(key, default))
        given[name] = _exact(name, value) if isinstance(value, float) else value
    for name, key in _OPTIONAL_KEYS.items():
        if key in metadata:
            given[name] = checked(path, name, key, metadata[key])
    given.setdefault("key_size", default_key_size(given))
    return given


def _exact(name: str, value: float) -> float:
    """Undo the rounding to float32 where the release's own constant was meant."""
    known = {**GROK_1, "rms_norm_eps": 1e-5}.get(name)
    if known is not None and np.float32(known) == np.float32(value):
        return float(known)
    return value
