"""Names of types as people write them, and what to say where there is no such type.

What outputs can be beside single types, recipes for whole files and layouts of directories, is
named in converters/recipes, which reads names by the rules here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from weightcast.errors import LayoutError
from weightcast.quant.types import TYPES, Fp8Type, GroupType, QuantType
from weightcast.text import closest, option, shown, spoken

CodedType = GroupType | Fp8Type
_Found = TypeVar("_Found")

# Characters that come before a type in a name, and that people put into it or leave out.
SEPARATOR: Final = re.compile(r"[-._ ]")
# As other libraries call plain floats.
SYNONYMS: Final = {
    "FLOAT32": "F32",
    "FP32": "F32",
    "FLOAT16": "F16",
    "FP16": "F16",
    "BFLOAT16": "BF16",
}
_FP8: Final = {
    "fp8": Fp8Type(),
    "fp8-block": Fp8Type(128, 128),
    "fp8-tensor": Fp8Type(0, 0),
}
_GROUPS: Final = re.compile(
    r"(?:(?P<before>.+)-)?int(?P<bits>[0-9]{1,2})"
    r"(?:-(?:g(?P<size>0|[1-9][0-9]{0,8})|(?P<row>channel)))?"
    r"(?P<asymmetric>-asym)?(?:-(?P<after>.+))?"
)
_DEFAULT_SIZE: Final = 128
# Of many types alike, those that messages suggest.
GROUP_EXAMPLES: Final = ("int4-g128", "int8-g128", "int8-channel")
# llama-quantize's recipes that are no types, by how they begin, and the type that is most of them.
_RECIPES: Final = {
    "IQ1": "IQ1_M",
    "IQ2": "IQ2_S",
    "IQ3": "IQ3_S",
    "MXFP4": "MXFP4",
    **{f"Q{bits}K": f"Q{bits}_K" for bits in range(2, 7)},
}
_RECIPE: Final = re.compile(rf"({'|'.join(_RECIPES)})(?:XXS|XS|S|M|L|XL|MOE)")
# How much a name is like the one that was surely meant.
_SURELY: Final = 0.87
_FINER_ENDS: Final = "'^(output|token_embd).weight$=Q8_0'"
# Names that people ask for and that are no types here: what to do instead.
_ELSEWHERE: Final[tuple[tuple[str, str], ...]] = (
    *(
        (name, f"it is {base} with embedding and output finer: add {{rule}} {_FINER_ENDS}")
        for name, base in (
            ("Q2_?K_?L", "Q2_K"),
            ("Q3_?K_?XL", "Q3_K_L"),
            ("Q4_?K_?L", "Q4_K_M"),
            ("Q5_?K_?L", "Q5_K_M"),
            ("Q6_?K_?L", "Q6_K"),
        )
    ),
    (
        r"(UD_)?I?Q\d_?(K_?)?(X{1,2}L|XX?S)",
        "it is a recipe of Unsloth's, another one for each model; {copy} keeps the types of a file "
        "that is made so; else take a type that {lists}, and "
        "{rule} for single tensors",
    ),
    (r"Q4_?0_?[48]_?[48]", "llama.cpp repacks Q4_0 when it loads it: take Q4_0"),
    (r"I?Q\d_?(?:KS|KT|KSS|KL|K_R\d)|I?Q\d_?\d_R\d", "it is a type of ik_llama.cpp alone"),
    (r"Q8_?[1K]", "it is llama.cpp's for activations, not for files: take Q8_0"),
    (r"EXL[23]|HQQ|BNB|NF4|AQLM|QUIP", "weightcast does not write it"),
    (r"W4A16", "it is called int4-g128 here"),
    (r"W8A16", "it is called int8 here"),
    (r"W8A8|INT8_?W8A8", "weightcast does not write it; fp8 has 8-bit activations"),
    (r"GPTQ", "say its bits and group size: int4-g128-gptq"),
    (r"AWQ", "say its bits and group size: int4-g128-awq"),
    (r"INT[48]_?G0(_.*)?", "a scale for each row is int4-channel or int8-channel"),
    (r"INT[48]_?G\d+.*", "groups are of 32, 64, 128 or 256 weights: int4-g128"),
    (r"4_?BITS?|Q4|INT4", "4 bits are Q4_K_M in GGUF, int4-g128 in a directory"),
    (r"8_?BITS?|Q8|INT8", "8 bits are Q8_0 in GGUF, int8 in a directory"),
    (r"FP4", "4-bit floats are MXFP4 or NVFP4"),
    (r"Q[56]", "it has several kinds: Q5_K_M, Q6_K"),
    (r"Q[23]", "it has several kinds: Q2_K, Q3_K_M"),
)


def key(name: str) -> str:
    """Reduce a name to what people agree on: upper case, without separators."""
    return SEPARATOR.sub("", name).upper()


def plainly(name: str) -> str:
    """Write a name as types of directories are written: lower case, one kind of separator."""
    return SEPARATOR.sub("-", name.lower())


def look_up(written: str, table: Mapping[str, _Found]) -> _Found | None:
    """Look a name up in any case, with another separator or none where the table has "_".

    A separator elsewhere belongs to what comes before the type: b-F16 is no BF16.
    """
    wanted = key(written)
    for name, found in table.items():
        if key(name) == wanted:
            pattern = re.escape(name).replace("_", f"{SEPARATOR.pattern}?")
            return found if re.fullmatch(pattern, written, re.IGNORECASE) else None
    return None


@dataclass(frozen=True, slots=True)
class GroupName:
    """A name of integers in groups, such as int4-g128-asym-gptq, taken apart.

    `before` and `after` are what stands around the type, written plainly; size is None if the name
    does not say its groups, 0 for whole rows.
    """

    before: str
    bits: int
    size: int | None
    is_symmetric: bool
    after: str

    @property
    def in_full(self) -> str:
        """Name the type alone, with groups of the usual size if the name says none."""
        size = _DEFAULT_SIZE if self.size is None else self.size
        groups = f"g{size}" if size else "channel"
        return f"int{self.bits}-{groups}{'' if self.is_symmetric else '-asym'}"

    def type(self) -> GroupType:
        """Make the type, in groups of the usual size if the name says none. Raises LayoutError."""
        size = _DEFAULT_SIZE if self.size is None else self.size
        return GroupType(self.bits, size, self.is_symmetric)

    def type_in_full(self, written: str) -> GroupType:
        """Make the type of a name that must say its groups. Raises LayoutError."""
        found = self.type()
        if self.size is None:
            raise LayoutError(
                f"type {shown(written)} does not say its groups; write it like {self.in_full}"
            )
        return found


def group_name(written: str) -> GroupName | None:
    """Take a name of integers in groups apart, be there such a type or not; None if it is none."""
    match = _GROUPS.fullmatch(plainly(written))
    if match is None or match["size"] == "0":
        return None
    size = int(match["size"]) if match["size"] else 0 if match["row"] else None
    before, after = match["before"] or "", match["after"] or ""
    return GroupName(before, int(match["bits"]), size, not match["asymmetric"], after)


def gguf_type_named(written: str) -> QuantType | None:
    """Look a type of GGUF up in any case and with any separators, floats by any library's name."""
    squeezed = key(written)
    squeezed = SYNONYMS.get(squeezed, squeezed)
    return next((t for t in TYPES.values() if key(t.name) == squeezed), None)


