"""Recipes of one's own: a TOML file of ordered rules, and REGEX=TYPE on the command line.

The same file is for GGUF files and directories, as far as both can hold its types.
"""

from __future__ import annotations

import codecs
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters.recipes.decide import Override
from weightcast.converters.recipes.recipe import RECIPES, Recipe, recipe_named
from weightcast.converters.recipes.weight_types import (
    DirectoryType,
    directory_type,
    rule_type,
    type_names,
)
from weightcast.errors import FormatError, RequestError, visible
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.reading import read_small
from weightcast.quant.names import hint
from weightcast.text import option, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# A rule for every tensor of a large model takes 0.1 MB.
MAX_RECIPE_BYTES: Final = 1 << 18
_MAX_SHOWN: Final = 100  # characters of a pattern
# tomllib's memory grows with the square of the dots in a key.
_MAX_LINE_BYTES: Final = 1000
_MAX_PATTERN: Final = 1000


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """The content of a recipe file: the recipe it starts from and its rules in order.

    The base is a recipe of GGUF files, a type of directories, or (bf16, mxfp4) both.
    """

    path: Path
    base_name: str
    base: Recipe | None
    directory: DirectoryType | None
    overrides: tuple[Override, ...]


def read_recipe_file(path: Path) -> RecipeFile:
    """Read `base` and [[rule]] tables of `pattern` and `type`. Raises FormatError.

    The first rule whose pattern is found in a tensor's GGUF name, or in that of a directory, gives
    its type.
    """
    raw = read_small(path, MAX_RECIPE_BYTES, "recipe")
    for number, line in enumerate(raw.split(b"\n"), 1):
        if len(line) > _MAX_LINE_BYTES:
            raise FormatError(path, None, f"line {number} is longer than {_MAX_LINE_BYTES} bytes")
    try:
        values = tomllib.loads(raw.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError) as problem:  # bad UTF-8 is a ValueError too
        refuse_foreign(path, "recipe")
        raise FormatError(path, None, f"not valid TOML: {shown(str(problem))}") from None
    _check_keys(path, "", values, required=("base",), optional=("rule",))
    name = values["base"]
    base = recipe_named(name) if isinstance(name, str) else None
    directory = directory_type(name) if isinstance(name, str) else None
    if base is None and directory is None:
        meant = hint(name, (*RECIPES, *type_names())) if isinstance(name, str) else ""
        raise FormatError(path, None, f"base is {shown(name)}, which is no type{meant}")
    rules = values.get("rule", [])
    if not isinstance(rules, list):
        raise FormatError(path, None, "rules are written as [[rule]] tables")
    overrides = tuple(_rule(path, number, rule) for number, rule in enumerate(rules, 1))
    return RecipeFile(path, name, base, directory, overrides)


def _rule(path: Path, number: int, rule: Any) -> Override:
    place = f"rule {number}: "
    if not isinstance(rule, dict):
        raise FormatError(path, None, f"{place}not a table")
    _check_keys(path, place, rule, required=("pattern", "type"))
    return parse_override(path, place, rule["pattern"], rule["type"])


def _check_keys(
    path: Path,
    place: str,
    values: dict[str, Any],
    *,
    required: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> None:
    for key in values:
        if key not in required + optional:
            known = ", ".join(required + optional)
            raise FormatError(path, None, f"{place}unknown key {shown(key)}; known: {known}")
    for key in required:
        if key not in values:
            raise FormatError(path, None, f"{place}{key} is missing")


def parse_override(source: object, place: str, pattern: object, type_name: object) -> Override:
    """Check one rule. Raises FormatError that names its source and place."""
    compiled = _compiled(source, place, pattern)
    try:
        weight_type = rule_type(type_name)
    except RequestError as problem:
        raise FormatError(source, None, f"{place}{problem}") from None
    text = visible(compiled.pattern[:_MAX_SHOWN])
    return Override(compiled, weight_type, f"{source}: {place}'{text}'" if place else str(source))


def _compiled(source: object, place: str, pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern:
        raise FormatError(source, None, f"{place}pattern {shown(pattern)} is not a regex")
    if len(pattern) > _MAX_PATTERN:
        problem_text = f"{place}pattern {shown(pattern)} has more than {_MAX_PATTERN} characters"
        raise FormatError(source, None, problem_text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as [[a]: most likely a slip
            # llama-quantize writes patterns in lower case, as its names of tensors are.
            return re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError, Warning) as problem:
        problem_text = f"{place}pattern {shown(pattern)} is not a regex: {problem}"
        raise FormatError(source, None, problem_text) from None


def parse_pattern(source: str, pattern: str) -> re.Pattern[str]:
    """Read a pattern that is found in names of tensors, in any case. Raises RequestError."""
    try:
        return _compiled(source, "", pattern)
    except FormatError as problem:
        raise RequestError(str(problem)) from None


def parse_tensor_type(text: str) -> Override:
    """Read REGEX=TYPE, the form of `tensor_types`. Raises RequestError."""
    try:
        return _regex_and_type(text, f"{option('tensor_types')} {visible(text[:_MAX_SHOWN])}")
    except FormatError as problem:
        raise RequestError(str(problem)) from None


def read_tensor_types(path: Path) -> tuple[Override, ...]:
    """Read a file of rules REGEX=TYPE between spaces or lines. Raises FormatError.

    Source: parse_tensor_type_file in tools/quantize/quantize.cpp of llama.cpp.
    """
    raw = read_small(path, MAX_RECIPE_BYTES, "file of rules")
    try:
        words = raw.removeprefix(codecs.BOM_UTF8).decode().split()
    except UnicodeDecodeError:
        refuse_foreign(path, "recipe")
        raise FormatError(path, None, "not text: rules are written as REGEX=TYPE") from None
    return tuple(
        _regex_and_type(word, f"{path}: rule {number}: {visible(word[:_MAX_SHOWN])}")
        for number, word in enumerate(words, 1)
    )


def _regex_and_type(text: str, source: str) -> Override:
    pattern, separator, type_name = text.rpartition("=")
    if not (separator and pattern and type_name):
        raise FormatError(source, None, "write it as REGEX=TYPE, such as attn_v=Q8_0")
    # Reports and model cards tell of the rule, whoever asked for it.
    plain = visible(text[:_MAX_SHOWN])
    return replace(parse_override(source, "", pattern, type_name), origin=f"rule {plain}")
