"""Decisions with llama-quantize's options against those of the program (options.json)."""

from __future__ import annotations

import itertools
import json
import re
from math import prod
from typing import Any

import pytest

from tests.converters.recipes.test_recipes import (
    TABLES,
    Named,
    chosen_types,
    expected_types,
    model,
    named,
)
from weightcast.converters.recipes import (
    RECIPES,
    EndTypes,
    missed_notes,
    parse_override_kv,
    parse_tensor_type,
    recipe_numbered,
    rule_candidates,
    unfollowed_notes,
)
from weightcast.converters.recipes.common_part import common_part
from weightcast.converters.recipes.decide import Decision, decide, facts_from_metadata
from weightcast.converters.recipes.image_models import IMAGE_MODELS
from weightcast.converters.recipes.llama_quantize import KNOWN_ARCHITECTURES, ModelFacts
from weightcast.converters.sources.options import parse_layers
from weightcast.converters.sources.prune import moved_name
from weightcast.converters.targets.types import _as_read
from weightcast.errors import RequestError
from weightcast.formats.gguf.header import Metadata
from weightcast.quant.names import type_named
from weightcast.quant.types import F32

MODELS = json.loads((TABLES / "options.json").read_text())


def given(arguments: list[str], option: str) -> list[str]:
    """The values of an option."""
    pairs = itertools.pairwise(arguments)
    return [value for name, value in pairs if name == option]


def decided(described: dict[str, Any], run: dict[str, Any]) -> tuple[Named, list[Decision]]:
    """Choose types as a conversion does that is given llama-quantize's options."""
    arguments, architecture = run["arguments"], described["architecture"]
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in described["metadata"].items()},
    }
    asked = dict(map(parse_override_kv, given(arguments, "--override-kv")))
    layers = [n for text in given(arguments, "--prune-layers") for n in parse_layers(text)]
    moved = [(moved_name(name, layers), shape) for name, shape in model(described)]
    tensors = [(name, shape) for name, shape in moved if name is not None]
    output, embedding = (
        next(map(type_named, given(arguments, option)), None)
        for option in ("--output-tensor-type", "--token-embedding-type")
    )
    decisions = decide(
        named(run["type"]),
        tensors,
        facts_from_metadata(_as_read(metadata, asked), has_importance=False),
        [parse_tensor_type(text) for text in given(arguments, "--tensor-type")],
        pure="--pure" in arguments,
        ends=EndTypes(output, embedding, "--leave-output-tensor" in arguments),
    )
    return tensors, decisions


@pytest.mark.parametrize("name", MODELS)
def test_options(name: str) -> None:
    described = MODELS[name]["model"]
    assert len(MODELS[name]["runs"]) > 20
    for run in MODELS[name]["runs"]:
        tensors, decisions = decided(described, run)
        expected = {tensor: "F32" for tensor, _ in tensors} | expected_types(run)
        assert chosen_types(tensors, decisions) == expected, run
        nbytes = sum(
            (decision.type or F32).row_bytes(shape[-1]) * prod(shape[:-1])
            for (_, shape), decision in zip(tensors, decisions, strict=True)
        )
        assert f"{nbytes / 2**20:.2f}" == run["_size"][0]


def test_every_option_is_in_the_table() -> None:
    """And each changes something in it: llama-quantize's words, all but those of importance."""
    words = {w for m in MODELS.values() for run in m["runs"] for w in run["arguments"]}
    assert {word for word in words if word.startswith("--")} == {
        "--leave-output-tensor",
        "--output-tensor-type",
        "--override-kv",
        "--prune-layers",
        "--pure",
        "--tensor-type",
        "--token-embedding-type",
    }


@pytest.mark.parametrize(
    ("number", "name"), [(0, "F32"), (2, "Q4_0"), (15, "Q4_K_M"), (38, "MXFP4_MOE")]
)
def test_types_by_number(number: int, name: str) -> None:
    assert recipe_numbered(number) == RECIPES[name]


def test_numbers_that_are_no_types() -> None:
    assert recipe_numbered(4) is None  # Q4_2, which is no more
    assert recipe_numbered(39) is None  # NVFP4, which llama-quantize does not write


def notes(rules: list[str], tensors: Named, architecture: str = "llama") -> list[str]:
    candidates = rule_candidates(tensors, ModelFacts(architecture, 4))
    return list(unfollowed_notes([parse_tensor_type(r) for r in rules], candidates, "in GGUF"))


