"""Names of the files of a split GGUF file."""

from __future__ import annotations

import re
from typing import Final

# As llama.cpp names them.
SPLIT_NAME: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def split_name(stem: str, number: int, count: int) -> str:
    """Name part `number` (from 0) of `count`, as llama.cpp does (from 1)."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"
