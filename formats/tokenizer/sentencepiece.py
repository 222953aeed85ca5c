"""SentencePiece vocabularies, as llama.cpp and Hugging Face directories carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError, LayoutError
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.gguf.header import (
    raw_array,
    raw_number,
    raw_string,
    raw_strings,
    raw_uint,
)
from weightcast.formats.reading import read_small
from weightcast.text import option, shown

# Token types of llama.cpp (enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# The release's has 2.2 MB.
MAX_MODEL_BYTES: Final = 1 << 27
# Vocabularies have up to 262,144 pieces, of 16 characters where nothing else was asked for.
MAX_PIECES: Final = 1 << 22
MAX_PIECE_CHARACTERS: Final = 1000
# Tables of embeddings are rounded up to a multiple, of 4096 rows at most.
MAX_UNUSED: Final = 4096
_KEY: Final = "tokenizer.ggml."
_ID_KEYS: Final = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in id order with score and llama.cpp's token type, and the ids of special pieces.

    `model_file` is the SentencePiece file they come from, if there is one to copy.
    """

    tokens: list[str]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    special_ids: dict[str, int]
    model_file: Path | None = None

    def padded(self, vocab_size: int, most_unused: int = MAX_UNUSED) -> Vocabulary:
        """Fill up to the model's vocabulary with unused pieces, as llama.cpp's converter does.

        Raises LayoutError if there are more pieces than the model has rows, or so many fewer.
        """
        if vocab_size > MAX_PIECES:
            raise LayoutError(f"a vocabulary of {vocab_size:,} pieces; {MAX_PIECES:,} are the most")
        missing = vocab_size - len(self.tokens)
        if not 0 <= missing <= most_unused:
            raise LayoutError(
                f"{self.model_file or 'the tokenizer'} has {len(self.tokens):,} pieces, but the "
                f"model has a vocabulary of {vocab_size:,}: it belongs to "
                f"another model ({option('tokenizer', 'FILE')} names another file, "
                f"{option('no_tokenizer', True)} does without)"
            )
        return Vocabulary(
            self.tokens + [f"[PAD{n}]" for n in range(len(self.tokens), vocab_size)],
            np.concatenate([self.scores, np.full(missing, -10000.0, np.float32)]),
            np.concatenate([self.types, np.full(missing, UNUSED, np.int32)]),
            self.special_ids,
            self.model_file,
        )


def read_sentencepiece(path: Path) -> Vocabulary:
    """Read a SentencePiece model file. Raises FormatError if it is none.

    User-defined pieces become normal ones, as in llama.cpp's converter: with type USER_DEFINED
    llama.cpp splits text at them before merging, which gives other tokens than SentencePiece.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    raw = read_small(path, MAX_MODEL_BYTES, "tokenizer")
    try:
        processor.LoadFromSerializedProto(raw)
        ids = range(processor.GetPieceSize())
        tokens = [processor.IdToPiece(n) for n in ids]
    except (RuntimeError, UnicodeDecodeError):
        refuse_foreign(path, "tokenizer")
        raise FormatError(
            path, None, "not a SentencePiece model, or cut; give the release's tokenizer.model"
        ) from None

    if len(ids) > MAX_PIECES:
        raise FormatError(path, None, f"{len(ids):,} pieces; {MAX_PIECES:,} are read")
    if any(len(token) > MAX_PIECE_CHARACTERS for token in tokens):
        raise FormatError(path, None, f"a piece of more than {MAX_PIECE_CHARACTERS:,} characters")

    def token_type(n: int) -> int:
        if processor.IsUnknown(n):
            return UNKNOWN
        if processor.IsControl(n):
            return CONTROL
        if processor.IsUnused(n):
            return UNUSED
        return BYTE if processor.IsByte(n) else NORMAL

    special = {
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "unk": processor.unk_id(),
        "pad": processor.pad_id(),
    }
    return Vocabulary(
        tokens,
        np.array([processor.GetScore(n) for n in ids], np.float32),
        np.array([token_type(n) for n in ids], np.int32),
        {name: n for name, n in special.items() if n >= 0},
        path,
    )


def from_gguf(path: Path, metadata: Mapping[str, Any]) -> Vocabulary | None:
    """Take the vocabulary out of GGUF metadata; None if there is none ("no_vocab")."""
    model = metadata.get(_KEY + "model", "no_vocab")
    if not isinstance(model, str):
        raise FormatError(path, None, "tokenizer.ggml.model is not a name")
    if model in ("no_vocab", "none"):
        return None
    tokens = metadata.get(_KEY + "tokens")
    if model != "llama" or not isinstance(tokens, list):
        raise FormatError(path, None, f"tokenizer {shown(model)} is not a SentencePiece one")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise FormatError(path, None, "a token is not valid UTF-8") from None
    scores = metadata.get(_KEY + "scores", np.zeros(len(tokens), np.float32))
    types = metadata.get(_KEY + "token_type", np.ones(len(tokens), np.int32))
    if not (isinstance(scores, np.ndarray) and scores.dtype.kind == "f"):
        raise FormatError(path, None, "the scores of the tokens are not a list of numbers")
    if not (np.abs(scores) < np.finfo(np.float32).max).all():
        raise FormatError(path, None, "the scores of the tokens are not finite")
    if not (isinstance(types, np.ndarray) and types.dtype.kind in "iu"):
        raise FormatError(path, None, "the types of the tokens are not a list of numbers")
    if not len(tokens) == len(scores) == len(types):
        raise FormatError(path, None, "tokens, scores and types differ in number")
    special = {name: metadata.get(_KEY + key) for name, key in _ID_KEYS.items()}
    special_ids = {k: v for k, v in special.items() if v is not None}
    for name, n in special_ids.items():
        if type(n) is not int or not 0 <= n < len(tokens):
            raise FormatError(path, None, f"{_ID_KEYS[name]} is not the id of a token")
    return Vocabulary(tokens, scores.astype(np.float32), types.astype(np.int32), special_ids)


def gguf_values(vocabulary: Vocabulary | None) -> dict[str, bytes]:
    """Encode a vocabulary, or its absence, as raw GGUF metadata."""
    if vocabulary is None:
        return {_KEY + "model": raw_string("no_vocab")}
    special = {
        _KEY + key: raw_uint(vocabulary.special_ids[name])
        for name, key in _ID_KEYS.items()
        if name in vocabulary.special_ids
    }
    return {
        _KEY + "model": raw_string("llama"),
        _KEY + "pre": raw_string("default"),
        _KEY + "tokens": raw_strings(vocabulary.tokens),
        _KEY + "scores": raw_array("float32", vocabulary.scores),
        _KEY + "token_type": raw_array("int32", vocabulary.types),
        **special,
        # The reference runner encodes without BOS; llama.cpp's default for SentencePiece adds one.
        _KEY + "add_bos_token": raw_number("bool", False),
        _KEY + "add_eos_token": raw_number("bool", False),
        _KEY + "add_space_prefix": raw_number("bool", True),
    }
