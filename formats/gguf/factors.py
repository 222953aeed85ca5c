"""Factors that lie beside weights: NAME.scale of NAME.weight, as llama.cpp's converter writes them.

    NAME.weight       blocks of NVFP4, whose scales are 8-bit floats
    NAME.scale        F32 [1], or [experts] of a stack: what llama.cpp multiplies each product by
    NAME.input_scale  likewise, for kernels that round activations too; no part of the weights

A weight is its blocks times its factor. llama.cpp's loader takes a factor beside certain tensors of
a layer whatever their type, so blocks can be quantized to another type while the factor stays: it
is what llama-quantize does. Beside the output matrix it is taken only for NVFP4, and beside any
other tensor not at all: such a file is refused.
Sources: `_repack_nvfp4` in conversion/base.py, the pass for ".scale" in src/llama-model.cpp, of
https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.find import read_bytes
from weightcast.quant.types import F32, NVFP4
from weightcast.text import shown

WEIGHT: Final = ".weight"
FACTOR: Final = ".scale"
INPUT_SCALE: Final = ".input_scale"
_OUTPUT: Final = "output.weight"
# What the loader multiplies, in any type. `fc` and `markov_w2` are of draft models.
_MULTIPLIED: Final = re.compile(
    r"(?:blk\.\d+\.(?:attn_(?:q|k|v|qkv|output|gate)|ffn_(?:gate|up|down)(?:_shexp|_exps)?"
    r"|ssm_(?:in|out|alpha|beta)|nextn\.(?:eh_proj|shared_head_head))|fc|markov_w2)\.weight"
)
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


def is_multiplied(weight: str, type_name: str) -> bool:
    """Tell whether llama.cpp multiplies by a factor beside a tensor of this name and type."""
    if weight == _OUTPUT:
        return type_name == NVFP4.name
    return _MULTIPLIED.fullmatch(weight) is not None


def read_factors(tensors: Mapping[str, StoredArray]) -> Factors:
    """Read the factors of all weights of a file, some bytes each.

    Beside NVFP4 every NAME.scale is a factor; beside another type one that llama.cpp multiplies by,
    and that fits. Raises LayoutError for one of NVFP4 in another type or shape, and for one that is
    not finite.
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
        return is_multiplied(weight, array.dtype) and _fits(array, scale)
    if _fits(array, scale):
        return True
    raise LayoutError(
        f"{scale.path}: {shown(factor_name(weight))} is {scale.dtype} {list(scale.shape)}, where "
        f"the factor of {shown(weight)} is {F32.name} {[_count(array)]}; make the file again"
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
    values = read_bytes(scale, 0, scale.nbytes).view("<f4")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        of = f" of expert {bad[0]}" if len(values) > 1 else ""
        raise LayoutError(
            f"{scale.path}: {shown(factor_name(weight))}{of} is {values[bad[0]]}, by which "
            f"{shown(weight)} would be multiplied; make the file again"
        )
    return tuple(values.tolist())
