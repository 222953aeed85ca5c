"""Where llama.cpp keeps the layers of models in transformers."""

from __future__ import annotations

import re

import gguf
import numpy as np
import pytest

from weightcast.converters.families import FAMILIES
from weightcast.converters.families.linear_layers import (
    ARCHITECTURES,
    BaseModel,
    Target,
    base_of_config,
)
from weightcast.converters.graph import Family, TensorGraph
from weightcast.errors import LayoutError

LLAMA = BaseModel("m", "llama", heads=lambda layer: (32, 8))
GROK = BaseModel("m", "grok", FAMILIES["grok-1"])


@pytest.mark.parametrize(
    ("base", "module", "target"),
    [
        (LLAMA, "model.layers.0.self_attn.q_proj", Target("blk.0.attn_q.weight", heads=32)),
        (LLAMA, "model.layers.31.self_attn.k_proj", Target("blk.31.attn_k.weight", heads=8)),
        (LLAMA, "model.layers.7.self_attn.v_proj", Target("blk.7.attn_v.weight")),
        (LLAMA, "layers.7.mlp.down_proj", Target("blk.7.ffn_down.weight")),
        (LLAMA, "language_model.model.layers.2.mlp.up_proj", Target("blk.2.ffn_up.weight")),
        (LLAMA, "model.language_model.layers.2.mlp.up_proj", Target("blk.2.ffn_up.weight")),
        (LLAMA, "lm_head", Target("output.weight")),
        (LLAMA, "model.embed_tokens", Target("token_embd.weight")),
        (
            LLAMA,
            "model.layers.3.block_sparse_moe.experts.11.w2",
            Target("blk.3.ffn_down_exps.weight", 11),
        ),
        (
            BaseModel("m", "qwen3moe"),
            "model.layers.40.mlp.experts.127.gate_proj",
            Target("blk.40.ffn_gate_exps.weight", 127),
        ),
        (BaseModel("m", "qwen2"), "model.layers.1.self_attn.q_proj", Target("blk.1.attn_q.weight")),
        (BaseModel("m", "phi3"), "model.layers.1.mlp.gate_up_proj", Target("blk.1.ffn_up.weight")),
        (GROK, "model.layers.63.self_attn.q_proj", Target("blk.63.attn_q.weight")),
        (GROK, "model.layers.5.block_sparse_moe.gate", Target("blk.5.ffn_gate_inp.weight")),
        (
            GROK,
            "model.layers.5.block_sparse_moe.experts.7.w3",
            Target("blk.5.ffn_up_exps.weight", 7),
        ),
        (
            GROK,
            "transformer.decoder_layer.5.moe.7.linear_1",
            Target("blk.5.ffn_down_exps.weight", 7),
        ),
        (GROK, "model.embed_tokens", Target("token_embd.weight")),
    ],
)
def test_targets(base: BaseModel, module: str, target: Target) -> None:
    assert base.target(module) == target


@pytest.mark.parametrize(
    ("base", "module", "problem"),
    [
        (GROK, "lm_head", "is no layer of Grok-1 that can be adapted"),
        (GROK, "model.layers.0.block_sparse_moe.experts.w1", "is no layer of Grok-1"),
        (LLAMA, "model.layers.x.self_attn.q_proj", "no layer that llama.cpp has of llama"),
        (LLAMA, "model.layers.0.mamba.in_proj", "no layer that llama.cpp has of llama"),
        (BaseModel("m", "llama"), "model.layers.0.self_attn.q_proj", "how many heads a layer has"),
        (BaseModel("m", "rwkv7"), "model.layers.0.x", "'rwkv7' in GGUF is not known here"),
        (BaseModel("m", "deepseek2"), "model.layers.0.x", "is not known here"),
    ],
)
def test_layers_without_one(base: BaseModel, module: str, problem: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(problem)):
        base.target(module)


def test_architectures_are_those_of_the_gguf_package() -> None:
    assert ARCHITECTURES.keys() <= set(gguf.MODEL_ARCH_NAMES.values())
    names = [name for row in ARCHITECTURES.values() for name in row.classes]
    assert len(names) == len(set(names))


def test_configurations() -> None:
    text = {"num_attention_heads": 12, "num_key_value_heads": 4}
    found = base_of_config(
        __file__, {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    )
    assert found is not None
    assert (found.architecture, found.heads(3), found.num_experts) == ("gemma3", (12, 4), 0)
    only_q = {"architectures": ["OlmoeForCausalLM"], "num_attention_heads": 6, "num_experts": 64}
    found = base_of_config(__file__, only_q)
    assert found is not None
    assert (found.heads(0), found.num_experts) == ((6, 6), 64)
    for values in ({}, {"architectures": []}, {"architectures": [["x"]]}, {"architectures": "x"}):
        assert base_of_config(__file__, values) is None


def test_heads_that_differ_by_layer() -> None:
    from weightcast.converters.families.generic import GGUFModel
    from weightcast.converters.families.linear_layers import base_of_graph
    from weightcast.formats.gguf.header import Metadata, raw_array, raw_string, raw_uint

    metadata = Metadata(
        {
            "general.architecture": raw_string("llama"),
            "llama.attention.head_count": raw_uint(8),
            "llama.attention.head_count_kv": raw_array("int32", np.array([2, 4])),
            "llama.expert_count": raw_uint(16),
        }
    )
    family = Family("llama", architecture="llama")
    base = base_of_graph(TensorGraph(family, "m", GGUFModel(metadata), {}, metadata=metadata))
    assert [base.heads(layer) for layer in range(3)] == [(8, 2), (8, 4), (8, 0)]
    assert base.num_experts == 16
