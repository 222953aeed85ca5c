"""Decisions of recipes against those of the real llama-quantize (data/llama_quantize)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import prod
from typing import Any

import pytest

from tests.grok1 import places
from tests.support import DATA
from weightcast.converters.recipes.decide import (
    Decision,
    Override,
    decide,
    facts_from_metadata,
    is_quantized,
    rule_candidates,
    unfollowed_notes,
)
from weightcast.converters.recipes.llama_quantize import RULES, Case, ModelFacts, Rule
from weightcast.converters.recipes.recipe import ALIASES, RECIPES, Recipe, recipe_named
from weightcast.errors import LayoutError
from weightcast.quant.types import F32, TYPES

TABLES = DATA / "llama_quantize"
GROK_1 = json.loads((TABLES / "grok1.json").read_text())
MODELS = json.loads((TABLES / "models.json").read_text())

PUBLIC_NAMES = {name for name, recipe in RECIPES.items() if not recipe.pure} | set(ALIASES)

Named = list[tuple[str, tuple[int, ...]]]


def named(name: str) -> Recipe:
    recipe = recipe_named(name)
    assert recipe is not None
    return recipe


def layers(text: str) -> list[int | None]:
    """Read 0-3,5; "-" stands for a tensor outside the layers."""
    if text == "-":
        return [None]
    found: list[int | None] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def expected_types(table: dict[str, Any]) -> dict[str, str]:
    """Types by tensor name; tensors that are not listed stay F32."""
    types = {}
    for role, found in table.items():
        if role.startswith("_") or role in ("type", "arguments"):
            continue
        for kind, where in found.items():
            for layer in layers(where):
                types[role if layer is None else f"blk.{layer}.{role}"] = kind.upper()
    return types


def chosen_types(tensors: Named, decisions: Sequence[Decision]) -> dict[str, str]:
    return {
        name: (decision.type or F32).name
        for (name, _), decision in zip(tensors, decisions, strict=True)
    }


def check_sizes(tensors: Named, decisions: Sequence[Decision], size: list[str]) -> None:
    """Compare MiB and bits per weight, as printed."""
    nbytes = sum(
        (decision.type or F32).row_bytes(shape[-1]) * prod(shape[:-1])
        for (_, shape), decision in zip(tensors, decisions, strict=True)
    )
    weights = sum(prod(shape) for _, shape in tensors)
    assert [f"{nbytes / 2**20:.2f}", f"{nbytes * 8 / weights:.2f}"] == size


def grok_1() -> Named:
    sizes = {"vocab_size": 131072, "emb_size": 6144, "ffn_size": 32768}
    sizes |= {"q_size": 6144, "kv_size": 1024, "num_experts": 8}
    return [(p.gguf, tuple(sizes[axis] for axis in p.role.axes)) for p in places(64)]


@pytest.mark.parametrize("name", GROK_1)
def test_grok_1(name: str) -> None:
    tensors = grok_1()
    decisions = decide(named(name), tensors, ModelFacts("grok", 64, n_expert=8, groups=6))
    expected = {
        tensor.replace("layer_output_norm", "post_ffw_norm"): kind
        for tensor, kind in expected_types(GROK_1[name]).items()
    }
    assert chosen_types(tensors, decisions) == expected
    check_sizes(tensors, decisions, GROK_1[name]["_size"])


def model(described: dict[str, Any]) -> Named:
    def full(name: str) -> str:
        return name if name.endswith(".bias") else f"{name}.weight"

    outside = [(full(name), tuple(shape)) for name, shape in described["outside"].items()]
    return outside + [
        (full(f"blk.{layer}.{name}"), tuple(shape))
        for layer in range(described["metadata"]["block_count"])
        for name, shape in described["layer"].items()
    ]


def model_facts(described: dict[str, Any], *, has_importance: bool = False) -> ModelFacts:
    architecture = described["architecture"]
    metadata = {f"{architecture}.{key}": value for key, value in described["metadata"].items()}
    metadata["general.architecture"] = architecture
    return facts_from_metadata(metadata, has_importance=has_importance)


def overrides(arguments: Sequence[str]) -> list[Override]:
    texts = [text for text in arguments if "=" in text]
    split = [text.split("=") for text in texts]
    return [
        Override(re.compile(pattern), TYPES[kind.upper()], f"rule {text}")
        for (pattern, kind), text in zip(split, texts, strict=True)
    ]


def decided(tensors: Named, described: dict[str, Any], run: dict[str, Any]) -> list[Decision]:
    arguments = run["arguments"]
    facts = model_facts(described, has_importance="--imatrix" in arguments)
    recipe, pure = named(run["type"]), "--pure" in arguments
    return decide(recipe, tensors, facts, overrides(arguments), pure=pure)


@pytest.mark.parametrize("name", MODELS)
def test_other_models(name: str) -> None:
    """Every recipe, some with an importance matrix or overrides; the order of tensors is free."""
    described = MODELS[name]["model"]
    tensors = model(described)[::-1]
    runs = MODELS[name]["runs"]
    assert {run["type"] for run in runs} == PUBLIC_NAMES
    for run in runs:
        if "_refused" in run:
            with pytest.raises(LayoutError, match="no other type stands in for it"):
                decided(tensors, described, run)
            continue
        decisions = decided(tensors, described, run)
        expected = {tensor: "F32" for tensor, _ in tensors} | expected_types(run)
        assert chosen_types(tensors, decisions) == expected, run
        check_sizes(tensors, decisions, run["_size"])
        if "--imatrix" not in run["arguments"]:
            needed = any(decision.needs_importance for decision in decisions)
            assert needed == run["_requires_importance"], run


def test_importance_changes_no_other_decision() -> None:
    """Where no run with an importance matrix is listed, it made no difference."""
    for entry in MODELS.values():
        listed = {run["type"] for run in entry["runs"] if "--imatrix" in run["arguments"]}
        tensors = model(entry["model"])
        for name in PUBLIC_NAMES - listed - {"Q1_0"}:
            plain, informed = (
                chosen_types(
                    tensors,
                    decided(tensors, entry["model"], {"type": name, "arguments": arguments}),
                )
                for arguments in ([], ["--imatrix"])
            )
            assert plain == informed, name


def test_every_rule_decides_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of the table is there in vain: each gives the type of some tensor."""
    used = set()
    applies = Rule.applies

    def spy(rule: Rule, recipe: str, case: Case) -> bool:
        applied = applies(rule, recipe, case)
        if applied:
            used.add(id(rule))
        return applied

    monkeypatch.setattr(Rule, "applies", spy)
    for entry in MODELS.values():
        for run in entry["runs"]:
            if "_refused" not in run:
                decided(model(entry["model"]), entry["model"], run)
    unused = [
        (kind, rule) for kind, rules in RULES.items() for rule in rules if id(rule) not in used
    ]
    assert unused == []


