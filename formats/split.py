"""Names of the files that a model is split into."""

from __future__ import annotations

import re
from typing import Final

_PART: Final = r"(.+)-(\d{5})-of-(\d{5})"
SPLIT_NAME: Final = re.compile(rf"{_PART}\.gguf")
# Of any format: safetensors and PyTorch number their files alike.
PART_NAME: Final = re.compile(rf"{_PART}\.\w+")


def split_name(stem: str, number: int, count: int) -> str:
    """Name part `number` (from 0) of `count` of a GGUF file, as llama.cpp does (from 1)."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"
