"""A SentencePiece BPE vocabulary as tokenizer.json, which transformers, vLLM and SGLang load.

Without this file transformers 5 makes one itself and leaves out the leading space that
SentencePiece puts before a text, so every prompt would start with other tokens than in training.
Format: https://huggingface.co/docs/tokenizers (the JSON of a Tokenizer with a BPE model).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from weightcast.formats.tokenizer.sentencepiece import BYTE, CONTROL, UNKNOWN, Vocabulary

_SPACE: Final = "\u2581"
# Pieces such as <|control1|> are one token wherever they stand, never merged from parts.
_MARKER: Final = re.compile(r"<\|.+\|>")


def tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """Make tokenizer.json: the same tokens as SentencePiece, without BOS or EOS.

    Only after a whole token in the middle of a text (a control piece or a marker) do they differ:
    what follows gets a leading space of its own.
    """
    unknown = vocabulary.special_ids.get("unk")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(n, text) for n, text in _whole_tokens(vocabulary)],
        # Not the Metaspace of newer files: that adds no space before a text that starts with one.
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: n for n, token in enumerate(vocabulary.tokens)},
            "merges": _merges(vocabulary),
        },
    }
    return (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode()


def _whole_tokens(vocabulary: Vocabulary) -> list[tuple[int, str]]:
    return [
        (n, token)
        for n, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, UNKNOWN) or _MARKER.fullmatch(token)
    ]


def _added(n: int, text: str) -> dict[str, Any]:
    return {
        "id": n,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": not _MARKER.fullmatch(text),
    }


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best piece first.

    SentencePiece merges the pair whose piece has the highest score; the JSON wants the pairs in
    that order. Pieces of equal score keep the order of their ids.
    """
    whole = {token for _, token in _whole_tokens(vocabulary)}
    pieces = {
        token: n
        for n, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != BYTE and token not in whole
    }
    merges = []
    for token, n in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                merges.append((-float(vocabulary.scores[n]), n, left, right))
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]
