"""Patterns of a quantization_config: every reader, by its own names of modules, finds the types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match, match_targets
from transformers.quantizers.quantizers_utils import should_convert_module

from weightcast.converters.families.grok1.modules import ATTENTION, EXPERT, FUSED
from weightcast.converters.families.grok1.modules import MODULES as NAMES
from weightcast.converters.graph import Module
from weightcast.converters.targets.quantization_config import quantization_config, reader_notes
from weightcast.quant.types import BF16, F32, MXFP4, NVFP4, Fp8Type, GroupType, WeightType

LAYERS, EXPERTS = 12, 3  # two digits: layer 1 is not layer 11
MATRICES = [*product(range(EXPERTS), EXPERT), *((None, name) for name in ATTENTION)]
MODULES = [Module(layer, *matrix) for layer in range(LAYERS) for matrix in MATRICES]
INT4, INT8 = GroupType(4, 128), GroupType(8, 128)
POOLS: dict[str, tuple[WeightType, ...]] = {
    "compressed-tensors": (
        *(INT4, GroupType(4, 32, symmetric=False), INT8, GroupType(8, 0), MXFP4, NVFP4),
        *(Fp8Type(), BF16, F32),
    ),
    "gptq": (INT4, GroupType(4, 32), INT8, BF16),
    "awq": (INT4, BF16, F32),
}
Config = Mapping[str, Any]
Types = Mapping[Module, WeightType]


def unit(module: Module) -> str:
    """What vLLM and SGLang have one type for."""
    if module.expert is not None:
        return "experts"
    return "qkv_proj" if module.name in FUSED else "o_proj"


def random_types(layout: str, seed: int, *, by: str) -> Types:
    """A type for every module of a model; by layer and unit, by unit alone, or by module."""
    rng = np.random.default_rng(seed)
    pool = POOLS[layout]
    pool = [pool[n] for n in rng.permutation(len(pool))[: rng.integers(2, 4)]]
    chosen: dict[Any, WeightType] = {}
    rare = rng.random() < 0.5  # most modules of one type, as rules make them

    def draw() -> WeightType:
        return pool[0] if rare and rng.random() < 0.8 else pool[rng.integers(len(pool))]

    for module in MODULES:
        keys = {"unit": unit(module), "layer": (module.layer, unit(module)), "module": module}
        chosen.setdefault(keys[by], draw())
    keyed = {"unit": unit, "layer": lambda m: (m.layer, unit(m)), "module": lambda m: m}
    return {module: chosen[keyed[by](module)] for module in MODULES}


def arguments(kind: WeightType) -> Any:
    """What of a type can be told from a config: None for floats."""
    if isinstance(kind, GroupType):
        return (kind.bits, kind.group_size or -1, kind.symmetric)
    return None if kind.is_plain else kind


def said(config: Config, group: Mapping[str, Any]) -> Any:
    """The same of one config group of compressed-tensors."""
    weights = group["weights"]
    if weights["type"] == "int":
        return (weights["num_bits"], weights["group_size"], weights["symmetric"])
    return {
        "mxfp4-pack-quantized": MXFP4,
        "nvfp4-pack-quantized": NVFP4,
        "float-quantized": Fp8Type(),
    }[group["format"]]


def transformers_name(module: Module) -> str:
    owner = "self_attn" if module.expert is None else f"block_sparse_moe.experts.{module.expert}"
    return f"model.layers.{module.layer}.{owner}.{module.name}"


def vllm_names(module: Module) -> Iterator[str]:
    """Of the attention the fused module; of experts the pseudo-names, those of expert 0."""
    layer = f"model.layers.{module.layer}"
    if module.expert is None:
        yield f"{layer}.attn.{unit(module)}"
    elif module.expert == 0:
        yield f"{layer}.moe_block.experts.0.{EXPERT[module.name]}"


def sglang_names(module: Module) -> Iterator[str]:
    if module.expert is None:
        yield f"attn.{unit(module)}"
    elif module.expert == 0:
        yield f".0.{EXPERT[module.name]}"


def matches(name: str, target: str) -> bool:
    """_is_equal_or_regex_match in vLLM 0.24's and SGLang 0.5.23's compressed_tensors/utils.py."""
    return bool(re.match(target[3:], name)) if target.startswith("re:") else target == name


def shards(name: str) -> list[str]:
    """The names that vLLM and SGLang ask for before they fuse q, k and v."""
    if not name.endswith("qkv_proj"):
        return [name]
    return [name.replace("qkv_proj", shard) for shard in FUSED]


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """should_ignore_layer, which raises unless all shards agree."""
    found = {any(matches(shard, target) for target in ignore) for shard in shards(name)}
    assert len(found) == 1, name
    return found.pop()


def in_engine(config: Config, name: str, class_name: str) -> Any:
    """get_scheme_dict: what is ignored, then find_matched_target: names, then classes."""
    if is_ignored(name, config["ignore"]):
        return None
    by_target = {t: group for group in config["config_groups"].values() for t in group["targets"]}
    # Classes are met by a part of their name: QKVParallelLinear; RoutedExperts stands for Linear.
    by_name = (target for target in by_target if matches(name, target))
    by_class = (t for t in by_target if t == class_name or t in class_name or t == "Linear")
    return said(config, by_target[next(by_name, None) or next(by_class)])


def in_compressed_tensors(config: Config, name: str) -> Any:
    """What apply_quantization_config of compressed-tensors does, by its own functions."""
    linear = torch.nn.Linear(1, 1)
    checked = QuantizationConfig.model_validate(config)
    by_target = {t: n for n, group in checked.config_groups.items() for t in group.targets}
    if is_match(name, linear, checked.ignore):
        return None
    return said(
        config, config["config_groups"][by_target[match_targets(name, linear, by_target)[0]]]
    )


def in_gptq(config: Config, name: str) -> Any:
    """get_dynamic_override in vLLM's gptq_utils.py: the first rule that matches counts."""
    rule: Mapping[str, Any] = {}
    for pattern, given in config["dynamic"].items():
        if re.match(pattern[2:], name):
            if pattern.startswith("-:"):
                return None
            rule = given
            break
    return tuple(rule.get(key, config[key]) for key in ("bits", "group_size", "sym"))


