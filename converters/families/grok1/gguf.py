"""Grok-1's GGUF metadata, and what llama.cpp makes of a model.

Source of the keys: conversion/grok.py and src/models/grok.cpp in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from weightcast.converters.families.grok1.spec import grok1_spec
from weightcast.converters.graph import TensorGraph
from weightcast.formats.gguf.header import raw_float, raw_string, raw_uint

if TYPE_CHECKING:
    from weightcast.formats.tokenizer import Vocabulary

ARCHITECTURE: Final = "grok"


def metadata(graph: TensorGraph, vocabulary: Vocabulary | None, file_type: int) -> dict[str, bytes]:
    """Make all metadata of a Grok-1 GGUF file; without a vocabulary it says "no_vocab".

    `file_type` is llama.cpp's number for what the file is mostly.
    """
    from gguf import GGML_QUANT_VERSION

    from weightcast.formats.tokenizer import gguf_values

    spec = grok1_spec(graph.spec)
    values = {
        "general.architecture": raw_string(ARCHITECTURE),
        "general.type": raw_string("model"),
        "general.name": raw_string("Grok 1"),
        "general.size_label": raw_string(_size_label(graph)),
        "general.license": raw_string("apache-2.0"),
        "grok.block_count": raw_uint(spec.num_layers),
        "grok.context_length": raw_uint(spec.context_length),
        "grok.embedding_length": raw_uint(spec.emb_size),
        "grok.feed_forward_length": raw_uint(spec.ffn_size),
        "grok.attention.head_count": raw_uint(spec.num_q_heads),
        "grok.attention.head_count_kv": raw_uint(spec.num_kv_heads),
        "grok.rope.freq_base": raw_float(spec.rope_base),
        "grok.attention.layer_norm_rms_epsilon": raw_float(spec.rms_norm_eps),
        "grok.expert_count": raw_uint(spec.num_experts),
        "grok.expert_used_count": raw_uint(spec.num_selected_experts),
        "grok.attention.key_length": raw_uint(spec.key_size),
        "grok.attention.value_length": raw_uint(spec.key_size),
        "general.file_type": raw_uint(file_type),
        "grok.attn_logit_softcapping": raw_float(spec.attn_logit_cap),
        # The reference does not cap router logits; llama.cpp stores the key without using it.
        "grok.router_logit_softcapping": raw_float(0.0),
        "grok.expert_feed_forward_length": raw_uint(spec.ffn_size),
        "grok.attention.output_scale": raw_float(spec.attn_output_multiplier),
        "grok.embedding_scale": raw_float(spec.embedding_multiplier_scale),
        "grok.logit_scale": raw_float(spec.output_multiplier_scale),
        "general.quantization_version": raw_uint(GGML_QUANT_VERSION),
    }
    if vocabulary is None:
        values["grok.vocab_size"] = raw_uint(spec.vocab_size)
    return values | gguf_values(vocabulary)


def _size_label(graph: TensorGraph) -> str:
    from gguf.utility import size_label

    experts = sum(graph[name].size for name, place in graph.places.items() if place.role.is_experts)
    shared = graph.parameters - experts
    count = grok1_spec(graph.spec).num_experts
    return str(size_label(graph.parameters, shared, experts // count, count))


def llama_cpp_notes(graph: TensorGraph) -> Iterator[str]:
    """Say why llama.cpp cannot run a model."""
    spec = grok1_spec(graph.spec)
    if spec.num_q_heads * spec.key_size != spec.emb_size:
        yield (
            f"llama.cpp cannot run this model: its heads make {spec.num_q_heads * spec.key_size} "
            f"values, not emb_size {spec.emb_size}"
        )
