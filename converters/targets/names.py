"""Parse what is asked for: outputs by their names."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from weightcast.converters.recipes.decide import Override
from weightcast.converters.recipes.file import RecipeFile
from weightcast.converters.recipes.recipe import ALIASES, RECIPES, recipe_named
from weightcast.converters.recipes.weight_types import KNOWN, directory_type, name_in, type_label
from weightcast.converters.targets.target import Request
from weightcast.errors import OutputError, RequestError
from weightcast.quant.types import TYPES, QuantType
from weightcast.text import shown

_LOOKS_LIKE_A_TYPE = re.compile(r"(I?Q|TQ|MXFP|NVFP|BF|FP?|INT)\d\w*", re.IGNORECASE)
_GGUF_TYPES: Final = ", ".join(sorted(TYPES))


def parse_output(
    path: str | Path, type_name: str | None, recipe_file: RecipeFile | None = None
) -> Request:
    """Tell from its name what an output is: NAME-TYPE.gguf, or a directory NAME-TYPE.

    With a recipe file the name need not say so, but must not say another thing.
    Raises RequestError if the name does not say so and no type is given, or the type is not one
    that such an output can have.
    """
    text = str(path)
    if text.endswith(".gguf/"):
        raise RequestError(f"{text}: a GGUF output is a file; leave the slash out")
    kind = "gguf" if text.endswith(".gguf") else "safetensors"
    if text.endswith(".safetensors"):
        raise RequestError(
            f"{text}: safetensors are written as a directory; name it like grok-1-bf16"
        )
    if kind == "safetensors":
        return _parse_directory(text, type_name, recipe_file)
    known = ", ".join(sorted((*RECIPES, *ALIASES)))
    last = re.split(r"[-.]", Path(text).name.removesuffix(".gguf"))[-1]
    found = recipe_named(type_name or last)
    if found is None and type_name is None and not _LOOKS_LIKE_A_TYPE.fullmatch(last):
        if recipe_file is not None and recipe_file.base is not None:
            return Request(_plain_path(text), kind, recipe_file.base)
        if recipe_file is not None:
            raise _disagreement(text, "is a GGUF file", recipe_file, ", a type of directories")
        raise RequestError(
            f"{text}: the name does not end in a type ({known}), as in grok-1-Q8_0.gguf; "
            "rename it or pass --type"
        )
    if found is None:
        raise RequestError(
            f"{text}: {type_name or last} is not a type of a GGUF file; known: {known}"
        )
    if recipe_file is not None and found != recipe_file.base:
        raise _disagreement(text, f"asks for {found.name}", recipe_file)
    return Request(_plain_path(text), kind, found)


def _parse_directory(text: str, type_name: str | None, recipe_file: RecipeFile | None) -> Request:
    """Tell what a directory is to hold."""
    name = type_name or name_in(Path(text).name)
    found = None if name is None else directory_type(name)
    last = name or re.split(r"[-.]", Path(text).name)[-1]
    says_nothing = type_name is None and not _LOOKS_LIKE_A_TYPE.fullmatch(last)
    if recipe_file is not None:
        base = recipe_file.directory
        if base is None and (found is not None or says_nothing):
            raise _disagreement(text, "is a directory", recipe_file, ", a recipe of GGUF files")
        if found is None and says_nothing:
            found = base
        if found is not None and base is not None and not found.is_same(base):
            raise _disagreement(text, f"asks for {found.name}", recipe_file)
    if found is not None:
        recipe = RECIPES[found.base.name]
        return Request(_plain_path(text), "safetensors", recipe, directory=found)
    if says_nothing:
        raise RequestError(
            f"{text}: the name does not end in a type ({KNOWN}), as in grok-1-bf16/; "
            "rename it or pass --type"
        )
    hint = "" if recipe_named(last) is None else "; the name of a GGUF file ends in .gguf"
    raise RequestError(
        f"{text}: {last} is not a type of a safetensors directory; known: {KNOWN}{hint}"
    )


def _disagreement(text: str, said: str, recipe_file: RecipeFile, kind: str = "") -> RequestError:
    remedy = "convert it by a command of its own" if kind else "rename the output or convert twice"
    base = f"the base in {recipe_file.path} is {recipe_file.base_name}{kind}"
    return RequestError(f"{text}: {said}, but {base}; {remedy}")


def with_rules(request: Request, overrides: tuple[Override, ...], *, pure: bool) -> Request:
    """Add the rules of a command to an output. Raises RequestError for types it cannot hold."""
    if request.directory is None:
        for override in overrides:
            if not isinstance(override.type, QuantType):
                raise _impossible(request, override, f"a GGUF file holds {_GGUF_TYPES}")
        return replace(request, overrides=overrides, pure=pure)
    kind = request.directory.with_rules(override.type for override in overrides)
    for override in overrides:
        problem = kind.why_not(override.type)
        if problem is not None:
            raise _impossible(request, override, problem)
    return replace(request, overrides=overrides, directory=kind)


def _impossible(request: Request, override: Override, problem: str) -> RequestError:
    asked = type_label(override.type)
    return RequestError(f"{request.path}: {override.origin} asks for {asked}, but {problem}")


def _plain_path(text: str) -> Path:
    """A path with a name of its own: what a link leads to, the directory that "." is."""
    path = Path(text)
    try:
        if path.is_symlink():
            return Path(os.path.realpath(path))
        return path if path.name not in ("", "..") else Path(os.path.abspath(path))
    except (OSError, ValueError) as problem:  # names that are too long, or with a NUL in them
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise OutputError(f"{shown(text)}: cannot be written: {reason}") from None
