"""Grok-1 as a family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from weightcast.converters.families.grok1.gguf import ARCHITECTURE, llama_cpp_notes, metadata
from weightcast.converters.families.grok1.hugging_face import (
    CODE,
    CONFIG_FIXED,
    companion_files,
    runtime_notes,
)
from weightcast.converters.families.grok1.modules import MODULES
from weightcast.converters.families.grok1.spec import HYPERPARAMETERS, solve, told_sizes
from weightcast.converters.families.grok1.tensors import DIALECTS, NAMES, ROLES
from weightcast.converters.graph import (
    Card,
    Download,
    Example,
    Family,
    Quirks,
    TensorGraph,
)


def _notes(graph: TensorGraph, target: str) -> Iterator[str]:
    return llama_cpp_notes(graph) if target == "gguf" else runtime_notes(graph)


def _example() -> Example:
    # Who only describes a checkpoint needs none of the mathematics, and no numpy.
    from weightcast.converters.families.grok1 import forward, synthetic

    return Example(synthetic.write_tiny, forward.clear_tokens, forward.logits)


GROK_1: Final = Family(
    name="grok-1",
    title="Grok-1",
    architecture=ARCHITECTURE,
    roles=ROLES,
    names=NAMES,
    dialects=DIALECTS,
    split_axes=("ffn_size", "q_size", "kv_size", "vocab_size"),
    hyperparameters=HYPERPARAMETERS,
    config_mark="embedding_multiplier_scale",
    config_fixed=CONFIG_FIXED,
    told_sizes=told_sizes,
    solve=solve,
    metadata=metadata,
    companions=companion_files,
    notes=_notes,
    modules=MODULES,
    quirks=Quirks(
        multipliers=(
            ("embedding_multiplier_scale",),
            ("output_multiplier_scale",),
            ("attn_output_multiplier",),
            ("embedding_multiplier_scale", "output_multiplier_scale"),
        ),
        rotary=("attn_q", "attn_k"),
        head_size="key_size",
        rotary_rule="Grok-1's RoPE is split-half",
        norm_rule="Grok-1 multiplies by the scale",
    ),
    card=Card(
        tag="grok-1",
        license="apache-2.0",
        base_model="xai-org/grok-1",
        release_sizes=("num_layers", "emb_size", "num_experts", "vocab_size"),
        release="[Grok-1](https://github.com/xai-org/grok-1), the released weights of xAI",
        license_text=(
            "xAI released the code and the weights of Grok-1 under the Apache License 2.0, which "
            "holds for these files too."
        ),
    ),
    download=Download(
        repository="xai-org/grok-1",
        folder="ckpt-0",
        tokenizer="https://github.com/xai-org/grok-1/raw/main/tokenizer.model",
        code=("run.py", "model.py", "checkpoint.py"),
    ),
    code=CODE,
    example=_example,
)
