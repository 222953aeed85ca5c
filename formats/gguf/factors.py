"""Factors that lie beside weights: NAME.scale of NAME.weight, as llama.cpp's converter writes them.

    NAME.weight       blocks of NVFP4, whose scales are 8-bit floats
    NAME.scale        F32 [1], or [experts] of a stack: what llama.cpp multiplies each product by
    NAME.input_scale  likewise, for kernels that round activations too; no part of the weights

A weight is its blocks times its factor. llama.cpp's loader takes a factor beside certain tensors of
a layer whatever their type, beside the output matrix only for NVFP4, and refuses files with others.
Most of its models multiply the products of attention by it, and some those of feed-forward matrices
and experts; the rest ignore it, and run as if there were none.
Sources: `_repack_nvfp4` in conversion/base.py, the pass for ".scale" in src/llama-model.cpp, and
which of `wq_s`, `ffn_up_s` and so on the graphs in src/models/ use, of
https://github.com/ggml-org/llama.cpp (November 2026)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.quant.types import F32, NVFP4
from weightcast.text import shown

WEIGHT: Final = ".weight"
FACTOR: Final = ".scale"
INPUT_SCALE: Final = ".input_scale"
_OUTPUT: Final = "output.weight"
# What the loader takes a factor beside.
_LOADED: Final = re.compile(
    r"(?:blk\.\d+\.(?:attn_(?:q|k|v|qkv|output|gate)|ffn_(?:gate|up|down)(?:_shexp|_exps)?"
    r"|ssm_(?:in|out|alpha|beta)|nextn\.(?:eh_proj|shared_head_head))|fc|markov_w2)\.weight"
)
_FEED_FORWARD: Final = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)(_shexp|_exps)?\.weight")
_ATTENTION: Final = re.compile(r"blk\.\d+\.attn_(?:q|k|v|qkv|output)\.weight")
# Architectures whose graphs multiply by the factors of matrices of one model, shared experts, and
# experts; those of newer ones may do so too, but multiplied weights are right for all.
_MULTIPLYING: Final = {
    None: (
        *("bitnet", "cohere2", "cohere2moe", "deepseek32", "dflash", "dots3note", "gemma4"),
        *("glm-dsa", "hy_v3", "llama", "mistral3", "nanbeige", "nemotron_h", "qwen3", "qwen35"),
    ),
    "_shexp": (
        *("cohere2moe", "deepseek32", "dots3note", "glm-dsa", "hy_v3", "nemotron_h"),
        *("nemotron_h_moe", "qwen35moe", "qwen3next", "qwen4exp"),
    ),
    "_exps": (
        *("cohere2moe", "deepseek32", "dots3note", "gemma4", "glm-dsa", "hy_v3", "llama"),
        *("mellum", "mistral3", "nemotron_h", "nemotron_h_moe", "qwen35moe", "qwen3moe"),
        *("qwen3next", "qwen4exp"),
    ),
}
# Architectures with attention of their own, which ignores factors.
_NOT_OF_ATTENTION: Final = (
    *("bailingmoe3", "cogvlm", "eagle3", "gemma4-assistant", "glm5-next", "graniteswitch", "hy_v4"),
    *("kimi-k3", "kimi-linear", "mimo2", "openelm", "plamo2", "plamo3", "plm"),
)
_AGAIN: Final = "make the file again from the original weights"
# Of a stack; more are none.
_MAX_EXPERTS: Final = 4096


@dataclass(frozen=True, slots=True)
class Factors:
    """What lies beside weights: `of` has factors by the weight's name, one or one for each expert.

    `names` are the tensors that hold these, `input_scales` those that are about activations.
    """

    of: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    input_scales: frozenset[str] = frozenset()


def factor_name(weight: str, ending: str = FACTOR) -> str:
    """Name the factor of NAME.weight, or its other companion."""
    return weight.removesuffix(WEIGHT) + ending


def is_multiplied(architecture: str, weight: str, type_name: str) -> bool:
    """Tell whether llama.cpp multiplies by a factor beside a tensor of a model, in a type."""
    if weight == _OUTPUT:
        return type_name == NVFP4.name
    if _ATTENTION.fullmatch(weight):
        return architecture not in _NOT_OF_ATTENTION
    match = _FEED_FORWARD.fullmatch(weight)
    return match is not None and architecture in _MULTIPLYING[match[1]]


def read_factors(tensors: Mapping[str, StoredArray]) -> Factors:
    """Read the factors of all weights of a file, some bytes each.

    Beside NVFP4 every NAME.scale is a factor; beside another type one that fits, and that
    llama.cpp's loader takes. Raises LayoutError for one of NVFP4 in another type or shape, and for
    one that is not finite.
    """
    factors: dict[str, tuple[float, ...]] = {}
    scales = set()
    for weight, array in tensors.items():
        if not weight.endswith(WEIGHT):
            continue
        if (scale := tensors.get(factor_name(weight))) is not None and _is_factor(
            weight, array, scale
        ):
            factors[weight] = _values(weight, scale)
        given = tensors.get(name := factor_name(weight, INPUT_SCALE))
        if given is not None and _fits(array, given):
            scales.add(name)
    return Factors(factors, frozenset(map(factor_name, factors)), frozenset(scales))


def _is_factor(weight: str, array: StoredArray, scale: StoredArray) -> bool:
    if array.dtype != NVFP4.name:
        return _LOADED.fullmatch(weight) is not None and _fits(array, scale)
    if _fits(array, scale):
        return True
    raise LayoutError(
        f"{scale.path}: {shown(factor_name(weight))} is {scale.dtype} {list(scale.shape)}, where "
        f"the factor of {shown(weight)} is {F32.name} {[_count(array)]}; {_AGAIN}"
    )


def _count(array: StoredArray) -> int:
    """Count the factors of a weight."""
    is_stack = len(array.shape) == 3 and array.shape[0] <= _MAX_EXPERTS
    return array.shape[0] if is_stack else 1


def _fits(array: StoredArray, scale: StoredArray) -> bool:
    # Axes of one element come and go.
    shape = [size for size in scale.shape if size != 1] or [1]
    return scale.dtype == F32.name and shape == [_count(array)]


def _values(weight: str, scale: StoredArray) -> tuple[float, ...]:
    raw = bytearray(scale.nbytes)
    with scale.path.open("rb") as file:
        read_stored(file.fileno(), scale, 0, memoryview(raw))
    values = struct.unpack(f"<{len(raw) // 4}f", raw)
    bad = next((n for n, value in enumerate(values) if not isfinite(value)), None)
    if bad is not None:
        of = f" of expert {bad}" if len(values) > 1 else ""
        raise LayoutError(
            f"{scale.path}: {shown(factor_name(weight))}{of} is {values[bad]}, by which "
            f"{shown(weight)} would be multiplied; {_AGAIN}"
        )
    return values
