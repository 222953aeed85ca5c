"""tokenizer.json gives the tokens of SentencePiece, in the library that transformers uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from tests.support import RELEASED_TOKENIZER, needs_released_tokenizer
from weightcast.formats.tokenizer.hugging_face import tokenizer_json
from weightcast.formats.tokenizer.sentencepiece import read_sentencepiece

TEXTS = st.text(
    st.sampled_from("abdefgiklmnorstu \n\t.,:0159\u00e9\u00df\u65e5\u672c\U0001f600<|>_-=()[]{}'\"")
    | st.characters(exclude_categories=["Cs"]),
    max_size=60,
)


class Pair:
    """A SentencePiece model and the JSON made of it."""

    def __init__(self, path: Path) -> None:
        self.json = tokenizer_json(read_sentencepiece(path))
        self.fast = Tokenizer.from_str(self.json.decode())
        self.reference = SentencePieceProcessor(model_file=str(path))
        self.added = {t["content"]: t for t in json.loads(self.json)["added_tokens"]}

    def check(self, text: str) -> None:
        ids = self.reference.encode(text)
        assert self.fast.encode(text, add_special_tokens=False).ids == ids
        assert self.fast.encode(text).ids == ids
        if "\ufffd" not in self.reference.decode(ids):
            assert self.fast.decode(ids) == self.reference.decode(ids)


@pytest.fixture(scope="module")
def trained(tokenizer_model: Path) -> Pair:
    return Pair(tokenizer_model)


@pytest.fixture(scope="module")
def release() -> Pair:
    return Pair(RELEASED_TOKENIZER)


def is_plain(text: str, pair: Pair) -> bool:
    """Whether a text holds none of the tokens that are taken whole."""
    return not any(content in text for content in pair.added)


@given(TEXTS)
@example("")
@example(" ")
@example("  two spaces")
@example("\n\n\nlines\n\n")
def test_tokens_are_those_of_sentencepiece(trained: Pair, text: str) -> None:
    if is_plain(text, trained):
        trained.check(text)


@needs_released_tokenizer
@settings(max_examples=300)
@given(TEXTS)
@example(" ")
@example("  two spaces")
@example("def f(x):\n    return x + 1\n\n\n")
@example("\u65e5\u672c\u8a9e \U0001f600 1234567890 3.14159")
def test_tokens_of_the_release(release: Pair, text: str) -> None:
    if is_plain(text, release):
        release.check(text)


def test_control_pieces_and_markers_are_taken_whole(trained: Pair) -> None:
    added = trained.added
    assert list(added) == ["<pad>", "<s>", "</s>", "<unk>", "<|sep|>"]
    assert [token["special"] for token in added.values()] == [True] * 4 + [False]
    for content, token in added.items():
        assert token["id"] in trained.fast.encode(f"some {content} text").ids


def test_no_bos_and_no_eos(trained: Pair) -> None:
    ids = trained.fast.encode("some text").ids
    assert not {1, 2} & set(ids)


def test_every_piece_keeps_its_id(trained: Pair) -> None:
    for n in range(trained.reference.get_piece_size()):
        assert trained.fast.id_to_token(n) == trained.reference.id_to_piece(n)
