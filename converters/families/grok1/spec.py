"""Grok-1's hyperparameters: the table, and the spec that they and the shapes make.

Sources: the published configuration in run.py of xai-org/grok-1; conversion/grok.py and
src/models/grok.cpp in llama.cpp for the GGUF keys and defaults; grok.py in SGLang and vLLM for
those of config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from weightcast.converters.graph import Dimensions, Hyperparameter, Key, Number, Spec
from weightcast.errors import LayoutError


def default_key_size(given: Mapping[str, Number]) -> int:
    """Give what runtimes take for key_size if a file does not say: emb_size / num_q_heads."""
    return max(1, int(given["emb_size"]) // int(given["num_q_heads"]))


def _standard_attention_scale(given: Mapping[str, Number]) -> float:
    return float(given["key_size"] ** -0.5)


# Names as in the reference's TransformerConfig and LanguageModelConfig.
HYPERPARAMETERS: Final = (
    Hyperparameter(
        "vocab_size",
        gguf=Key("grok.vocab_size", optional=True),
        config=Key("vocab_size"),
        released=131072,
    ),
    Hyperparameter(
        "context_length",
        gguf=Key("grok.context_length"),
        config=Key("max_position_embeddings"),
        is_told=True,
        released=8192,
    ),
    Hyperparameter(
        "emb_size", gguf=Key("grok.embedding_length"), config=Key("hidden_size"), released=6144
    ),
    Hyperparameter(
        "ffn_size",
        gguf=Key("grok.feed_forward_length", optional=True),
        config=Key(
            "moe_intermediate_size",
            others=("intermediate_size",),
            others_may_differ=True,  # that of dense layers, of which there are none
        ),
    ),
    Hyperparameter(
        "num_layers", gguf=Key("grok.block_count"), config=Key("num_hidden_layers"), released=64
    ),
    Hyperparameter(
        "num_q_heads",
        gguf=Key("grok.attention.head_count"),
        config=Key("num_attention_heads"),
        released=48,
    ),
    Hyperparameter(
        "num_kv_heads",
        gguf=Key("grok.attention.head_count_kv"),
        config=Key("num_key_value_heads"),
        released=8,
    ),
    Hyperparameter(
        "key_size",
        gguf=Key("grok.attention.key_length", default_key_size, optional=True),
        config=Key("head_dim", default_key_size),
        is_told=True,
        released=128,
    ),
    Hyperparameter(
        "num_experts",
        gguf=Key("grok.expert_count"),
        config=Key("num_local_experts", others=("num_experts",)),
        released=8,
    ),
    Hyperparameter(
        "num_selected_experts",
        gguf=Key("grok.expert_used_count"),
        config=Key("num_experts_per_tok", others=("num_selected_experts",)),
        default=2,
        released=2,
    ),
    Hyperparameter("widening_factor", is_float=True, released=8),
    Hyperparameter(
        "rms_norm_eps",
        gguf=Key("grok.attention.layer_norm_rms_epsilon"),
        config=Key("rms_norm_eps"),
        is_float=True,
        default=1e-5,
    ),
    Hyperparameter(
        "rope_base",
        gguf=Key("grok.rope.freq_base", 10000.0),
        config=Key("rope_theta", others=("rope_parameters.rope_theta",)),
        is_float=True,
        default=10000.0,
    ),
    Hyperparameter(
        "embedding_multiplier_scale",
        gguf=Key("grok.embedding_scale", 78.38367176906169),
        config=Key("embedding_multiplier_scale"),
        is_float=True,
        is_told=True,
        released=78.38367176906169,
    ),
    Hyperparameter(
        "output_multiplier_scale",
        gguf=Key("grok.logit_scale", 0.5773502691896257),
        config=Key("output_multiplier_scale"),
        is_float=True,
        is_told=True,
        released=0.5773502691896257,
    ),
    Hyperparameter(
        "attn_logit_cap",
        gguf=Key("grok.attn_logit_softcapping", 30.0),
        config=Key("attn_logit_softcapping", 30.0, others=("max_attn_value",)),
        is_float=True,
        default=30.0,
    ),
    Hyperparameter(
        "attn_output_multiplier",
        gguf=Key("grok.attention.output_scale", 0.08838834764831845),
        config=Key("attn_output_multiplier", _standard_attention_scale),
        is_float=True,
        is_told=True,
        released=0.08838834764831845,
    ),
)

RELEASE: Final = {row.name: row.released for row in HYPERPARAMETERS if row.released is not None}
_DEFAULTS: Final = {row.name: row.default for row in HYPERPARAMETERS if row.default is not None}


@dataclass(frozen=True, slots=True)
class Grok1Spec:
    """All that the forward pass needs to know beside the weights."""

    vocab_size: int
    context_length: int
    emb_size: int
    key_size: int
    num_q_heads: int
    num_kv_heads: int
    num_layers: int
    ffn_size: int
    num_experts: int
    num_selected_experts: int
    embedding_multiplier_scale: float
    output_multiplier_scale: float
    attn_output_multiplier: float
    rms_norm_eps: float
    rope_base: float
    attn_logit_cap: float

    def describe(self) -> dict[str, Number]:
        """Give all hyperparameters as JSON values."""
        return dataclasses.asdict(self)


def grok1_spec(spec: Spec) -> Grok1Spec:
    """Take a spec for Grok-1's. Raises LayoutError if it is another family's."""
    if not isinstance(spec, Grok1Spec):
        raise LayoutError("not a Grok-1")
    return spec


def ffn_size(emb_size: int, widening_factor: float) -> int:
    """Compute the width of an expert: two thirds of the widened embedding, rounded up to 8."""
    size = int(widening_factor * emb_size) * 2 // 3
    return -(-size // 8) * 8


def told_sizes(given: Mapping[str, Number]) -> Iterator[tuple[str, int]]:
    """Name the dimensions that hyperparameters tell."""
    for name in ("vocab_size", "emb_size", "num_layers", "num_experts", "ffn_size", "key_size"):
        if name in given:
            yield name, int(given[name])
    for name, heads in (("q_size", "num_q_heads"), ("kv_size", "num_kv_heads")):
        if heads in given and "key_size" in given:
            yield name, int(given[heads] * given["key_size"])
    if "widening_factor" in given and "emb_size" in given:
        yield "ffn_size", ffn_size(int(given["emb_size"]), float(given["widening_factor"]))


def solve(dimensions: Dimensions, given: Mapping[str, Number]) -> Grok1Spec:
    """Put what was told and what shapes say together. Raises LayoutError if it makes no model."""
    key_size = int(given["key_size"])
    for name in ("q_size", "kv_size"):
        if dimensions[name] % key_size:
            raise LayoutError(f"{name} {dimensions[name]} is not a multiple of key_size {key_size}")
    heads, kv_heads = dimensions["q_size"] // key_size, dimensions["kv_size"] // key_size
    if heads % kv_heads:
        raise LayoutError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    if key_size % 2:
        raise LayoutError(f"key_size {key_size} is odd, but rotary positions need pairs")
    values = {**_DEFAULTS, **given}
    selected = int(values["num_selected_experts"])
    if selected > dimensions["num_experts"]:
        raise LayoutError(f"{selected} experts are selected of {dimensions['num_experts']}")
    return Grok1Spec(
        vocab_size=dimensions["vocab_size"],
        context_length=int(values["context_length"]),
        emb_size=dimensions["emb_size"],
        key_size=key_size,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        num_layers=dimensions["num_layers"],
        ffn_size=dimensions["ffn_size"],
        num_experts=dimensions["num_experts"],
        num_selected_experts=selected,
        embedding_multiplier_scale=float(values["embedding_multiplier_scale"]),
        output_multiplier_scale=float(values["output_multiplier_scale"]),
        attn_output_multiplier=float(values["attn_output_multiplier"]),
        rms_norm_eps=float(values["rms_norm_eps"]),
        rope_base=float(values["rope_base"]),
        attn_logit_cap=float(values["attn_logit_cap"]),
    )
