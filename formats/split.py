"""Files that a model is split into: their names, and what goes into each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_PART: Final = r"(.+)-(\d{5})-of-(\d{5})"
SPLIT_NAME: Final = re.compile(rf"{_PART}\.gguf")
# Of any format: safetensors and PyTorch number their files alike.
PART_NAME: Final = re.compile(rf"{_PART}\.\w+")


def split_name(stem: str, number: int, count: int) -> str:
    """Name part `number` (from 0) of `count` of a GGUF file, as llama.cpp does (from 1)."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Limits of each part of a split file: bytes of its tensors, and their number; 0 sets none.

    Where `first_is_empty` the first part has no tensors, but the metadata alone.
    """

    nbytes: int = 0
    tensors: int = 0
    first_is_empty: bool = False

    def cut(self, sizes: Sequence[int]) -> list[range]:
        """Cut tensors, of which `sizes` are given in order, into parts. At least one is made.

        A tensor larger than a part may be has one of its own. Where all sizes are padded as in the
        file, parts end where llama-gguf-split ends them.
        """
        starts, filled = [0], 0
        for number, size in enumerate(sizes):
            is_full = 0 < self.nbytes < filled + size or number - starts[-1] == self.tensors > 0
            if is_full and number > starts[-1]:
                starts.append(number)
                filled = 0
            filled += size
        ends = [*starts[1:], len(sizes)]
        first = [range(0)] if self.first_is_empty else []
        return first + [range(start, end) for start, end in zip(starts, ends, strict=True)]
