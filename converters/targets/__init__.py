"""Targets: what models are written as, GGUF files and safetensors directories.

A target parses names, lays outputs out to the byte, and tells which files are its own. It reads no
weights: that is the engine's. Only this page names a concrete target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weightcast.converters.recipes import Recipe, RecipeFile
from weightcast.converters.targets.gguf import GGUF
from weightcast.converters.targets.safetensors import SAFETENSORS
from weightcast.converters.targets.target import Request, Target

# A name is parsed by the first that takes it for its own; directories come last.
TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in (GGUF, SAFETENSORS)}

__all__ = ["TARGETS", "parse_output"]


def parse_output(
    path: str | Path,
    type_name: str | None,
    file: RecipeFile | None = None,
    default: Recipe | None = None,
) -> Request:
    """Tell from its name what an output is: NAME-TYPE.gguf, or a directory NAME-TYPE.

    With a recipe file, or a `default` for GGUF files, the name need not say so, but must not say
    another thing than the recipe file. Raises RequestError if the name does not say so and no type
    is given, or the type is not one that such an output can have.
    """
    parsed = (target.parse(str(path), type_name, file, default) for target in TARGETS.values())
    return next(request for request in parsed if request is not None)
