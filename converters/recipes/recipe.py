"""Name the recipes: a base type, and the GGUF file type that llama.cpp knows it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from weightcast.quant.names import SYNONYMS, look_up
from weightcast.quant.types import TYPES, QuantType


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: name, base type, the number of general.file_type; pure if no rules apply."""

    name: str
    base: QuantType
    file_type: int
    pure: bool = False


def _recipe(name: str, base: str, file_type: int) -> Recipe:
    return Recipe(name, TYPES[base], file_type)


# Names and numbers: QUANT_OPTIONS in tools/quantize/quantize.cpp, enum llama_ftype in llama.h.
_ALL: Final = (
    _recipe("F32", "F32", 0),
    _recipe("F16", "F16", 1),
    _recipe("BF16", "BF16", 32),
    _recipe("Q4_0", "Q4_0", 2),
    _recipe("Q4_1", "Q4_1", 3),
    _recipe("Q5_0", "Q5_0", 8),
    _recipe("Q5_1", "Q5_1", 9),
    _recipe("Q8_0", "Q8_0", 7),
    _recipe("Q2_K", "Q2_K", 10),
    _recipe("Q2_K_S", "Q2_K", 21),
    _recipe("Q3_K_S", "Q3_K", 11),
    _recipe("Q3_K_M", "Q3_K", 12),
    _recipe("Q3_K_L", "Q3_K", 13),
    _recipe("Q4_K_S", "Q4_K", 14),
    _recipe("Q4_K_M", "Q4_K", 15),
    _recipe("Q5_K_S", "Q5_K", 16),
    _recipe("Q5_K_M", "Q5_K", 17),
    _recipe("Q6_K", "Q6_K", 18),
    _recipe("IQ1_S", "IQ1_S", 24),
    _recipe("IQ1_M", "IQ1_M", 31),
    _recipe("IQ2_XXS", "IQ2_XXS", 19),
    _recipe("IQ2_XS", "IQ2_XS", 20),
    _recipe("IQ2_S", "IQ2_XS", 28),
    _recipe("IQ2_M", "IQ2_S", 29),
    _recipe("IQ3_XXS", "IQ3_XXS", 23),
    _recipe("IQ3_XS", "IQ3_S", 22),
    _recipe("IQ3_S", "IQ3_S", 26),
    _recipe("IQ3_M", "IQ3_S", 27),
    _recipe("IQ4_NL", "IQ4_NL", 25),
    _recipe("IQ4_XS", "IQ4_XS", 30),
    _recipe("TQ1_0", "TQ1_0", 36),
    _recipe("TQ2_0", "TQ2_0", 37),
    _recipe("MXFP4_MOE", "MXFP4", 38),
    _recipe("Q1_0", "Q1_0", 40),
    _recipe("Q2_0", "Q2_0", 41),
    # No names of llama-quantize: every quantized tensor in one type.
    Recipe("MXFP4", TYPES["MXFP4"], 38, pure=True),
    Recipe("NVFP4", TYPES["NVFP4"], 39, pure=True),
)
RECIPES: Final = {recipe.name: recipe for recipe in _ALL}
# No type of tensors: each keeps its own, and the file keeps what it says of them.
COPY: Final = _recipe("COPY", "F32", 0)
# What is chosen for a size: the types of most weights give the file its recipe in the end.
BY_SIZE: Final = _recipe("BY_SIZE", "F16", 1)
ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


_NAMED: Final = (
    RECIPES | {COPY.name: COPY} | {name: RECIPES[of] for name, of in (ALIASES | SYNONYMS).items()}
)


def recipe_numbered(number: int) -> Recipe | None:
    """Look a recipe up by its number in llama-quantize, that of general.file_type."""
    return next((r for r in _ALL if r.file_type == number and not r.pure), None)


def recipe_of_type(quant_type: QuantType) -> Recipe:
    """Give the recipe that a file goes by whose weights have mostly this type."""
    named = RECIPES.get(ALIASES.get(quant_type.name, quant_type.name))
    if named is not None and named.base == quant_type:
        return named
    return next(recipe for recipe in _ALL if recipe.base == quant_type)


def recipe_named(name: str) -> Recipe | None:
    """Look a recipe up by name or alias, in any case and with any separators."""
    return look_up(name, _NAMED)
