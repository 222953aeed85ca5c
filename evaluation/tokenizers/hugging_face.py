"""Tokenize with a tokenizer.json, as tokenizers does, but special tokens are plain text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError
from weightcast.evaluation.tokenizers.bpe import no_tokenizers
from weightcast.formats.reading import MAX_JSON_BYTES, read_small

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class HuggingFaceTokenizer:
    """A tokenizer.json; `bos` is the one token that it puts before a text, or None."""

    tokenizer: Tokenizer
    bos: int | None

    def encode(self, text: str) -> NDArray[np.int32]:
        """Split a text into ids int32 [n], with the tokens that are added around one."""
        return np.array(self.tokenizer.encode(text).ids, np.int32)

    def piece(self, token: int) -> str:
        """Give the text of a token; bytes that are no character alone are marked."""
        found: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return found


def read_tokenizer_json(path: Path) -> HuggingFaceTokenizer:
    """Read a tokenizer.json. Raises CheckpointError if it is none, or tokenizers is missing."""
    raw = read_small(path, MAX_JSON_BYTES, "json")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise no_tokenizers(path) from None
    try:
        made = Tokenizer.from_buffer(raw)
    except Exception as problem:  # tokenizers raises no narrower one
        said = " ".join(str(problem).split())
        raise FormatError(path, None, f"not a tokenizer of Hugging Face: {said}") from None
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    plain = made.encode("a", add_special_tokens=False).ids
    added = made.encode("a").ids
    before = added[: len(added) - len(plain)]
    return HuggingFaceTokenizer(
        made, before[0] if before and added[1:][: len(plain)] == plain else None
    )