def test_rules_that_no_tensor_follows() -> None:
    tensors = [
        ("blk.0.attn_v.weight", (256, 256)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
        ("blk.0.ffn_down.weight", (256, 256)),
    ]
    assert notes(["ATTN_V=Q8_0", "down=Q6_K", "attn=F16"], tensors) == []
    assert notes(["atn_v=q8_0", "gate_inp=Q4_0"], tensors) == [
        "rule atn_v=q8_0 changes nothing: no tensor has a name with this pattern in GGUF; "
        "did you mean attn_v?",
        "rule gate_inp=Q4_0 changes nothing: only found in tensors that are not quantized, such "
        "as blk.0.ffn_gate_inp.weight; match the whole name to give them another type",
    ]


def test_a_rule_falls_back_where_rows_do_not_fill_blocks() -> None:
    tensors = [("blk.0.attn_v.weight", (64, 288)), ("blk.0.attn_q.weight", (64, 100))]
    rules = [parse_tensor_type("attn=Q6_K")]
    decisions = decide(named("Q4_K_M"), tensors, ModelFacts("llama", 1), rules)
    told = [(d.type and d.type.name, d.fallback, d.override) for d in decisions]
    assert told == [
        ("Q8_0", "rows of 288 do not fill Q6_K blocks", "rule attn=Q6_K"),
        ("F16", "rows of 100 do not fill Q6_K blocks", "rule attn=Q6_K"),
    ]


def missed(recipe: str, architecture: str, tensors: Named) -> list[str]:
    facts = ModelFacts(architecture, 4)
    decisions = decide(named(recipe), tensors, facts)
    return list(missed_notes(named(recipe), facts, tensors, decisions))


def test_notes_where_nothing_happens() -> None:
    matrices = [("blk.0.ffn_up.weight", (256, 256))]
    assert missed("Q4_K_M", "llama", matrices) == missed("F16", "unheard", matrices) == []
    (said,) = missed("MXFP4_MOE", "llama", matrices)
    assert said == "no tensor is MXFP4, which most are meant to be"
    (said,) = missed("Q8_0", "unheard", matrices)
    assert said.startswith("no rules are known for architecture 'unheard': types are chosen as for")
    (said,) = missed("Q8_0", "llama", [("blk.0.attn_q.weight.lora_a", (8, 256))])
    assert said == (
        "nothing is Q8_0: an adapter's names do not end in weight, and its tensors stay as they "
        "are; the rule '.*lora_[ab]=Q8_0' quantizes them"
    )
    (said,) = missed("Q4_K_M", "llama", [("direction.1", (256,))])
    assert said == "nothing is Q4_K_M: all tensors are vectors, which stay floats"
    (said,) = missed("Q4_K_M", "llama", [("ffn_gate_inp.weight", (8, 256))])
    assert said.startswith("nothing is Q4_K_M: its matrices are none of those that are quantized")


def test_architectures() -> None:
    assert {"llama", "clip", "glm5-next", "t5"} <= KNOWN_ARCHITECTURES
    assert not KNOWN_ARCHITECTURES & set(IMAGE_MODELS)


def test_layers_as_llama_cpp_counts_them() -> None:
    def facts(architecture: str, **metadata: int) -> ModelFacts:
        keyed = {f"{architecture}.{key}": value for key, value in metadata.items()}
        keyed_by = {"general.architecture": architecture, **keyed}
        return facts_from_metadata(keyed_by, has_importance=False)

    assert facts("graniteswitch", block_count=15).n_layer == 16
    assert facts("nanbeige", block_count=16, num_loops=2).n_layer == 32
    assert facts("nanbeige", block_count=16).n_layer == 16
    assert facts("glm4moe", block_count=47, nextn_predict_layers=1).n_layer == 47
    assert facts("qwen2", block_count=81, nextn_predict_layers=1).is_70b
    assert not facts("qwen2", block_count=81).is_70b
    heads = {"attention.head_count": 64, "attention.head_count_kv": 8}
    assert facts("llama-embed", block_count=80, **heads).is_70b
    assert not facts("llama-embed", block_count=80, **{**heads, **{k: 64 for k in heads}}).is_70b


# What ComfyUI-GGUF's llama-quantize decides by its tools/lcpp.patch, read there.
FLUX = {
    "img_in.weight": (256, 64, None),
    "time_in.in_layer.weight": (256, 256, None),
    "guidance_in.in_layer.weight": (256, 256, None),
    "final_layer.adaLN_modulation.1.weight": (512, 256, None),
    "double_blocks.0.img_attn.qkv.weight": (768, 256, "Q5_K"),
    "double_blocks.0.img_mlp.0.weight": (1024, 256, "Q4_K"),
    "double_blocks.0.img_mlp.2.weight": (256, 1024, "Q4_K"),
    "single_blocks.0.linear1.weight": (256, 640, "F16"),
}
WAN = {
    "patch_embedding.weight": (256, 64, None),
    "head.head.weight": (64, 256, None),
    "blocks.0.self_attn.v.weight": (256, 256, "Q6_K"),
    "blocks.0.ffn.2.weight": (256, 512, "Q6_K"),
    "blocks.0.ffn.0.weight": (512, 256, "Q4_K"),
}
QWEN_IMAGE = {
    "img_in.weight": (256, 64, None),
    "txt_in.weight": (256, 256, None),
    "transformer_blocks.0.attn.to_q.weight": (256, 256, "Q4_K"),
    "transformer_blocks.0.attn.to_v.weight": (256, 256, "Q6_K"),
}


@pytest.mark.parametrize(
    ("architecture", "table"),
    [("flux", FLUX), ("hyvid", FLUX), ("wan", WAN), ("qwen_image", QWEN_IMAGE), ("", FLUX)],
)
def test_image_models(architecture: str, table: dict[str, tuple[int, int, str | None]]) -> None:
    tensors = [(name, (rows, columns)) for name, (rows, columns, _) in table.items()]
    decisions = decide(named("Q4_K_M"), tensors, ModelFacts(architecture, 0))
    made = [None if d.type is None else d.type.name for d in decisions]
    assert made == [kind for *_, kind in table.values()]


def test_image_models_have_matrices_only() -> None:
    tensors = [("double_blocks.0.conv.weight", (8, 3, 3, 256)), ("a.weight", (1, 8, 256))]
    decisions = decide(named("Q8_0"), tensors, ModelFacts("flux", 0))
    assert [d.type is None for d in decisions] == [True, False]


def test_a_language_model_that_names_no_architecture() -> None:
    tensors = [("blk.0.ffn_up_exps.weight", (4, 8, 256)), ("blk.0.attn_v.weight", (8, 256))]
    decisions = decide(named("Q2_K"), tensors, ModelFacts("", 0))
    assert [d.type and d.type.name for d in decisions] == ["Q2_K", "Q3_K"]


def test_first_layers_are_counted_in_the_order_of_the_file() -> None:
    names = [f"blocks.{n}.self_attn.v.weight" for n in (10, 11, 2, 3, 4)]
    tensors = [(name, (256, 256)) for name in names]
    decisions = decide(named("Q3_K_M"), tensors, ModelFacts("wan", 0))
    assert [d.type and d.type.name for d in decisions] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K", "Q4_K"]


@pytest.mark.parametrize(
    ("text", "key", "kind", "value"),
    [
        ("a.b=int:4", "a.b", "uint32", 4),
        ("a=int:+7", "a", "uint32", 7),
        ("a=float:0.1", "a", "float32", pytest.approx(0.1)),
        ("a=float:3", "a", "float32", 3.0),
        ("a=bool:true", "a", "bool", True),
        ("a=bool:false", "a", "bool", False),
        ("a=str:b=c:d", "a", "string", "b=c:d"),
        ("a=str:", "a", "string", ""),
        ("general.alignment=int:64", "general.alignment", "uint32", 64),
    ],
)
def test_override_kv(text: str, key: str, kind: str, value: object) -> None:
    found, raw = parse_override_kv(text)
    metadata = Metadata({found: raw})
    assert (found, metadata[found]) == (key, value)
    numbers = {"uint32": 4, "float32": 6, "bool": 7, "string": 8}
    assert metadata.kind(found) == numbers[kind]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a", "write it as KEY=TYPE:VALUE"),
        ("a=4", "write it as KEY=TYPE:VALUE"),
        ("=int:4", "write it as KEY=TYPE:VALUE"),
        ("a=u32:4", "unknown type 'u32'; it is int, float, bool or str"),
        ("a=int:-4", "'-4' is not a whole number from 0 to"),
        ("a=int:4294967296", "is not a whole number from 0 to"),
        ("a=int:4.5", "is not a whole number from 0 to"),
        ("a=float:nan", "is not a number that float32 holds"),
        ("a=float:1e99", "is not a number that float32 holds"),
        ("a=float:x", "is not a number that float32 holds"),
        ("a=bool:1", "'1' is not true or false"),
        ("general.alignment=int:3", "an alignment is a power of two"),
        ("general.alignment=int:0", "an alignment is a power of two"),
        ("general.alignment=int:2097152", "a power of two, at most 1,048,576"),
        ("general.alignment=str:32", "an alignment is a power of two"),
        ("general.architecture=int:3", "an architecture is a name"),
        ("split.count=int:3", "weightcast itself says how files are split"),
    ],
)
def test_override_kv_that_is_none(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=re.escape(problem)) as raised:
        parse_override_kv(text)
    assert str(raised.value).startswith(f"override_kv {text}: ")


def test_common_part() -> None:
    def experts(layer: int) -> list[str]:
        return [f"blk.{layer}.ffn_{kind}_exps.weight" for kind in ("gate", "down", "up")]

    names = [*experts(0), *experts(11)]
    others = ["blk.0.attn_q.weight", "blk.0.ffn_gate_exps.bias", "blk.11.ffn_gate_inp.weight"]
    assert common_part(names, others) == "_exps"
    assert common_part(names[:1], others) == "ffn_gate_exps"
    assert common_part(names, [*others, "blk.3.ffn_exps.weight"]) is None
    assert common_part(["blk.0.attn_q.weight", "token_embd.weight"], []) is None
