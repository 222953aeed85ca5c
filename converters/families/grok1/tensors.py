"""Grok-1's tensors: roles, and their names in shards, GGUF and Hugging Face directories.

Sources: model.py and checkpoint.py in xai-org/grok-1; MODEL_TENSORS of the arch GROK in gguf-py;
grok.py in SGLang and vLLM for the Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from weightcast.converters.graph import Role, Stored, transposed

_EMB, _FFN, _Q, _KV, _E = "emb_size", "ffn_size", "q_size", "kv_size", "num_experts"
_VOCAB = "vocab_size"

# Roles of a layer in the order of its shards.
ROLES: Final = (
    Role("token_embd", (_VOCAB, _EMB), per_layer=False, storage="float"),
    Role("ffn_gate_exps", (_E, _FFN, _EMB)),
    Role("ffn_down_exps", (_E, _EMB, _FFN)),
    Role("ffn_up_exps", (_E, _FFN, _EMB)),
    Role("attn_k", (_KV, _EMB)),
    Role("attn_output", (_EMB, _Q)),
    Role("attn_q", (_Q, _EMB)),
    Role("attn_v", (_KV, _EMB)),
    Role("attn_norm", (_EMB,), storage="float32"),
    Role("attn_output_norm", (_EMB,), storage="float32"),
    Role("ffn_norm", (_EMB,), storage="float32"),
    Role("post_ffw_norm", (_EMB,), storage="float32"),
    Role("ffn_gate_inp", (_E, _EMB), storage="float32"),
    Role("output_norm", (_EMB,), per_layer=False, storage="float32"),
    Role("output", (_VOCAB, _EMB), per_layer=False, storage="float", tied_to="token_embd"),
)


def _leaf(path: str, *, is_matrix: bool = True) -> Stored:
    """Say where a layer's parameter lies in the tree; matrices are stored as [in, out]."""
    name = f"transformer/decoder_layer_{{layer}}/{path}"
    return Stored(name, read=transposed if is_matrix else None)


# The embedding table and norms are stored as they are used.
_SHARDS: Final = {
    "token_embd": Stored("language_model/in_out_embed/embeddings"),
    "ffn_gate_exps": _leaf("moe/linear/w"),
    "ffn_down_exps": _leaf("moe/linear_1/w"),
    "ffn_up_exps": _leaf("moe/linear_v/w"),
    "attn_k": _leaf("multi_head_attention/key/w"),
    "attn_output": _leaf("multi_head_attention/linear/w"),
    "attn_q": _leaf("multi_head_attention/query/w"),
    "attn_v": _leaf("multi_head_attention/value/w"),
    "attn_norm": _leaf("rms_norm/scale", is_matrix=False),
    "attn_output_norm": _leaf("rms_norm_1/scale", is_matrix=False),
    "ffn_norm": _leaf("rms_norm_2/scale", is_matrix=False),
    "post_ffw_norm": _leaf("rms_norm_3/scale", is_matrix=False),
    "ffn_gate_inp": _leaf("router/w"),
    "output_norm": Stored("language_model/rms_norm/scale"),
}

_GGUF: Final = {
    role.name: Stored(f"{'blk.{layer}.' if role.per_layer else ''}{role.name}.weight")
    for role in ROLES
} | {
    "post_ffw_norm": Stored(
        "blk.{layer}.post_ffw_norm.weight", earlier=("blk.{layer}.layer_output_norm.weight",)
    )
}


def _renamed(parts: Mapping[str, str]) -> dict[str, Stored]:
    """Give the names of Hugging Face directories with other parts."""
    names = {}
    for role, stored in _HUGGING_FACE.items():
        name = stored.name
        for part, other in parts.items():
            name = name.replace(part, other)
        names[role] = Stored(name)
    return names