def test_names_and_file_types() -> None:
    from gguf.constants import LlamaFileType

    assert {
        rule_name for rules in RULES.values() for rule in rules for rule_name in rule.recipes
    } <= set(RECIPES)
    for name, recipe in RECIPES.items():
        member = "ALL_F32" if name == "F32" else f"MOSTLY_{name}"
        if name in LlamaFileType.__members__ or member in LlamaFileType.__members__:
            assert LlamaFileType[member] == recipe.file_type
    assert RECIPES["MXFP4"].file_type == RECIPES["MXFP4_MOE"].file_type


def test_plain_types_are_pure() -> None:
    tensors = model(MODELS["mixtral-32"]["model"])
    facts = model_facts(MODELS["mixtral-32"]["model"])
    for name in ("MXFP4", "NVFP4"):
        types = set(chosen_types(tensors, decide(RECIPES[name], tensors, facts)).values())
        assert types == {name, "F32"}


ROUTER = r"blk\.\d+\.ffn_gate_inp\.weight"


def override(pattern: str, kind: str) -> Override:
    return Override(re.compile(pattern), TYPES[kind], f"rule {pattern}={kind}")


def test_router_follows_its_whole_name_only() -> None:
    tensors = model(MODELS["grok-5"]["model"])
    facts = model_facts(MODELS["grok-5"]["model"])
    types = chosen_types(
        tensors, decide(named("Q4_K_M"), tensors, facts, [override("ffn_gate", "Q5_0")])
    )
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_gate_exps.weight"] == "Q5_0"
    types = chosen_types(
        tensors, decide(named("Q4_K_M"), tensors, facts, [override(ROUTER, "F16")])
    )
    assert types["blk.0.ffn_gate_inp.weight"] == "F16"
    assert types["blk.0.ffn_gate_exps.weight"] == "Q4_K"


