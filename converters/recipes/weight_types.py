"""What safetensors directories can hold: plain floats, or weights packed for serving.

The name of a directory says it: grok-1-bf16, grok-1-int8, grok-1-int4-g128-awq. A type gives the
experts and the attention one weight type each; embedding, norms and router stay floats. Rules give
single matrices other types, as far as the layout holds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from weightcast.errors import RequestError
from weightcast.formats.packed.config import NO_ZERO_POINT_0
from weightcast.formats.packed.layout import Fp8Type
from weightcast.quant.groups import GroupType
from weightcast.quant.types import BF16, FLOAT_TYPES, MXFP4, NVFP4, TYPES, QuantType
from weightcast.text import shown

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
KNOWN_IN_RULES: Final = (
    "bf16, f16, f32, int8-g128, int4-g128 (g32, g64, g256, channel; then -asym), mxfp4, nvfp4, "
    "fp8, fp8-block"
)


@dataclass(frozen=True, slots=True)
class DirectoryType:
    """What the matrices of a directory become, and the layout that they are stored in.

    `base` is the float type of what is not packed. `may_change`: int8 codes that cannot be carried
    as they are, are quantized anew.
    """

    name: str
    layout: str
    attention: WeightType
    experts: WeightType
    base: QuantType = BF16
    may_change: bool = False

    @property
    def is_packed(self) -> bool:
        return self.layout != PLAIN

    @property
    def is_carried(self) -> bool:
        """Whether int8 codes of a source go to the experts as they are."""
        return carries_codes(self.experts)

    def is_same(self, other: DirectoryType) -> bool:
        """Whether another name means the same: int4 and int4-g128."""
        return replace(self, name=other.name) == other

    def with_rules(self, types: Iterable[WeightType]) -> DirectoryType:
        """The type with rules that ask for `types`: plain floats get a layout for packed ones."""
        if self.is_packed or all(is_plain(weight_type) for weight_type in types):
            return self
        return replace(self, layout=COMPRESSED_TENSORS)

    def why_not(self, weight_type: WeightType) -> str | None:
        """Say why a rule cannot ask for a type here, and for what it can."""
        if is_plain(weight_type):
            return None
        if isinstance(weight_type, QuantType) and weight_type not in _OTHERS.values():
            return f"a directory holds {KNOWN_IN_RULES}"
        if self.layout == COMPRESSED_TENSORS:
            return None
        if self.layout == "awq" and weight_type != self.experts:
            return f"awq holds one packed type, here {type_label(self.experts)}, and bf16, f16, f32"
        if not isinstance(weight_type, GroupType):
            return f"{self.layout} holds int4 and int8 in groups, and bf16, f16, f32"
        if self.layout == "gptq" and not weight_type.symmetric:
            return f"{NO_ZERO_POINT_0}, as the name of the output can say"
        return None


def name_in(directory: str) -> str | None:
    """The type that a directory's name ends in, lower case."""
    match = _ENDING.search(directory)
    return match["type"].lower() if match else None


def is_plain(weight_type: WeightType) -> bool:
    """Whether values are stored one by one, as floats."""
    return isinstance(weight_type, QuantType) and weight_type.block_elements == 1


def carries_codes(weight_type: WeightType) -> bool:
    """Whether int8 codes of a source can go there as they are."""
    return isinstance(weight_type, GroupType) and weight_type.bits == 8 and weight_type.symmetric


def rule_type(name: object) -> WeightType:
    """Look up the type that a rule asks for. Raises RequestError if it is none."""
    text = name.lower() if isinstance(name, str) else ""
    if text.upper() in TYPES:
        return TYPES[text.upper()]
    if text in _OTHERS:
        return _OTHERS[text]
    match = _INTEGERS.fullmatch(text)
    if match is None:
        known = f"{', '.join(sorted(TYPES))}; in directories {KNOWN_IN_RULES}"
        raise RequestError(f"unknown type {shown(name)}; known: {known}")
    if match["before"] or match["layout"]:
        raise RequestError(
            f"type {shown(name)} names a layout, which is the whole output's; leave it out"
        )
    if match["size"] is None:
        written = f"{text[:4]}-g128{text[4:]}"
        raise RequestError(f"type {shown(name)} does not say its groups; write it like {written}")
    return GroupType(int(match["bits"]), _GROUP_SIZES[match["size"]], match["asymmetric"] is None)


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
    if carries_codes(groups) and layout == COMPRESSED_TENSORS and match["size"] is None:
        # What vLLM's kernels for experts take in every version from 0.14 on: groups of 256. Those
        # for attention take no such groups; floats hold the products that the reference uses.
        return DirectoryType(name, layout, BF16, GroupType(8, 256))
    return DirectoryType(name, layout, groups, groups)


def type_label(weight_type: WeightType) -> str:
    """A short name of a weight type: BF16, INT4-G128."""
    if isinstance(weight_type, QuantType):
        return weight_type.name
    if isinstance(weight_type, Fp8Type):
        return "FP8-BLOCK" if weight_type.block else "FP8"
    size = f"G{weight_type.group_size}" if weight_type.group_size else "CHANNEL"
    return f"INT{weight_type.bits}-{size}{'' if weight_type.symmetric else '-ASYM'}"
