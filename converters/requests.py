"""What is asked for: outputs by their names, sizes by their units."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from weightcast.converters.outputs import Request
from weightcast.quant.errors import CheckpointError
from weightcast.quant.types import BF16, F16, F32, TYPES, QuantType

DIRECTORY_TYPES: Final = (F32, F16, BF16)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_LOOKS_LIKE_A_TYPE = re.compile(r"(I?Q|TQ|MXFP|NVFP|BF|FP?|INT)\d\w*", re.IGNORECASE)


class RequestError(CheckpointError):
    """The request itself makes no sense: an unknown type, a size that is none."""


def parse_size(text: str) -> int:
    """Read a size such as 48G, 500M or 4GiB, in bytes. Raises RequestError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"{text[:50]!r} is not a size; write it like 48G, 500M or 4GiB")
    base = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    size = float(match[1]) * base**power
    if not 1 <= size < 2**60:
        raise RequestError(f"{text[:50]!r} is not a sensible size for a file")
    return int(size)


def parse_output(path: str | Path, type_name: str | None) -> Request:
    """Tell from its name what an output is: NAME-TYPE.gguf, or a directory NAME-TYPE.

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
    known = tuple(TYPES.values()) if kind == "gguf" else DIRECTORY_TYPES
    names = ", ".join(sorted(t.name for t in known))
    example = "grok-1-Q8_0.gguf" if kind == "gguf" else "grok-1-bf16/"
    last = re.split(r"[-.]", Path(text).name.removesuffix(".gguf"))[-1]
    found: QuantType | None = TYPES.get((type_name or last).upper())
    if found is None and type_name is None and not _LOOKS_LIKE_A_TYPE.fullmatch(last):
        raise RequestError(
            f"{text}: the name does not end in a type ({names}), as in {example}; "
            "rename it or pass --type"
        )
    if found not in known:
        what = "a GGUF file" if kind == "gguf" else "a safetensors directory"
        raise RequestError(f"{text}: {type_name or last} is not a type of {what}; known: {names}")
    return Request(_plain_path(text), kind, found)


def _plain_path(text: str) -> Path:
    """A path with a name of its own: what a link leads to, the directory that "." is."""
    path = Path(text)
    if path.is_symlink():
        return Path(os.path.realpath(path))
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))