def is_built_packed(config: Config, name: str) -> bool:
    """GPTQQuantizer.convert_model in optimum: modules whose name ends like one that is listed."""
    (listed,) = config["modules_in_block_to_quantize"]
    return any(name.endswith(end) for end in listed)


def is_packed_in_vllm(config: Config, name: str) -> bool:
    """is_layer_gptq_quantized, which raises unless all shards agree."""
    (listed,) = config["modules_in_block_to_quantize"]
    found = {any(end in shard for end in listed) for shard in shards(name)}
    assert len(found) == 1, name
    return found.pop()


def in_awq(config: Config, name: str) -> Any:
    """is_layer_skipped with skip_with_substr: words anywhere in the name, or in all shards."""
    words = config["modules_to_not_convert"]
    skipped = {any(word in shard for word in words) for shard in shards(name)}
    if any(word in name for word in words):
        return None
    assert len(skipped) == 1, name
    return None if skipped.pop() else (config["bits"], config["group_size"], True)


def configured(layout: str, types: Types) -> Config:
    config = quantization_config(layout, types, NAMES)
    assert config is not None
    return config


@pytest.mark.parametrize("by", ["unit", "layer", "module"])
@pytest.mark.parametrize("seed", range(8))
def test_compressed_tensors_in_transformers(by: str, seed: int) -> None:
    types = random_types("compressed-tensors", seed, by=by)
    if all(kind.is_plain for kind in types.values()):
        assert quantization_config("compressed-tensors", types, NAMES) is None
        return
    config = configured("compressed-tensors", types)
    for module, kind in types.items():
        found = in_compressed_tensors(config, transformers_name(module))
        assert found == arguments(kind), module
    assert in_compressed_tensors(config, "lm_head") is None


@pytest.mark.parametrize("by", ["unit", "layer"])
@pytest.mark.parametrize("seed", range(20))
def test_compressed_tensors_in_vllm_and_sglang(by: str, seed: int) -> None:
    types = random_types("compressed-tensors", seed, by=by)
    if all(kind.is_plain for kind in types.values()):
        return
    config = configured("compressed-tensors", types)
    for module, kind in types.items():
        class_name = "QKVParallelLinear" if module.expert is None else "RoutedExperts"
        for name in vllm_names(module):
            assert in_engine(config, name, class_name) == arguments(kind), name
        for name in sglang_names(module) if by == "unit" else ():
            assert in_engine(config, name, class_name) == arguments(kind), name


