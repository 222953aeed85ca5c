"""What SGLang 0.5.23 asks of a directory: names, shapes, config fields, names of modules.

SGLang has no CPU path, so its loader cannot run here. The tables say what it allocates and reads:
srt/models/grok.py, srt/layers/quantization/{compressed_tensors,gptq,awq}, srt/layers/moe/
fused_moe_triton/layer.py of https://pypi.org/project/sglang/0.5.23. Its kernels for packed experts
refuse Grok's GELU (`assert activation == "silu"`); only `--quantization humming` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

import weightcast
from weightcast.converters.families.grok1.modules import ATTENTION, EXPERT, MODULES, Module
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.recipes.weight_types import directory_type
from weightcast.converters.targets.quantization_config import quantization_config

PACKED = [
    *("int8-g32", "int8-g32-gptq", "int4-g32", "int4-g32-asym"),
    *("int4-g32-gptq", "int4-g32-gptq_v2", "int4-g32-awq", "int4-g32-asym-awq"),
]
NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
# Its own names of modules, which the patterns of a quantization_config meet: attention is built
# with the prefix "attn", experts with none; compressed-tensors looks them up by three matrices.
ATTENTION_MODULES = ("attn.qkv_proj", "attn.o_proj")
EXPERT_MODULES = {"compressed-tensors": (".0.gate_proj", ".0.up_proj", ".0.down_proj")}

Shape = tuple[int, ...]


def parts(quantization: dict[str, Any] | None, n_out: int, n_in: int) -> dict[str, Shape]:
    """The parameters of a linear layer [out, in]."""
    if quantization is None:
        return {"weight": (n_out, n_in)}
    method = quantization["quant_method"]
    arguments = quantization
    if method == "compressed-tensors":
        (group,) = quantization["config_groups"].values()
        arguments = group["weights"]
    bits = arguments["num_bits" if method == "compressed-tensors" else "bits"]
    groups, word = n_in // arguments["group_size"], 32 // bits
    if method == "compressed-tensors":
        shapes: dict[str, Shape] = {
            "weight_packed": (n_out, n_in // word),
            "weight_scale": (n_out, groups),
            "weight_shape": (2,),
        }
        if not arguments["symmetric"]:
            shapes["weight_zero_point"] = (n_out // word, groups)
        return shapes
    shapes = {"qzeros": (groups, n_out // word), "scales": (groups, n_out)}
    if method == "gptq":
        return shapes | {"qweight": (n_in // word, n_out), "g_idx": (n_in,)}
    assert method == "awq"
    return shapes | {"qweight": (n_in, n_out // word)}


def out_axis(part: str) -> int | None:
    """Along which a part's output channels lie; None: it says something of the whole matrix."""
    if part in ("weight_shape", "g_idx"):
        return None
    return 1 if part in ("qweight", "qzeros", "scales") else 0


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """All parameters of SGLang's model by name; it holds some of the experts' transposed."""
    hidden, ffn = config["hidden_size"], config["moe_intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    experts, vocabulary = config["num_local_experts"], config["vocab_size"]
    quantization = config.get("quantization_config")
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (hidden,) for norm in NORMS}
        shapes[f"{at}.block_sparse_moe.gate.weight"] = (experts, hidden)
        for name, (n_out, n_in) in {
            "qkv_proj": (query + 2 * key, hidden),
            "o_proj": (hidden, query),
        }.items():
            for part, shape in parts(quantization, n_out, n_in).items():
                shapes[f"{at}.self_attn.{name}.{part}"] = shape
        for name, (n_out, n_in) in {"w13": (2 * ffn, hidden), "w2": (hidden, ffn)}.items():
            for part, shape in parts(quantization, n_out, n_in).items():
                shapes[f"{at}.block_sparse_moe.experts.{name}_{part}"] = (experts, *shape)
    return shapes


def slot(
    name: str, config: dict[str, Any], filled: dict[str, NDArray[np.bool_]]
) -> tuple[str, NDArray[np.bool_]]:
    """The parameter that a tensor goes to, and the region of it."""
    part = name.rpartition(".")[2]
    axis = out_axis(part)
    query, key = config["num_attention_heads"], config["num_key_value_heads"]
    heads = query + 2 * key
    first_head = {"q": (0, query), "k": (query, key), "v": (query + key, key)}
    if found := re.search(r"\.([qkv])_proj\.", name):
        target = name.replace(found[0], ".qkv_proj.")
        region = filled[target]
        if axis is None:
            return target, region
        start, count = first_head[found[1]]
        unit = region.shape[axis] // heads
        return target, _cut(region, axis, start * unit, count * unit)
    if found := re.search(r"experts\.(\d+)\.(w[123])\.", name):
        stacked = "w2_" if found[2] == "w2" else "w13_"
        target = name.replace(found[0], f"experts.{stacked}")
        region = filled[target][int(found[1])]
        if axis is None or found[2] == "w2":
            return target, region
        half = region.shape[axis] // 2
        return target, _cut(region, axis, half if found[2] == "w3" else 0, half)
    return name, filled[name]


