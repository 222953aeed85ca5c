"""Recipes: which type each tensor gets.

`recipe` names llama.cpp's file types, `llama_quantize` has its rules, `decide` applies them and
the user's own, which `file` reads; `importance` matches an importance matrix to tensors. Models
are known only by the names, roles and numbers that the rules ask for.
"""

from weightcast.converters.recipes.decide import (
    Decision,
    Override,
    Rules,
    facts_from_metadata,
    is_quantized,
)
from weightcast.converters.recipes.file import RecipeFile, parse_tensor_type, read_recipe_file
from weightcast.converters.recipes.importance import (
    ImportanceMap,
    match_importance,
    match_importance_named,
    provenance_metadata,
)
from weightcast.converters.recipes.recipe import ALIASES, COPY, RECIPES, Recipe, recipe_named
from weightcast.converters.recipes.weight_types import (
    PLAIN,
    DirectoryType,
    directory_type,
    name_in,
    type_names,
)

__all__ = [
    "ALIASES",
    "COPY",
    "PLAIN",
    "RECIPES",
    "Decision",
    "DirectoryType",
    "ImportanceMap",
    "Override",
    "Recipe",
    "RecipeFile",
    "Rules",
    "directory_type",
    "facts_from_metadata",
    "is_quantized",
    "match_importance",
    "match_importance_named",
    "name_in",
    "parse_tensor_type",
    "provenance_metadata",
    "read_recipe_file",
    "recipe_named",
    "type_names",
]
