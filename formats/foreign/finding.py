"""The result of looking at a path that is read as nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What directories of other models need before anything is read of them.
MAKE_GGUF: Final = "make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True)
class Finding:
    """A path in words: what it is and what to do about it, both without its name."""

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what
