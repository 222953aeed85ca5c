"""List the types that outputs can have: bits per weight, importance, runtimes, some advice.

Everything is computed from the tables that conversions go by; only the advice is written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from weightcast.converters.families import FAMILIES
from weightcast.converters.graph import Family, Place
from weightcast.converters.recipes import (
    PLAIN,
    RECIPES,
    DirectoryType,
    Recipe,
    directory_type,
    facts_from_metadata,
    type_names,
)
from weightcast.converters.recipes.decide import Decision, decide
from weightcast.converters.targets.packing import Packing
from weightcast.converters.targets.rules import by_directory
from weightcast.formats.packed import LAYOUTS
from weightcast.quant.search import GGML
from weightcast.quant.types import F32, TYPES, WeightType

# The model whose bits per weight are told beside those of each type.
_REFERENCE: Final = "grok-1"

_ADVICE: Final = {
    "F32": "exact, for further work",
    "F16": "plain floats",
    "BF16": "plain floats, what the reference multiplies with",
    "Q8_0": "int8 codes of a release unchanged",
    "Q6_K": "hardly any loss",
    "Q5_K_M": "very little loss",
    "Q5_K_S": "a little smaller than Q5_K_M",
    "Q4_K_M": "the usual choice",
    "Q4_K_S": "a little smaller than Q4_K_M",
    "IQ4_XS": "smaller than Q4_K_S, about its error",
    "IQ4_NL": "as IQ4_XS, for rows of 32",
    "Q3_K_L": "when Q4 does not fit",
    "Q3_K_M": "when Q4 does not fit",
    "Q3_K_S": "when Q4 does not fit",
    "IQ3_M": "when Q4 does not fit",
    "IQ3_S": "when Q4 does not fit",
    "IQ3_XS": "when Q4 does not fit",
    "IQ3_XXS": "when Q4 does not fit",
    "Q2_K": "large loss",
    "Q2_K_S": "large loss",
    "IQ2_M": "large loss, about that of Q2_K",
    "IQ2_S": "large loss",
    "IQ2_XS": "large loss",
    "IQ2_XXS": "large loss",
    "IQ1_M": "extreme loss",
    "IQ1_S": "extreme loss",
    "Q4_0": "simple and fast, more loss than Q4_K_S",
    "Q4_1": "simple, for rows of 32",
    "Q5_0": "simple, for rows of 32",
    "Q5_1": "simple, for rows of 32",
    "MXFP4_MOE": "experts trained in MXFP4, the rest Q8_0",
    "MXFP4": "models trained in MXFP4",
    "NVFP4": "models trained in NVFP4",
    "TQ1_0": "models trained with three values",
    "TQ2_0": "models trained with three values",
    "Q1_0": "models trained with two values",
    "Q2_0": "models trained with four values",
    "bf16": "plain floats",
    "f16": "plain floats",
    "f32": "plain floats, exact",
    "int8": "codes of a release unchanged",
    "int4-g128": "the usual choice",
    "fp8": "8-bit floats",
    "fp8-block": "8-bit floats",
    "mxfp4": "4-bit floats",
    "nvfp4": "4-bit floats",
}


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A type that an output can have.

    `name` is what the output's own name ends in, and `target` is "gguf" or "safetensors". `bits` is
    what a weight takes that is quantized to it, in bits, scales and zero points included;
    `model_bits` what a weight of Grok-1 takes on average. `importance` says what becomes of an
    importance matrix; codes of a release that are kept need none. `layout` is that of a directory,
    as "compressed-tensors", None of plain floats and of GGUF. `runtimes` run such an output, of
    Grok-1 where it is a directory. `advice` says when to take it, in a few words; it may be empty.
    """

    name: str
    target: Literal["gguf", "safetensors"]
    bits: float
    model_bits: float
    importance: Literal["ignored", "optional", "required"]
    runtimes: tuple[str, ...]
    layout: str | None = None
    advice: str = ""


def types() -> tuple[TypeInfo, ...]:
    """List all types of outputs: GGUF's, then those of safetensors directories."""
    return _types()


