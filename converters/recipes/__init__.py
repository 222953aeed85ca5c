"""Recipes: which type each tensor gets.

`recipe` names llama.cpp's file types, `llama_quantize` has its rules, `decide` applies them and
the user's own, which `file` reads; `importance` matches an importance matrix to tensors. `size`
chooses types for a size (`knapsack`) by what they cost (`sensitivity`), and `written` puts them
into a recipe file. Models are known only by the names, roles and numbers that the rules ask for.
"""

from weightcast.converters.recipes.decide import (
    END_OPTIONS,
    NO_END_TYPES,
    Candidate,
    Decision,
    EndTypes,
    Override,
    facts_from_metadata,
    find_overrides,
    is_quantized,
    missed_notes,
    rule_candidates,
    unfollowed_notes,
)
from weightcast.converters.recipes.file import (
    RecipeFile,
    parse_pattern,
    parse_tensor_type,
    read_recipe_file,
    read_tensor_types,
)
from weightcast.converters.recipes.importance import (
    ImportanceMap,
    match_importance,
    match_importance_named,
    provenance_metadata,
    select_entries,
)
from weightcast.converters.recipes.metadata import parse_override_kv, read_overrides_kv
from weightcast.converters.recipes.recipe import (
    ALIASES,
    BY_SIZE,
    COPY,
    RECIPES,
    Recipe,
    recipe_named,
    recipe_numbered,
    recipe_of_type,
)
from weightcast.converters.recipes.sensitivity import Sensitivities, read_sensitivities
from weightcast.converters.recipes.size import Goal, SizedRecipe
from weightcast.converters.recipes.weight_types import (
    PLAIN,
    DirectoryType,
    directory_type,
    name_in,
    rule_type,
    type_names,
)

__all__ = [
    "ALIASES",
    "BY_SIZE",
    "COPY",
    "END_OPTIONS",
    "NO_END_TYPES",
    "PLAIN",
    "RECIPES",
    "Candidate",
    "Decision",
    "DirectoryType",
    "EndTypes",
    "Goal",
    "ImportanceMap",
    "Override",
    "Recipe",
    "RecipeFile",
    "Sensitivities",
    "SizedRecipe",
    "directory_type",
    "facts_from_metadata",
    "find_overrides",
    "is_quantized",
    "match_importance",
    "match_importance_named",
    "missed_notes",
    "name_in",
    "parse_override_kv",
    "parse_pattern",
    "parse_tensor_type",
    "provenance_metadata",
    "read_overrides_kv",
    "read_recipe_file",
    "read_sensitivities",
    "read_tensor_types",
    "recipe_named",
    "recipe_numbered",
    "recipe_of_type",
    "rule_candidates",
    "rule_type",
    "select_entries",
    "type_names",
    "unfollowed_notes",
]
