"""Parse what targets have in common: paths, and names that contradict a recipe file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from weightcast.converters.recipes import Override, RecipeFile
from weightcast.converters.targets.target import Request
from weightcast.errors import OutputError, RequestError
from weightcast.quant.types import TYPES
from weightcast.text import shown

LOOKS_LIKE_A_TYPE = re.compile(r"(I?Q|TQ|MXFP|NVFP|BF|FP?|INT)\d\w*", re.IGNORECASE)
_GGUF_TYPES: Final = ", ".join(sorted(TYPES))


def disagreement(text: str, said: str, recipe_file: RecipeFile, kind: str = "") -> RequestError:
    """Make the error for a name that says something else than a recipe file."""
    remedy = "convert it by a command of its own" if kind else "rename the output or convert twice"
    base = f"the base in {recipe_file.path} is {recipe_file.base_name}{kind}"
    return RequestError(f"{text}: {said}, but {base}; {remedy}")


def impossible(request: Request, override: Override, problem: str) -> RequestError:
    """Make the error for a rule that asks for a type which an output cannot hold."""
    asked = override.type.label
    return RequestError(f"{request.path}: {override.origin} asks for {asked}, but {problem}")


def plain_path(text: str) -> Path:
    """A path with a name of its own: what a link leads to, the directory that "." is."""
    path = Path(text)
    try:
        if path.is_symlink():
            return Path(os.path.realpath(path))
        return path if path.name not in ("", "..") else Path(os.path.abspath(path))
    except (OSError, ValueError) as problem:  # names that are too long, or with a NUL in them
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise OutputError(f"{shown(text)}: cannot be written: {reason}") from None