def _cut(region: NDArray[np.bool_], axis: int, start: int, count: int) -> NDArray[np.bool_]:
    return region[start : start + count] if axis == 0 else region[:, start : start + count]


def tensors(directory: Path) -> Iterator[tuple[str, Shape, str]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                yield name, tuple(piece.get_shape()), piece.get_dtype()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of each type, of a model whose scales each cover 32 values or more."""
    folder = tmp_path_factory.mktemp("sglang")
    spec = tiny_spec(num_kv_heads=4, widening_factor=3, num_experts=2, vocab_size=128)
    source = write_checkpoint(folder / "source", spec)
    outputs = [folder / f"m-{kind}" for kind in ("bf16", *PACKED)]
    weightcast.convert(source, *outputs, no_tokenizer=True)
    return folder


@pytest.mark.parametrize("kind", ["bf16", *PACKED])
def test_every_parameter_is_filled_and_every_tensor_used(directories: Path, kind: str) -> None:
    directory = directories / f"m-{kind}"
    config = json.loads((directory / "config.json").read_bytes())
    filled = {name: np.zeros(shape, np.bool_) for name, shape in parameters(config).items()}
    for name, shape, _ in tensors(directory):
        target, region = slot(name, config, filled)
        assert region.shape == shape, f"{name} does not fit {target}"
        region[...] = True
    assert [name for name, whole in filled.items() if not whole.all()] == []


def test_the_router_is_float32_and_words_are_int32(directories: Path) -> None:
    """It holds the router in float32, and codes in words of 32 bits."""
    for kind in PACKED:
        for name, _, dtype in tensors(directories / f"m-{kind}"):
            if name.endswith(".gate.weight"):
                assert dtype == "F32"
            if name.endswith(("packed", "zero_point", "qweight", "qzeros", "g_idx")):
                assert dtype == "I32"


def test_config_says_what_it_reads(directories: Path) -> None:
    config = json.loads((directories / "m-bf16" / "config.json").read_bytes())
    # Read without a default.
    assert {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "num_local_experts", "num_experts_per_tok", "vocab_size"),
        *("rms_norm_eps", "max_position_embeddings", "embedding_multiplier_scale"),
        *("output_multiplier_scale", "pad_token_id"),
    } <= config.keys()
    assert config["architectures"] == ["Grok1ForCausalLM"]
    # Defaults of its own that would be wrong: split files under tensor parallelism, heads of 128.
    assert config["load_presharded_moe"] is False
    assert config["head_dim"] == 16
    assert {"rope_theta", "attn_logit_softcapping", "moe_intermediate_size"} <= config.keys()
    # Fields that would turn on what Grok-1 does not have.
    assert (
        not {
            *("residual_moe", "rope_type", "attn_temperature_len", "final_logit_softcapping"),
            *("load_presharded_attn", "load_presharded_mlp", "load_presharded_embedding"),
            *("replicate_lm_head", "merge_gate_up"),
        }
        & config.keys()
    )


def is_quantized(quantization: dict[str, Any], module: str) -> bool:
    """Whether SGLang builds a module with packed weights."""
    method = quantization["quant_method"]
    if method == "awq":
        return not any(word in module for word in quantization["modules_to_not_convert"])
    if method == "gptq":
        skipped = [rule[2:] for rule in quantization["dynamic"] if rule.startswith("-:")]
        return not any(re.match(pattern, module) for pattern in skipped)
    (group,) = quantization["config_groups"].values()
    assert group["targets"] == ["Linear"]  # all that humming looks for
    return not any(
        re.match(name[3:], module) if name.startswith("re:") else name == module
        for name in quantization["ignore"]
    )


@pytest.mark.parametrize("name", ["int8", *PACKED])
def test_patterns_meet_its_names_of_modules(name: str) -> None:
    """In `int8` attention stays bfloat16, in all others it is packed; experts always are."""
    kind = directory_type(name)
    assert kind is not None
    types = {Module(0, 0, matrix): kind.experts for matrix in EXPERT}
    types |= {Module(0, None, matrix): kind.attention for matrix in ATTENTION}
    quantization = quantization_config(kind.layout, types, MODULES)
    assert quantization is not None
    for module in EXPERT_MODULES.get(quantization["quant_method"], ("",)):
        assert is_quantized(quantization, module)
    for module in ATTENTION_MODULES:
        assert is_quantized(quantization, module) == (name != "int8")
    assert not is_quantized(quantization, "lm_head")