@pytest.mark.parametrize("pattern", [".*", r"blk\..*", r".*weight", r".*ffn_gate.*"])
def test_patterns_of_matrices_name_no_others(pattern: str) -> None:
    tensors = model(MODELS["grok-5"]["model"])
    facts = model_facts(MODELS["grok-5"]["model"])
    types = chosen_types(
        tensors, decide(named("Q4_K_M"), tensors, facts, [override(pattern, "Q5_0")])
    )
    assert types["blk.0.ffn_gate_exps.weight"] == "Q5_0"
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_vectors_follow_no_rule_of_blocks() -> None:
    """As in llama-quantize, so that a rule can be for all that a layer has."""
    tensors = model(MODELS["grok-5"]["model"])
    facts = model_facts(MODELS["grok-5"]["model"])
    rules = [override(r"blk\.0\..*", "Q8_0"), override(r"blk\..*norm\.weight", "F16")]
    types = chosen_types(tensors, decide(named("Q4_K_M"), tensors, facts, rules))
    assert types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F16"
    candidates = rule_candidates(tensors, facts)
    assert not [*unfollowed_notes(rules, candidates, "")]
    [note] = unfollowed_notes([override(r".*attn_norm\.weight", "Q8_0")], candidates, "")
    assert note.endswith("such as blk.0.attn_norm.weight, which can be F32, F16 or BF16")
    [note] = unfollowed_notes([override(r"blk\.99\.", "Q8_0")], candidates, "")
    assert "did you mean" not in note


def test_override_that_nothing_stands_in_for() -> None:
    described = MODELS["llama-rows-of-32"]["model"]
    tensors, facts = model(described), model_facts(described)
    problem = "blk.0.ffn_down.weight: rows of 480 do not fill NVFP4 blocks of 64, and no other type"
    with pytest.raises(LayoutError, match=problem):
        decide(named("Q8_0"), tensors, facts, [override("ffn_down", "NVFP4")])


def test_fallbacks_are_told() -> None:
    described = MODELS["llama-rows-of-32"]["model"]
    tensors, facts = model(described), model_facts(described)
    decisions = decide(named("Q4_K_M"), tensors, facts)
    reasons = {name: d.fallback for (name, _), d in zip(tensors, decisions, strict=True)}
    assert reasons["blk.2.ffn_gate.weight"] == "rows of 320 do not fill Q4_K blocks"
    assert reasons["blk.2.attn_norm.weight"] is None


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (64, 256), True),
        ("blk.0.attn_q.bias", (256,), False),
        ("blk.0.attn_q.weight", (1, 256), False),
        ("blk.0.attn_q.weight", (256, 1), True),
        ("blk.0.ffn_gate_inp.weight", (8, 256), False),
        ("blk.0.ssm_conv1d.weight", (256, 4), False),
        ("position_embd.weight", (128, 256), False),
        ("blk.0.hc_attn.weight", (128, 256), True),
    ],
)
def test_what_is_quantized(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_quantized(name, shape, "llama") == expected


def test_glm_5() -> None:
    tensors = [
        ("blk.0.hc_attn.weight", (128, 256)),
        ("blk.0.attn_q_a.weight", (128, 256)),
        ("blk.0.attn_output.weight", (256, 256)),
    ]
    decisions = decide(named("Q4_K_S"), tensors, ModelFacts("glm5-next", 4))
    assert list(chosen_types(tensors, decisions).values()) == ["F32", "Q8_0", "Q4_K"]


def test_facts_from_metadata() -> None:
    metadata = {
        "general.architecture": "deci",
        "deci.block_count": 80,
        "deci.attention.head_count": [64, 32],
        "deci.attention.head_count_kv": [8, 32],
    }
    facts = facts_from_metadata(metadata, has_importance=False)
    assert facts == ModelFacts("deci", 80, n_expert=0, groups=8)
    assert facts.is_70b
    assert facts_from_metadata({}, has_importance=True) == ModelFacts("", 0, 0, 0, True)
