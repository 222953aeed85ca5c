"""Types of safetensors directories: plain floats, or weights packed for serving.

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
from weightcast.formats.packed import LAYOUTS
from weightcast.quant.types import BF16, FLOAT_TYPES, TYPES, GroupType, QuantType, WeightType
from weightcast.text import shown

# The layout that names of outputs leave out.
DEFAULT_LAYOUT: Final = "compressed-tensors"
PLAIN: Final = "plain"
# The layout whose name can come first too: weightcast-int4.
_FIRST: Final = "weightcast"
_FLOATS: Final = tuple(quant_type.name.lower() for quant_type in reversed(FLOAT_TYPES))
# Powers of two, as what layouts pack together: pieces fit both.
_GROUP_SIZES: Final = {"g32": 32, "g64": 64, "g128": 128, "g256": 256, "channel": 0}


def _layout_names() -> list[str]:
    """List the layouts of integers that names of outputs can say, beside the default."""
    return [
        layout.name
        for layout in LAYOUTS.values()
        if layout.name != DEFAULT_LAYOUT and layout.holds(GroupType(4, 128))
    ]


def _named_types() -> dict[str, tuple[str, WeightType]]:
    """Map the names of packed types that are not integers in groups to their layout and type."""
    return {
        name: (layout.name, weight_type)
        for layout in LAYOUTS.values()
        for name, weight_type in layout.traits.types.items()
    }


def _integers() -> re.Pattern[str]:
    layouts = "|".join(map(re.escape, sorted(_layout_names(), key=len, reverse=True)))
    return re.compile(
        rf"(?P<before>{_FIRST}-)?int(?P<bits>[48])(?:-(?P<size>{'|'.join(_GROUP_SIZES)}))?"
        rf"(?:-(?P<asymmetric>asym))?(?:-(?P<layout>{layouts}))?"
    )


def known_types() -> str:
    """List what names of directories can end in, for messages."""
    *others, last = (f"-{name}" for name in _layout_names())
    return (
        f"bf16, f16, f32, int8, int8-gptq, int4-g128 (g32, g64, channel; then -asym, then "
        f"{', '.join(others)} or {last}), {', '.join(_named_types())}"
    )


def known_in_rules() -> str:
    """List the types that rules for directories can ask for, for messages."""
    return (
        "bf16, f16, f32, int8-g128, int4-g128 (g32, g64, g256, channel; then -asym), "
        f"{', '.join(_named_types())}"
    )


@dataclass(frozen=True, slots=True)
class DirectoryType:
    """Weight types of the matrices of a directory, and the layout that stores them.

    `base` is the float type of tensors that are not packed. With `allow_requantize`, int8 codes
    that cannot be carried as they are, are quantized anew.
    """

    name: str
    layout: str
    attention: WeightType
    experts: WeightType
    base: QuantType = BF16
    allow_requantize: bool = False

    @property
    def is_packed(self) -> bool:
        return self.layout != PLAIN

    @property
    def keeps_codes(self) -> bool:
        """Tell whether int8 codes of a source go to the experts as they are."""
        return self.experts.carries_codes

    def is_same(self, other: DirectoryType) -> bool:
        """Tell whether another name means the same: int4 and int4-g128."""
        return replace(self, name=other.name) == other

    def with_rules(self, types: Iterable[WeightType]) -> DirectoryType:
        """Add rules that ask for `types`: plain floats get a layout for packed ones."""
        if self.is_packed or all(weight_type.is_plain for weight_type in types):
            return self
        return replace(self, layout=DEFAULT_LAYOUT)

    def why_not(self, weight_type: WeightType) -> str | None:
        """Say why a rule cannot ask for a type here, and for what it can."""
        if weight_type.is_plain:
            return None
        if not any(layout.holds(weight_type) for layout in LAYOUTS.values()):
            return f"a directory holds {known_in_rules()}"
        return LAYOUTS[self.layout].why_not(weight_type, self.experts)


def name_in(directory: str) -> str | None:
    """Give the type that a directory's name ends in, lower case."""
    # "-awq" alone says nothing: what is longer counts.
    names = "|".join(map(re.escape, (*_named_types(), *_FLOATS)))
    ending = rf"(?:^|[-._])(?P<type>{_integers().pattern}|{names})$"
    match = re.search(ending, directory, re.IGNORECASE)
    return match["type"].lower() if match else None


def rule_type(name: object) -> WeightType:
    """Look up the type that a rule asks for. Raises RequestError if it is none."""
    text = name.lower() if isinstance(name, str) else ""
    if text.upper() in TYPES:
        return TYPES[text.upper()]
    named = _named_types()
    if text in named:
        return named[text][1]
    match = _integers().fullmatch(text)
    if match is None:
        known = f"{', '.join(sorted(TYPES))}; in directories {known_in_rules()}"
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
    named = _named_types()
    if name in named:
        layout, weight_type = named[name]
        return DirectoryType(name, layout, weight_type, weight_type)
    match = _integers().fullmatch(name)
    if match is None or (match["before"] and match["layout"]):
        return None
    layout = _FIRST if match["before"] else match["layout"] or DEFAULT_LAYOUT
    bits, symmetric = int(match["bits"]), match["asymmetric"] is None
    groups = GroupType(bits, _GROUP_SIZES[match["size"] or "g128"], symmetric)
    if not LAYOUTS[layout].holds(groups):
        return None
    if groups.carries_codes and layout == DEFAULT_LAYOUT and match["size"] is None:
        # What vLLM's kernels for experts take in every version from 0.14 on: groups of 256. Those
        # for attention take no such groups; floats hold the products that the reference uses.
        return DirectoryType(name, layout, BF16, GroupType(8, 256))
    return DirectoryType(name, layout, groups, groups)
