"""What safetensors directories can hold: plain floats, or weights packed for serving.

The name of a directory says it: grok-1-bf16, grok-1-int8, grok-1-int4-g128-awq. A type gives the
experts and the attention one weight type each; embedding, norms and router stay floats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from weightcast.formats.packed_parts import Fp8Type
from weightcast.quant.groups import GroupType
from weightcast.quant.types import BF16, FLOAT_TYPES, MXFP4, NVFP4, TYPES, QuantType

WeightType = QuantType | GroupType | Fp8Type

COMPRESSED_TENSORS: Final = "compressed-tensors"
WEIGHTCAST: Final = "weightcast"
PLAIN: Final = "plain"
_FLOATS: Final = tuple(quant_type.name.lower() for quant_type in reversed(FLOAT_TYPES))
# Powers of two, as what layouts pack together: pieces fit both.
_GROUP_SIZES: Final = {"g32": 32, "g64": 64, "g128": 128, "g256": 256, "channel": 0}
_LAYOUTS: Final = {"gptq": "gptq", "gptq_v2": "gptq_v2", "awq": "awq", "weightcast": WEIGHTCAST}
_INTEGERS: Final = re.compile(
    r"(?P<before>weightcast-)?int(?P<bits>[48])(?:-(?P<size>g32|g64|g128|g256|channel))?"
    r"(?:-(?P<asymmetric>asym))?(?:-(?P<layout>gptq_v2|gptq|awq|weightcast))?"
)
_OTHERS: Final[dict[str, WeightType]] = {
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
    "fp8": Fp8Type(),
    "fp8-block": Fp8Type(128),
}
# What a directory's name may end in, longest first: "-awq" alone says nothing.
_ENDING: Final = re.compile(
    rf"(?:^|[-._])(?P<type>{_INTEGERS.pattern}|fp8-block|fp8|mxfp4|nvfp4|{'|'.join(_FLOATS)})$",
    re.IGNORECASE,
)
KNOWN: Final = (
    "bf16, f16, f32, int8, int8-gptq, int4-g128 (g32, g64, channel; then -asym, then -gptq, "
    "-gptq_v2, -awq or -weightcast), mxfp4, nvfp4, fp8, fp8-block"
)


@dataclass(frozen=True, slots=True)
class DirectoryType:
    """What the matrices of a directory become, and the layout that they are stored in.

    `base` is the float type of what is not packed. `is_carried`: int8 codes of a source go there
    as they are; `may_change`: where they cannot, they are quantized anew.
    """

    name: str
    layout: str
    attention: WeightType
    experts: WeightType
    base: QuantType = BF16
    is_carried: bool = False
    may_change: bool = False

    @property
    def is_packed(self) -> bool:
        return self.layout != PLAIN


def name_in(directory: str) -> str | None:
    """The type that a directory's name ends in, lower case."""
    match = _ENDING.search(directory)
    return match["type"].lower() if match else None


def directory_type(name: str) -> DirectoryType | None:
    """Look a type up by its name, in any case."""
    name = name.lower()
    if name in _FLOATS:
        plain = TYPES[name.upper()]
        return DirectoryType(name, PLAIN, plain, plain, plain)
    if name in _OTHERS:
        return DirectoryType(name, COMPRESSED_TENSORS, _OTHERS[name], _OTHERS[name])
    match = _INTEGERS.fullmatch(name)
    if match is None or (match["before"] and match["layout"]):
        return None
    layout = _LAYOUTS.get(match["layout"] or "", COMPRESSED_TENSORS)
    if match["before"]:
        layout = WEIGHTCAST
    bits, symmetric = int(match["bits"]), match["asymmetric"] is None
    size = _GROUP_SIZES[match["size"] or "g128"]
    groups: WeightType = GroupType(bits, size, symmetric)
    if layout == "awq" and bits != 4:
        return None
    is_carried = bits == 8 and symmetric
    if is_carried and layout == COMPRESSED_TENSORS and match["size"] is None:
        # What vLLM's kernels for experts take in every version from 0.14 on: groups of 256. Those
        # for attention take no such groups; floats hold the products that the reference uses.
        return DirectoryType(name, layout, BF16, GroupType(8, 256), is_carried=True)
    return DirectoryType(name, layout, groups, groups, is_carried=is_carried)


def type_label(weight_type: WeightType) -> str:
    """A short name of a weight type: BF16, INT4-G128."""
    if isinstance(weight_type, QuantType):
        return weight_type.name
    if isinstance(weight_type, Fp8Type):
        return "FP8-BLOCK" if weight_type.block else "FP8"
    size = f"G{weight_type.group_size}" if weight_type.group_size else "CHANNEL"
    return f"INT{weight_type.bits}-{size}{'' if weight_type.symmetric else '-ASYM'}"