@cache
def _types() -> tuple[TypeInfo, ...]:
    return (*map(_of_recipe, RECIPES.values()), *map(_of_directory, _directories()))


def _directories() -> Iterator[DirectoryType]:
    for name in type_names():
        found = directory_type(name)
        assert found is not None
        yield found


def _of_recipe(recipe: Recipe) -> TypeInfo:
    family = FAMILIES[_REFERENCE]
    shapes = [(place.name, shape) for place, shape in _tensors(family)]
    decisions = _decide(family, recipe, shapes)
    nbytes = weights = 0
    for (_, shape), decision in zip(shapes, decisions, strict=True):
        count = math.prod(shape)
        chosen = decision.type or F32
        nbytes += count // chosen.block_elements * chosen.block_bytes
        weights += count
    base = recipe.base
    needed = any(decision.needs_importance for decision in decisions)
    return TypeInfo(
        recipe.name,
        "gguf",
        base.bits_per_weight,
        8 * nbytes / weights,
        "required" if needed else base.importance,
        ("llama.cpp",),
        advice=_ADVICE.get(recipe.name, ""),
    )


def _decide(
    family: Family, recipe: Recipe, shapes: list[tuple[str, tuple[int, ...]]]
) -> list[Decision]:
    values, rows = family.released, family.hyperparameters
    keyed = {row.gguf.name: values[row.name] for row in rows if row.gguf and row.name in values}
    facts = facts_from_metadata(
        {"general.architecture": family.architecture, **keyed}, has_importance=False
    )
    return decide(recipe, shapes, facts)


def _of_directory(directory: DirectoryType) -> TypeInfo:
    family = FAMILIES[_REFERENCE]
    nbytes = weights = 0
    for place, shape in _tensors(family):
        plain = F32 if place.role.storage == "float32" else directory.base
        chosen = by_directory(place, plain, directory)
        copies = 1 + (place.name in family.ties)  # loaders ask for both
        nbytes += copies * round(_bits(directory, chosen, shape) * math.prod(shape) / 8)
        weights += math.prod(shape)
    searched = False
    if directory.is_packed:
        layout = LAYOUTS[directory.layout].matrix_layout(directory.experts)
        searched = layout.coding.is_searched(GGML) and not directory.keeps_codes
    return TypeInfo(
        directory.name,
        "safetensors",
        _bits(directory, directory.experts, (4096, 4096)),
        8 * nbytes / weights,
        "optional" if searched else "ignored",
        tuple(_runtimes(directory)),
        None if directory.layout == PLAIN else directory.layout,
        _ADVICE.get(directory.name, ""),
    )


def _bits(directory: DirectoryType, chosen: WeightType, shape: tuple[int, ...]) -> float:
    """Bits of a weight in a matrix [..., out, in], what goes with it included."""
    if chosen.is_plain:
        return 8.0 * TYPES[chosen.label].block_bytes
    *_, n_out, n_in = shape
    layout = LAYOUTS[directory.layout].matrix_layout(chosen)
    parts = Packing(layout, chosen).parts(n_out, n_in)
    return 8 * sum(part.nbytes for part in parts) / (n_out * n_in)


def _runtimes(directory: DirectoryType) -> Iterator[str]:
    if directory.layout == PLAIN:
        yield from ("vLLM", "SGLang", "transformers")
        return
    readers = LAYOUTS[directory.layout].traits.readers
    if readers.unread:
        return
    asked = ((directory.attention, False), (directory.experts, True))
    if all(t.is_plain or readers.in_vllm(t, is_expert) is None for t, is_expert in asked):
        yield "vLLM"
    yield from ("SGLang (humming)", "transformers")  # SGLang: --quantization humming


@cache
def _tensors(family: Family) -> list[tuple[Place, tuple[int, ...]]]:
    """List the tensors of the released model and their shapes."""
    sizes = dict(family.told_sizes(family.released))
    places = family.places(int(family.released["num_layers"]))
    return [(place, tuple(sizes[axis] for axis in place.role.axes)) for place in places]
