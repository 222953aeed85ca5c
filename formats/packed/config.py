"""What `quantization_config` in config.json says about packed weights, for each layout.

The keys are those that the readers ask for; where they read one differently, the value is the
one that all of them take. Sources: QuantizationConfig and QuantizationArgs of compressed-tensors
0.20; vllm/model_executor/layers/quantization/{gptq_marlin,awq_marlin}.py of vLLM 0.24.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from weightcast.errors import LayoutError
from weightcast.formats.packed.layout import Fp8Type, Scheme
from weightcast.quant.groups import GroupType
from weightcast.quant.types import MXFP4, NVFP4, QuantType

_REGEX: Final = "re:"
NO_ZERO_POINT_0: Final = "gptq has no zero point 0: asymmetric groups need gptq_v2"


def compressed_tensors_config(
    schemes: Sequence[Scheme], ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe any mix of groups, MXFP4, NVFP4 and FP8, a config group each."""
    _check_some(schemes)
    groups = [_config_group(scheme) for scheme in schemes]
    formats = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {f"group_{n}": group for n, group in enumerate(groups)},
    }


def _config_group(scheme: Scheme) -> dict[str, Any]:
    packing, weights, inputs = _arguments(scheme.type)
    return {
        "targets": list(scheme.targets),
        "weights": {"symmetric": True, "dynamic": False, **weights},
        "input_activations": inputs,
        "output_activations": None,
        "format": packing,
    }


def _arguments(
    weight_type: GroupType | Fp8Type | QuantType,
) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Give the format, the weights' arguments and those of the inputs."""
    if isinstance(weight_type, GroupType):
        size = weight_type.group_size
        weights: dict[str, Any] = {"num_bits": weight_type.bits, "type": "int"}
        weights["symmetric"] = weight_type.symmetric
        # vLLM's kernels for experts compare the size with -1; without one they refuse channels.
        weights |= {"strategy": "group" if size else "channel", "group_size": size or -1}
        return "pack-quantized", weights, None
    if isinstance(weight_type, Fp8Type):
        return "float-quantized", *_fp8_arguments(weight_type.block)
    weights = {"num_bits": 4, "type": "float"}
    if weight_type == MXFP4:
        return "mxfp4-pack-quantized", weights | {"strategy": "group", "group_size": 32}, None
    if weight_type == NVFP4:
        scale = {"strategy": "tensor_group", "group_size": 16}
        return "nvfp4-pack-quantized", weights | scale, None
    raise LayoutError(f"{weight_type.name} has no form in compressed-tensors")


def _fp8_arguments(block: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights by channel or block, and the inputs quantized on the fly as the kernels do."""
    floats = {"num_bits": 8, "type": "float"}
    inputs = floats | {"symmetric": True, "dynamic": True}
    if block:
        blocks = {"strategy": "block", "block_structure": [block, block]}
        return floats | blocks, inputs | {"strategy": "group", "group_size": block}
    return floats | {"strategy": "channel"}, inputs | {"strategy": "token"}


def gptq_config(
    schemes: Sequence[Scheme],
    ignore: Sequence[str],
    block_modules: Sequence[str],
    checkpoint_format: str,
) -> dict[str, Any]:
    """Describe GPTQ: the first scheme for all modules, `dynamic` rules for the others.

    Without `block_modules`, vLLM takes the names of the checkpoint for those of its own modules,
    and leaves those that are called differently unquantized and uninitialized.
    """
    _check_some(schemes)
    types = [_groups(scheme, checkpoint_format) for scheme in schemes]
    if checkpoint_format == "gptq" and not all(group_type.symmetric for group_type in types):
        raise LayoutError(NO_ZERO_POINT_0)
    dynamic: dict[str, dict[str, Any]] = {f"-:{_regex(name)}": {} for name in ignore}
    for scheme, group_type in zip(schemes[1:], types[1:], strict=True):
        said = _gptq_arguments(group_type)
        dynamic |= {f"+:{_regex(name)}": said for name in scheme.targets}
    config = {
        "quant_method": "gptq",
        **_gptq_arguments(types[0]),
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        "dynamic": dynamic,
    }
    if block_modules:
        config["modules_in_block_to_quantize"] = [list(block_modules)]
    return config


def _gptq_arguments(group_type: GroupType) -> dict[str, Any]:
    return {
        "bits": group_type.bits,
        "group_size": group_type.group_size or -1,
        "sym": group_type.symmetric,
    }


def awq_config(schemes: Sequence[Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """Describe AWQ: one type for all modules but those whose names contain an ignored word."""
    _check_some(schemes)
    types = {_groups(scheme, "awq") for scheme in schemes}
    if len(types) > 1:
        raise LayoutError("awq has one type for all modules: use compressed-tensors or gptq")
    group_type = types.pop()
    if group_type.bits != 4:
        raise LayoutError(f"awq stores 4 bits, not {group_type.bits}")
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_type.group_size or -1,
        # Symmetric weights have zero points too: 8 everywhere.
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [_word(name) for name in ignore],
    }


def weightcast_config(schemes: Sequence[Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """Describe our own layout; each file's header says the same of each of its matrices."""
    _check_some(schemes)
    groups = []
    for scheme in schemes:
        group_type = _groups(scheme, "weightcast")
        said = {"targets": list(scheme.targets), "bits": group_type.bits}
        groups.append(
            said | {"group_size": group_type.group_size, "symmetric": group_type.symmetric}
        )
    return {"quant_method": "weightcast", "groups": groups, "ignore": list(ignore)}


def _check_some(schemes: Sequence[Scheme]) -> None:
    if not schemes:
        raise LayoutError("nothing is quantized, so there is no quantization to describe")


def _groups(scheme: Scheme, layout: str) -> GroupType:
    if not isinstance(scheme.type, GroupType):
        raise LayoutError(f"{layout} stores integers, not {scheme.type}")
    return scheme.type


def _regex(name: str) -> str:
    """Say in a regular expression which names are meant; readers match from the start."""
    return name[len(_REGEX) :] if name.startswith(_REGEX) else re.escape(name) + "$"


def _word(name: str) -> str:
    """Say it as a part of names: `re:.*word.*` is all that AWQ knows beyond plain names."""
    word = re.sub(r"\.\*$|\$$", "", re.sub(r"^re:(\.\*)?", "", name)).replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", word):
        raise LayoutError(f"awq ignores modules by a part of their names, not by {name!r}")
    return word