@pytest.mark.parametrize("by", ["unit", "layer", "module"])
@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("seed", range(12))
def test_gptq_and_awq(layout: str, by: str, seed: int) -> None:
    types = random_types(layout, seed, by=by)
    if all(kind.is_plain for kind in types.values()):
        return
    config = configured(layout, types)
    read = in_gptq if layout == "gptq" else in_awq
    for module, kind in types.items():
        name = transformers_name(module)
        assert read(config, name) == arguments(kind), module
        if layout == "gptq":
            assert is_built_packed(config, name) != kind.is_plain, module
            for engine_name in vllm_names(module) if by != "module" else ():
                if module.expert is None:
                    assert is_packed_in_vllm(config, engine_name) != kind.is_plain, module
        if layout == "awq":  # transformers itself looks at the ends of names
            words = config["modules_to_not_convert"]
            assert should_convert_module(name, words) != kind.is_plain, module
        if by == "module":
            continue
        # Of experts, vLLM's GPTQ and AWQ only ask for all at once.
        engine = [re.sub(r"(experts)\..*", r"\1", name) for name in vllm_names(module)]
        if by == "unit" and layout == "gptq":
            engine += ["" if name.startswith(".0") else name for name in sglang_names(module)]
        if by == "unit" and layout == "awq" and module.expert is None:
            engine += sglang_names(module)
        for name in engine:
            assert read(config, name) == arguments(kind), name


def given(**by_unit: WeightType) -> dict[Module, WeightType]:
    return {module: by_unit.get(unit(module), INT4) for module in MODULES}


def test_patterns_are_short_where_layers_agree() -> None:
    types = given(qkv_proj=INT8, o_proj=INT8)
    groups = configured("compressed-tensors", types)["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["re:.*attn.*"], ["Linear"]]
    types |= {m: INT4 for m in MODULES if m.expert is None and m.layer not in (0, 1, 11)}
    groups = configured("compressed-tensors", types)["config_groups"]
    layers = [r"re:.*layers\.(0|1|11)\.(self_)?attn\..*"]
    assert [group["targets"] for group in groups.values()] == [layers, ["Linear"]]
    floats = configured("compressed-tensors", given(qkv_proj=BF16, o_proj=F32))
    assert floats["ignore"] == ["lm_head", "re:.*gate$", "re:.*attn.*"]
    assert configured("gptq", given(experts=INT8))["bits"] == 8  # what most matrices have


def test_values_are_not_taken_for_qkv() -> None:
    """Of v_proj alone, `.*v_proj` would also match qkv_proj."""
    types = given() | {m: INT8 for m in MODULES if m.name == "v_proj"}
    config = configured("compressed-tensors", types)
    assert in_engine(config, "model.layers.0.attn.qkv_proj", "QKVParallelLinear") == (4, 128, True)


@pytest.mark.parametrize(
    ("layout", "types", "words"),
    [
        ("compressed-tensors", given(), []),
        (
            "gptq",
            given(qkv_proj=INT8),
            ["transformers cannot load this: optimum", "llama.cpp's converter takes all"],
        ),
        ("gptq", given(qkv_proj=BF16), []),
        (
            "compressed-tensors",
            given(experts=BF16, qkv_proj=INT8),
            ["llama.cpp's converter refuses"],
        ),
        ("compressed-tensors", given(qkv_proj=INT8), ["SGLang's humming", "llama.cpp's converter"]),
        (
            "compressed-tensors",
            given() | {Module(11, 2, "w2"): BF16},
            ["vLLM and SGLang cannot load this: they need one type .* layer 11 has several"],
        ),
        (
            "gptq",
            given() | {Module(3, None, "k_proj"): GroupType(4, 32)},
            ["vLLM .* layer 3 has", "transformers cannot load this"],
        ),
        ("awq", given() | {Module(3, None, "o_proj"): BF16}, ["SGLang cannot load this: layers"]),
        ("weightcast", given() | {Module(3, 1, "w1"): INT8, Module(4, None, "q_proj"): BF16}, []),
    ],
)
def test_readers_that_cannot_follow_are_named(layout: str, types: Types, words: list[str]) -> None:
    notes = list(reader_notes(layout, types, NAMES))
    assert len(notes) == len(words), notes
    for note, word in zip(notes, words, strict=True):
        assert re.match(word, note), note
