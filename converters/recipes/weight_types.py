"""Types of safetensors directories: plain floats, or weights packed for serving.

The name of a directory says it: grok-1-bf16, grok-1-int8, grok-1-int4-g128-awq. A type gives the
experts and the attention one weight type each; embedding, norms and router stay floats. Rules give
single matrices other types, as far as the layout holds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from weightcast.converters.recipes.recipe import COPY, recipe_named
from weightcast.converters.recipes.spelling import find_ending
from weightcast.errors import LayoutError, RequestError
from weightcast.formats.packed import LAYOUTS
from weightcast.quant.names import (
    GROUP_EXAMPLES,
    SYNONYMS,
    GroupName,
    gguf_type_named,
    group_name,
    hint,
    plainly,
)
from weightcast.quant.types import BF16, FLOAT_TYPES, TYPES, GroupType, QuantType, WeightType
from weightcast.text import shown

# The layout that names of outputs leave out.
DEFAULT_LAYOUT: Final = "compressed-tensors"
PLAIN: Final = "plain"
# The layout whose name can come first too: weightcast-int4.
_FIRST: Final = "weightcast"
_FLOATS: Final = tuple(quant_type.name.lower() for quant_type in reversed(FLOAT_TYPES))
_BITS: Final = (4, 8)
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


def _integers(written: str) -> GroupName | None:
    """Take a name of integers apart that a directory could have; None if it is none."""
    found = group_name(written)
    if found is None or found.bits not in _BITS or found.size not in (None, *_GROUP_SIZES.values()):
        return None
    layouts = map(plainly, _layout_names())
    is_known = found.before in ("", _FIRST) and found.after in ("", *layouts)
    return found if is_known else None


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
    """Give the type that a directory's name ends in: of several the one that says most."""
    found = find_ending(directory, directory_type)
    return None if found is None else found[1].name


def type_names() -> tuple[str, ...]:
    """List the names that directories can end in, for suggestions."""
    integers = [
        f"int{bits}-{size}{asymmetric}"
        for bits in _BITS
        for size in _GROUP_SIZES
        for asymmetric in ("", "-asym")
    ]
    layouts = [f"{name}-{layout}" for name in ("int8", *integers) for layout in _layout_names()]
    names = (*_FLOATS, *_named_types(), "int8", *integers, *layouts)
    found = ((name, directory_type(name)) for name in names)
    return tuple(name for name, made in found if made and made.why_not(made.experts) is None)


def rule_type(name: object) -> WeightType:
    """Look up the type that a rule asks for. Raises RequestError if it is none."""
    written = name if isinstance(name, str) else ""
    if (found := gguf_type_named(written)) is not None:
        return found
    text, named = plainly(written), _named_types()
    if text in named:
        return named[text][1]
    integers = _integers(written)
    if integers is None:
        raise RequestError(f"unknown type {shown(name)}{_hint_for_rules(written)}")
    if integers.before or integers.after:
        raise RequestError(
            f"type {shown(name)} names a layout, which is the whole output's; leave it out"
        )
    try:
        return integers.type_in_full(written)
    except LayoutError as problem:
        raise RequestError(str(problem)) from None


def _hint_for_rules(written: str) -> str:
    """Say what a name is that rules cannot ask for: a recipe, a slip, another program's type."""
    recipe = recipe_named(written)
    if recipe == COPY:
        return ": it is for a whole file, in which all tensors without a rule stay as they are"
    if recipe is not None:
        return f": it is a recipe for a whole file; a tensor's type is {recipe.base.name}"
    return hint(written, (*TYPES, *_named_types(), *GROUP_EXAMPLES))


def directory_type(name: str) -> DirectoryType | None:
    """Look a type up by its name, in any case and with any separators."""
    name = plainly(name)
    name = SYNONYMS.get(name.upper(), name).lower()
    if name in _FLOATS:
        plain = TYPES[name.upper()]
        return DirectoryType(name, PLAIN, plain, plain, plain)
    named = _named_types()
    if name in named:
        layout, weight_type = named[name]
        return DirectoryType(name, layout, weight_type, weight_type)
    integers = _integers(name)
    if integers is None or (integers.before and integers.after):
        return None
    layouts = {plainly(layout): layout for layout in _layout_names()}
    layout = layouts.get(integers.before or integers.after, DEFAULT_LAYOUT)
    name = name.replace(plainly(layout), layout)
    groups = integers.type()
    if not LAYOUTS[layout].holds(groups):
        return None
    if groups.carries_codes and layout == DEFAULT_LAYOUT and integers.size is None:
        # What vLLM's kernels for experts take in every version from 0.14 on: groups of 256. Those
        # for attention take no such groups; floats hold the products that the reference uses.
        return DirectoryType(name, layout, BF16, GroupType(8, 256))
    return DirectoryType(name, layout, groups, groups)