_LAYER: Final = "model.layers.{layer}."
_EXPERT: Final = _LAYER + "block_sparse_moe.experts.{expert}."
_HUGGING_FACE: Final = {
    "token_embd": Stored("model.embed_tokens.weight"),
    "ffn_gate_exps": Stored(_EXPERT + "w1.weight"),
    "ffn_down_exps": Stored(_EXPERT + "w2.weight"),
    "ffn_up_exps": Stored(_EXPERT + "w3.weight"),
    "attn_k": Stored(_LAYER + "self_attn.k_proj.weight"),
    "attn_output": Stored(_LAYER + "self_attn.o_proj.weight"),
    "attn_q": Stored(_LAYER + "self_attn.q_proj.weight"),
    "attn_v": Stored(_LAYER + "self_attn.v_proj.weight"),
    "attn_norm": Stored(_LAYER + "pre_attn_norm.weight"),
    "attn_output_norm": Stored(_LAYER + "post_attn_norm.weight"),
    "ffn_norm": Stored(_LAYER + "pre_moe_norm.weight"),
    "post_ffw_norm": Stored(_LAYER + "post_moe_norm.weight"),
    "ffn_gate_inp": Stored(_LAYER + "block_sparse_moe.gate.weight"),
    "output_norm": Stored("model.norm.weight"),
    # SGLang requires the tied head under its own name.
    "output": Stored("lm_head.weight"),
}

# What others call them. The modules of the first two keep the names of the shards' leaves.
_KEYFAN: Final = _renamed(
    {
        "model.embed_tokens": "transformer.in_out_embed",
        "model.norm": "transformer.rms_norm",
        "model.layers.": "transformer.decoder_layer.",
        "pre_attn_norm": "rms_norm",
        "post_attn_norm": "rms_norm_1",
        "pre_moe_norm": "rms_norm_2",
        "post_moe_norm": "rms_norm_3",
        "self_attn.q_proj": "multi_head_attention.query",
        "self_attn.k_proj": "multi_head_attention.key",
        "self_attn.v_proj": "multi_head_attention.value",
        "self_attn.o_proj": "multi_head_attention.linear",
        "block_sparse_moe.gate": "router",
        "block_sparse_moe.experts": "moe",
        ".w1.": ".linear.",
        ".w2.": ".linear_1.",
        ".w3.": ".linear_v.",
    }
)
_HPCAI: Final = _renamed(
    {
        "norm.weight": "norm.scale",
        "self_attn": "attn",
        "block_sparse_moe": "moe_block",
        ".w1.": ".linear.",
        ".w2.": ".linear_1.",
        ".w3.": ".linear_v.",
    }
)
_LLAMA_NORMS: Final = _renamed(
    {
        "pre_attn_norm": "input_layernorm",
        "post_attn_norm": "post_attention_layernorm",
        "pre_moe_norm": "pre_feedforward_layernorm",
        "post_moe_norm": "post_feedforward_layernorm",
    }
)
_STACKED: Final = _renamed({"experts.{expert}.": "experts."})
# GGUF files of March 2024 have a tensor for each expert.
_SINGLE_EXPERTS: Final = _GGUF | {
    role.name: Stored(f"blk.{{layer}}.{role.name.removesuffix('_exps')}.{{expert}}.weight")
    for role in ROLES
    if role.name.endswith("_exps")
}

NAMES: Final = {
    "jax": _SHARDS,
    "gguf": _GGUF,
    "hugging_face": _HUGGING_FACE,
    "keyfan/grok-1-hf": _KEYFAN,
    "hpcai-tech/grok-1": _HPCAI,
    "Llama's norms": _LLAMA_NORMS,
    "stacked experts": _STACKED,
    "llama.cpp before April 2024": _SINGLE_EXPERTS,
}
DIALECTS: Final = {
    "gguf": ("llama.cpp before April 2024",),
    "hugging_face": (
        "keyfan/grok-1-hf",
        "hpcai-tech/grok-1",
        "Llama's norms",
        "stacked experts",
    ),
}
