"""A family of three roles and two layers: all that a new one needs, kept as a test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from weightcast.converters.graph.dimensions import Dimensions, Number
from weightcast.converters.graph.model import (
    Family,
    Hyperparameter,
    Key,
    Role,
    Spec,
    Stored,
    TensorGraph,
)
from weightcast.converters.graph.tensor import transposed
from weightcast.formats.gguf.header import raw_float, raw_string, raw_uint
from weightcast.formats.tokenizer.sentencepiece import Vocabulary, gguf_values

ROLES: Final = (
    Role("token_embd", ("vocab_size", "emb_size"), per_layer=False, storage="float"),
    Role("ffn_up", ("ffn_size", "emb_size")),
    Role("output_norm", ("emb_size",), per_layer=False, storage="float32"),
)

NAMES: Final = {
    "gguf": {
        "token_embd": Stored("token_embd.weight"),
        "ffn_up": Stored("blk.{layer}.ffn_up.weight"),
        "output_norm": Stored("output_norm.weight"),
    },
    # As in GPT-2's checkpoints, matrices of layers are stored [in, out].
    "hugging_face": {
        "token_embd": Stored("wte.weight"),
        "ffn_up": Stored("h.{layer}.mlp.c_fc.weight", read=transposed, write=transposed),
        "output_norm": Stored("ln_f.weight"),
    },
}

HYPERPARAMETERS: Final = (
    Hyperparameter("vocab_size", Key("trial.vocab_size", optional=True), Key("vocab_size")),
    Hyperparameter("emb_size", Key("trial.embedding_length"), Key("n_embd")),
    Hyperparameter("ffn_size", Key("trial.feed_forward_length"), Key("n_inner")),
    Hyperparameter("num_layers", Key("trial.block_count"), Key("n_layer")),
    Hyperparameter("scale", Key("trial.scale", 1.0), Key("trial_scale", 1.0), is_float=True),
)


@dataclass(frozen=True, slots=True)
class TrialSpec:
    vocab_size: int
    emb_size: int
    ffn_size: int
    num_layers: int
    scale: float

    def describe(self) -> dict[str, Number]:
        return asdict(self)


def told_sizes(told: Mapping[str, Number]) -> Iterator[tuple[str, int]]:
    for name in ("vocab_size", "emb_size", "ffn_size", "num_layers"):
        if name in told:
            yield name, int(told[name])


def solve(dimensions: Dimensions, told: Mapping[str, Number]) -> TrialSpec:
    return TrialSpec(
        vocab_size=dimensions["vocab_size"],
        emb_size=dimensions["emb_size"],
        ffn_size=dimensions["ffn_size"],
        num_layers=dimensions["num_layers"],
        scale=float(told["scale"]),
    )


def metadata(graph: TensorGraph, vocabulary: Vocabulary | None, file_type: int) -> dict[str, bytes]:
    values = graph.spec.describe()
    return {
        "general.architecture": raw_string("trial"),
        "general.file_type": raw_uint(file_type),
        "trial.block_count": raw_uint(values["num_layers"]),
        "trial.embedding_length": raw_uint(values["emb_size"]),
        "trial.feed_forward_length": raw_uint(values["ffn_size"]),
        "trial.vocab_size": raw_uint(values["vocab_size"]),
        "trial.scale": raw_float(values["scale"]),
    } | gguf_values(vocabulary)


def companions(
    spec: Spec, type_name: str, vocabulary: Vocabulary | None, packed: Mapping[str, Any] | None
) -> dict[str, bytes]:
    values = spec.describe()
    config = {
        "model_type": "trial",
        "vocab_size": values["vocab_size"],
        "n_embd": values["emb_size"],
        "n_inner": values["ffn_size"],
        "n_layer": values["num_layers"],
        "trial_scale": values["scale"],
    }
    return {"config.json": json.dumps(config).encode()}


TRIAL: Final = Family(
    name="trial",
    title="Trial",
    architecture="trial",
    roles=ROLES,
    names=NAMES,
    hyperparameters=HYPERPARAMETERS,
    config_mark="trial_scale",
    told_sizes=told_sizes,
    solve=solve,
    metadata=metadata,
    companions=companions,
)
