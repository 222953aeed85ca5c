"""Types by the names that people write, and what to say where there is no such type."""

from __future__ import annotations

import re
from typing import Final

from weightcast.errors import LayoutError
from weightcast.quant.types import TYPES, Fp8Type, GroupType, QuantType
from weightcast.text import closest, shown

CodedType = GroupType | Fp8Type

_FP8: Final = {
    "fp8": Fp8Type(),
    "fp8-block": Fp8Type(128, 128),
    "fp8-tensor": Fp8Type(0, 0),
}
_INTEGERS: Final = re.compile(r"int(?P<bits>\d+)(?:-(?P<size>g\d+|channel))?(?P<asymmetric>-asym)?")
_LAYOUT: Final = re.compile(r"-(?:gptq|gptq_v2|awq|weightcast|compressed-tensors)$|^weightcast-")
# As other libraries call plain floats.
_FLOATS: Final = {
    "FLOAT32": "F32",
    "FP32": "F32",
    "FLOAT16": "F16",
    "FP16": "F16",
    "BFLOAT16": "BF16",
}
# llama-quantize's recipes that are no types, by how they begin, and the type that is most of them.
_RECIPES: Final = {
    "IQ1": "IQ1_M",
    "IQ2": "IQ2_S",
    "IQ3": "IQ3_S",
    "MXFP4": "MXFP4",
    **{f"Q{bits}K": f"Q{bits}_K" for bits in range(2, 7)},
}
_RECIPE: Final = re.compile(rf"({'|'.join(_RECIPES)})(?:XXS|XS|S|M|L|XL|MOE)")


def type_named(name: str) -> QuantType:
    """Look a type of GGUF up by name, in any case, with or without "_". Raises LayoutError."""
    found = weight_type_named(name)
    if not isinstance(found, QuantType):
        raise LayoutError(f"{name} is a type of directories; here it must be one of GGUF's")
    return found


def weight_type_named(name: str) -> QuantType | CodedType:
    """Look a type up by name: one of GGUF's, or of directories as int4-g128. Raises LayoutError."""
    text = str(name).strip()
    squeezed = _squeezed(text)
    squeezed = _FLOATS.get(squeezed, squeezed)
    found = next((t for t in TYPES.values() if _squeezed(t.name) == squeezed), None)
    return _coded_type(text) if found is None else found


def _squeezed(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.upper())


def _coded_type(name: str) -> CodedType:
    text = name.lower().replace("_", "-")
    if text in _FP8:
        return _FP8[text]
    match = _INTEGERS.fullmatch(text)
    if match is None:
        raise LayoutError(_unknown(name))
    if match["size"] is None:
        written = f"int{match['bits']}-g128{match['asymmetric'] or ''}"
        raise LayoutError(f"type {shown(name)} does not say its groups; write it like {written}")
    size = 0 if match["size"] == "channel" else int(match["size"][1:])
    return GroupType(int(match["bits"]), size, match["asymmetric"] is None)


def _unknown(name: str) -> str:
    """Say why a name is no type, and which was meant."""
    recipe = _RECIPE.fullmatch(_squeezed(name))
    if recipe is not None:
        return (
            f"{name} is a recipe for whole models, not a type; use {_RECIPES[recipe[1]]} for an "
            "array, or weightcast.convert for a model"
        )
    bare = _LAYOUT.sub("", name.lower())
    if bare != name.lower():
        return f"{name} names a layout of files; leave it out and write {bare}"
    meant = closest(name, (*TYPES, "int4-g128", "int8-g128", *_FP8))
    if meant is not None:
        return f"unknown type {shown(name)}; did you mean {meant}?"
    return (
        f"unknown type {shown(name)}; known: {', '.join(sorted(TYPES))}; and with scales apart "
        f"int4-g128, int8-channel (other groups alike; then -asym), {', '.join(_FP8)}"
    )
