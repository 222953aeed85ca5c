"""Tokenize as llama.cpp does with a vocabulary of SentencePiece pieces ("llama" in GGUF files).

The work is done by sentencepiece, on a model made of nothing but pieces and scores. For it differs
from llama.cpp, on the model that it was trained to, in that

- it may normalize the text (NFKC, spaces at the ends or in rows); llama.cpp takes it as it is;
- it takes user-defined pieces whole from anywhere; those of a `tokenizer.model` are normal pieces
  in the files that weightcast and llama.cpp's converter write, merged from parts or not at all;
- it never merges text to unused, control or unknown pieces; llama.cpp does, by their scores;
- it puts a space before the text alone; llama.cpp does so after each whole token too.

In the model made here all pieces are normal ones, and spaces and whole tokens are seen to before.
What is left: llama.cpp would also merge text such as <0x41> to that byte, if the vocabulary had its
parts. Source: llm_tokenizer_spm_session in src/llama-vocab.cpp; the model is the protocol buffer of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError, LayoutError
from weightcast.evaluation.tokenizers.whole import WholeTokens

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE: Final = "\u2581"
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
# Of the enum ModelProto.SentencePiece.Type, and of TrainerSpec.ModelType.
_NORMAL, _UNKNOWN, _BYTE_PIECE = 1, 2, 6
_BPE: Final = 2


@dataclass(frozen=True, slots=True)
class SpmTokenizer:
    """A tokenizer of pieces; `bos` and `eos` are None where none is added to a text."""

    processor: SentencePieceProcessor
    n_tokens: int
    whole: WholeTokens
    bos: int | None
    eos: int | None
    space_prefix: bool

    def encode(self, text: str) -> NDArray[np.int32]:
        """Split a text into ids int32 [n], with BOS and EOS if the vocabulary adds them.

        Raises LayoutError for a character that neither a piece nor bytes stand for.
        """
        found = [] if self.bos is None else [self.bos]
        after_whole = True
        for part in self.whole.split(text):
            if isinstance(part, int):
                found.append(part)
            else:
                prefix = SPACE if self.space_prefix and after_whole else ""
                found += self.processor.EncodeAsIds(prefix + part.replace(" ", SPACE))
            after_whole = isinstance(part, int)
        if self.eos is not None:
            found.append(self.eos)
        ids = np.array(found, np.int32)
        if ids.size and ids.max() >= self.n_tokens:
            missing = self.processor.IdToPiece(int(ids.max()))
            raise LayoutError(f"the vocabulary has no piece for the byte {missing} of the text")
        return ids

    def piece(self, token: int) -> str:
        """Give the text of a token; a byte that is no character alone is named."""
        if not 0 <= token < min(self.n_tokens, self.processor.GetPieceSize()):
            return f"<{token}>"
        found: str = self.processor.IdToPiece(token)
        return found.replace(SPACE, " ")


def spm_processor(
    path: object, tokens: Sequence[str], scores: NDArray[np.float32]
) -> SentencePieceProcessor:
    """Make a processor of pieces and scores [n]. Raises FormatError if it takes them not."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(_model(tokens, scores))
    except RuntimeError as problem:
        said = " ".join(str(problem).split())
        raise FormatError(path, None, f"its pieces make no tokenizer: {said}") from None
    return processor


def _model(tokens: Sequence[str], scores: NDArray[np.float32]) -> bytes:
    """Encode a ModelProto; bytes that have no piece, and an unknown one, follow the others."""
    named = [token or f"[EMPTY_{n}]" for n, token in enumerate(tokens)]
    there = set(named)
    raw = bytearray()
    for token, score in zip(named, scores.tolist(), strict=True):
        raw += _piece(token, score, _BYTE_PIECE if _BYTE.fullmatch(token) else _NORMAL)
    for byte in range(256):
        if f"<0x{byte:02X}>" not in there:
            raw += _piece(f"<0x{byte:02X}>", 0, _BYTE_PIECE)
    unknown = "<unknown>"
    while unknown in there:
        unknown += ">"
    raw += _piece(unknown, 0, _UNKNOWN)
    raw += _field(2, _number(3, _BPE) + _number(35, 1))  # trainer_spec: model_type, byte_fallback
    # normalizer_spec: name; add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    raw += _field(3, _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0))
    return bytes(raw)


def _piece(token: str, score: float, kind: int) -> bytes:
    score_field = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return _field(1, _field(1, token.encode()) + score_field + _number(3, kind))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