def type_named(name: str) -> QuantType:
    """Look a type of GGUF up by name, in any case, with or without "_". Raises LayoutError."""
    found = weight_type_named(name)
    if not isinstance(found, QuantType):
        raise LayoutError(f"{name} is a type of directories; here it must be one of GGUF's")
    return found


def weight_type_named(name: str) -> QuantType | CodedType:
    """Look a type up by name: one of GGUF's, or of directories as int4-g128. Raises LayoutError."""
    text = str(name).strip()
    found = gguf_type_named(text) or _FP8.get(plainly(text))
    if found is not None:
        return found
    groups = group_name(text)
    if groups is None or groups.before or groups.after:
        raise LayoutError(_unknown(text, groups))
    return groups.type_in_full(text)


def _unknown(name: str, groups: GroupName | None) -> str:
    """Say why a name is no type, and which was meant; `groups` are those in it."""
    recipe = _RECIPE.fullmatch(key(name))
    if recipe is not None:
        return (
            f"{name} is a recipe for whole models, not a type; use {_RECIPES[recipe[1]]} for an "
            "array, or weightcast.convert for a model"
        )
    known = (*TYPES, *GROUP_EXAMPLES, *_FP8)
    if groups is not None and closest(name, known, alike=_SURELY) is None:
        return (
            f"{shown(name)} names more than a type, such as a layout of files; leave that out and "
            f"write {groups.in_full}"
        )
    return f"unknown type {shown(name)}{hint(name, known)}"


def explain(name: str) -> str | None:
    """Say what a name of another program stands for here."""
    written = re.sub(r"[-. ]", "_", name.upper())
    for pattern, text in _ELSEWHERE:
        if re.fullmatch(pattern, written):
            lists = spoken("weightcast types lists", "weightcast.types() lists")
            copy = spoken(option("types", "COPY"), "types='COPY'")
            text = text.replace("{copy}", copy).replace("{lists}", lists)
            return text.replace("{rule}", option("tensor_types"))
    return None


def hint(name: str, known: Iterable[str]) -> str:
    """End a message about an unknown type: what it is elsewhere, or what may have been meant."""
    known = list(known)
    if (slip := closest(name, known, alike=_SURELY)) is not None:
        return f"; did you mean {slip}?"
    if (told := explain(name)) is not None:
        return f"; {told}"
    meant = closest(name, known)
    listed = spoken("weightcast types lists them all", "weightcast.types() lists them all")
    return f"; did you mean {meant}?" if meant else f"; {listed}"
