"""quantization_config: what the readers' own classes make of it, and the traps of each reader."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.formats.packed.packing import OF_INTEGERS, fp8_by
from weightcast.errors import LayoutError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import Scheme
from weightcast.quant.types import MXFP4, NVFP4, Q4_K, Fp8Type, GroupType

INT4, INT8 = GroupType(4, 128), GroupType(8, 128)
LINEAR = ("Linear",)
CT = LAYOUTS["compressed-tensors"]
IGNORE = ("lm_head", "re:.*attn.*", "re:.*gate$")


def config_of(layout: str, *schemes: Scheme, **options):
    config = LAYOUTS[layout].quantization_config(schemes, **options)
    assert json.loads(json.dumps(config)) == config
    return config


def test_compressed_tensors_int8_as_a_whole():
    assert config_of("compressed-tensors", Scheme(LINEAR, GroupType(8, 256)), ignore=IGNORE) == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*attn.*", "re:.*gate$"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": True,
                    "dynamic": False,
                    "strategy": "group",
                    "group_size": 256,
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
    }


def test_compressed_tensors_channels_say_minus_one():
    config = config_of("compressed-tensors", Scheme(LINEAR, GroupType(8, 0, symmetric=False)))
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("channel", -1)
    assert weights["symmetric"] is False


ALL_TYPES = [INT4, GroupType(8, 0, False), MXFP4, NVFP4, Fp8Type(), Fp8Type(128, 128)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
@pytest.mark.parametrize("weight_type", ALL_TYPES, ids=str)
def test_compressed_tensors_accepts_it_and_finds_the_same_format(weight_type):
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = CT.quantization_config([Scheme(LINEAR, weight_type)], IGNORE)
    read = QuantizationConfig.model_validate(config)
    scheme = read.config_groups["group_0"]
    assert read.format == scheme.format == config["format"]
    assert read.ignore == list(IGNORE)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    assert compressor.can_compress(torch.nn.Linear, scheme)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
def test_compressed_tensors_mixed():
    from compressed_tensors.quantization import QuantizationConfig

    same = [Scheme(("re:.*attn.*",), INT8), Scheme(LINEAR, INT4)]
    assert CT.quantization_config(same)["format"] == "pack-quantized"
    schemes = [*same, Scheme(("re:.*w2$",), MXFP4)]
    config = CT.quantization_config(schemes)
    assert config["format"] == "mixed-precision"
    read = QuantizationConfig.model_validate(config)
    found = {
        key: (group.format, group.weights.num_bits) for key, group in read.config_groups.items()
    }
    assert found == {
        "group_0": ("pack-quantized", 8),
        "group_1": ("pack-quantized", 4),
        "group_2": ("mxfp4-pack-quantized", 4),
    }


@pytest.mark.parametrize(
    ("block", "strategy", "inputs"), [(0, "channel", "token"), (128, "block", "group")]
)
def test_fp8_quantizes_inputs_on_the_fly(block, strategy, inputs):
    group = CT.quantization_config([Scheme(LINEAR, fp8_by(block))])["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == strategy
    assert group["weights"].get("block_structure") == ([block, block] if block else None)
    assert group["input_activations"]["strategy"] == inputs
    assert group["input_activations"]["dynamic"] is True
    assert group["weights"]["dynamic"] is False


def test_gptq_as_a_whole():
    config = config_of(
        "gptq",
        Scheme(LINEAR, INT8),
        Scheme(("re:.*experts.*", "model.last"), GroupType(4, 0)),
        ignore=("re:.*gate$", "lm_head"),
        block_modules=("q_proj", "k_proj"),
    )
    assert config == {
        "quant_method": "gptq",
        "bits": 8,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {
            "-:.*gate$": {},
            "-:lm_head$": {},
            "+:.*experts.*": {"bits": 4, "group_size": -1, "sym": True},
            r"+:model\.last$": {"bits": 4, "group_size": -1, "sym": True},
        },
        "modules_in_block_to_quantize": [["q_proj", "k_proj"]],
    }
    for rule in config["dynamic"]:
        re.compile(rule[2:])


def test_gptq_v2_says_so():
    config = config_of("gptq_v2", Scheme(LINEAR, GroupType(4, 32, symmetric=False)))
    assert (config["checkpoint_format"], config["sym"]) == ("gptq_v2", False)
    assert "modules_in_block_to_quantize" not in config


def test_awq_as_a_whole():
    ignore = ("lm_head", "re:.*attn.*", "re:.*gate$", r"re:.*block\.norm.*")
    assert config_of("awq", Scheme(LINEAR, INT4), Scheme(("x",), INT4), ignore=ignore) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", "attn", "gate", "block.norm"],
    }
    assert config_of("awq", Scheme(LINEAR, GroupType(4, 0)))["group_size"] == -1


def test_weightcast_as_a_whole():
    assert config_of("weightcast", Scheme(LINEAR, INT4), ignore=("lm_head",)) == {
        "quant_method": "weightcast",
        "groups": [{"targets": ["Linear"], "bits": 4, "group_size": 128, "symmetric": True}],
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize("layout", OF_INTEGERS)
def test_nothing_quantized_is_refused(layout):
    with pytest.raises(LayoutError, match=r"^nothing is quantized"):
        config_of(layout)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "awq", "weightcast"])
def test_floats_are_refused_by_layouts_of_integers(layout):
    with pytest.raises(LayoutError, match=rf"^{layout} stores integers, not "):
        config_of(layout, Scheme(LINEAR, MXFP4))


def test_what_a_layout_cannot_say_is_refused():
    with pytest.raises(LayoutError, match=r"^awq has one type for all modules: use "):
        config_of("awq", Scheme(LINEAR, INT4), Scheme(("x",), GroupType(4, 32)))
    with pytest.raises(LayoutError, match=r"^awq ignores modules by a part of their names, not "):
        config_of("awq", Scheme(LINEAR, INT4), ignore=("re:.*(a|b).*",))
    with pytest.raises(LayoutError, match=r"^awq stores 4 bits, not 8$"):
        config_of("awq", Scheme(LINEAR, INT8))
    with pytest.raises(LayoutError, match=r"^gptq has no zero point 0: asymmetric groups need"):
        config_of("gptq", Scheme(LINEAR, GroupType(4, 32, symmetric=False)))
    with pytest.raises(LayoutError, match=r"^Q4_K has no form in compressed-tensors$"):
        config_of("compressed-tensors", Scheme(LINEAR, Q4_K))
