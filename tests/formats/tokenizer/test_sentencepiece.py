"""Vocabularies survive the way from a SentencePiece file into GGUF metadata and back.

A tiny SentencePiece model is trained here; the release's own file is checked where it lies beside
the repository.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from tests.support import RELEASED_TOKENIZER, needs_released_tokenizer
from weightcast.errors import FormatError, LayoutError
from weightcast.formats.gguf.header import raw_string
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.formats.gguf.read import read_file
from weightcast.formats.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    Vocabulary,
    from_gguf,
    gguf_values,
    read_sentencepiece,
)
from weightcast.quant.types import F32

SIZE = 340
WORDS = "the quick brown fox jumps over lazy dogs while seventeen wizards mix grokking potions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece file with the special ids of the release."""
    words = WORDS.split()
    lines = [" ".join(words[n % 7 :: 1 + n % 5]) for n in range(500)]
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        model_type="bpe",
        vocab_size=SIZE,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=["<|a|>", "<|b|>"],
        control_symbols=["<ctl>"],
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def vocabulary(model: Path) -> Vocabulary:
    return read_sentencepiece(model)


def test_pieces_and_scores(model: Path, vocabulary: Vocabulary) -> None:
    processor = SentencePieceProcessor()
    processor.Load(str(model))
    assert vocabulary.tokens == [processor.IdToPiece(n) for n in range(SIZE)]
    assert vocabulary.scores.dtype == np.float32
    assert vocabulary.scores.tolist() == [processor.GetScore(n) for n in range(SIZE)]
    assert len(set(vocabulary.scores.tolist())) > 10
    assert vocabulary.model_file == model


def test_types(vocabulary: Vocabulary) -> None:
    types = dict(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
    assert types["<unk>"] == UNKNOWN
    assert [types[t] for t in ("<pad>", "<s>", "</s>", "<ctl>")] == [CONTROL] * 4
    assert [types[f"<0x{byte:02X}>"] for byte in range(256)] == [BYTE] * 256
    assert types["\u2581"] == NORMAL
    assert Counter(types.values()) == {
        UNKNOWN: 1,
        CONTROL: 4,
        BYTE: 256,
        NORMAL: SIZE - 261,
    }


def test_user_defined_pieces_are_normal(vocabulary: Vocabulary) -> None:
    """As in llama.cpp's converter: it would split text at user-defined ones before merging."""
    types = dict(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
    assert (types["<|a|>"], types["<|b|>"]) == (NORMAL, NORMAL)


def test_special_ids(vocabulary: Vocabulary) -> None:
    assert vocabulary.special_ids == {"pad": 0, "bos": 1, "eos": 2, "unk": 3}


def test_absent_special_ids_are_left_out(tmp_path: Path) -> None:
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 10),
        model_writer=file,
        model_type="char",
        vocab_size=20,
        pad_id=-1,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(file.getvalue())
    assert set(read_sentencepiece(path).special_ids) == {"eos", "unk"}


def test_padded(vocabulary: Vocabulary) -> None:
    padded = vocabulary.padded(SIZE + 3)
    assert padded.tokens[:SIZE] == vocabulary.tokens
    assert padded.tokens[SIZE:] == [f"[PAD{n}]" for n in range(SIZE, SIZE + 3)]
    assert padded.types.tolist() == [*vocabulary.types.tolist(), UNUSED, UNUSED, UNUSED]
    assert padded.scores.tolist() == [*vocabulary.scores.tolist(), *[-10000.0] * 3]
    assert (padded.types.dtype, padded.scores.dtype) == (np.int32, np.float32)
    assert padded.special_ids == vocabulary.special_ids
    assert padded.model_file == vocabulary.model_file


def test_padded_to_its_own_size(vocabulary: Vocabulary) -> None:
    assert vocabulary.padded(SIZE).tokens == vocabulary.tokens


def test_more_pieces_than_rows(vocabulary: Vocabulary) -> None:
    with pytest.raises(LayoutError, match=f"{SIZE} pieces.*vocabulary of {SIZE - 1}") as caught:
        vocabulary.padded(SIZE - 1)
    assert str(vocabulary.model_file) in str(caught.value)


@pytest.mark.parametrize("raw", [b"\0", b"{}", b"GGUF" + bytes(100), b"\x0a\0", b"\xff" * 1000])
def test_file_that_is_no_model(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"not a SentencePiece model|zeros where") as caught:
        read_sentencepiece(path)
    assert str(path) in str(caught.value)


def test_truncated_model(model: Path, tmp_path: Path) -> None:
    """Cut inside the pieces; the description of the training comes last and could be absent."""
    raw = model.read_bytes()
    path = tmp_path / "tokenizer.model"
    for end in (1, 7, 100, len(raw) // 2 - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            read_sentencepiece(path)


# GGUF metadata.


def write_gguf(path: Path, vocabulary: Vocabulary | None) -> Path:
    metadata = {"general.architecture": raw_string("test")} | gguf_values(vocabulary)
    [layout] = lay_out(metadata, [[Entry("a", F32, (1,))]])
    path.write_bytes(layout.header.ljust(layout.size, b"\0"))
    return path


def test_through_gguf_and_back(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", vocabulary.padded(SIZE + 2))
    back = from_gguf(path, read_file(path).metadata)
    assert back is not None
    assert back.tokens == vocabulary.padded(SIZE + 2).tokens
    np.testing.assert_array_equal(back.scores, vocabulary.padded(SIZE + 2).scores, strict=True)
    np.testing.assert_array_equal(back.types, vocabulary.padded(SIZE + 2).types, strict=True)
    assert back.special_ids == vocabulary.special_ids
    assert back.model_file is None


def test_keys_that_llama_cpp_reads(vocabulary: Vocabulary, tmp_path: Path) -> None:
    fields = GGUFReader(write_gguf(tmp_path / "a.gguf", vocabulary)).fields

    def value(key: str) -> Any:
        return fields[f"tokenizer.ggml.{key}"].contents()

    assert value("model") == "llama"
    assert value("tokens") == vocabulary.tokens
    assert value("scores") == vocabulary.scores.tolist()
    assert value("token_type") == vocabulary.types.tolist()
    ids = [value(f"{name}_token_id") for name in ("padding", "bos", "eos", "unknown")]
    assert ids == [0, 1, 2, 3]
    assert value("add_bos_token") is False
    assert value("add_space_prefix") is True


def test_no_vocabulary(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", None)
    assert GGUFReader(path).fields["tokenizer.ggml.model"].contents() == "no_vocab"
    assert from_gguf(path, read_file(path).metadata) is None


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_metadata_without_vocabulary(model: str | None) -> None:
    metadata = {} if model is None else {"tokenizer.ggml.model": model}
    assert from_gguf(Path("a.gguf"), metadata) is None


TOKENS = {"model": "llama", "tokens": ["a", "b"]}


def test_scores_and_types_have_defaults() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in TOKENS.items()}
    vocabulary = from_gguf(Path("a.gguf"), metadata)
    assert vocabulary is not None
    assert vocabulary.scores.tolist() == [0, 0]
    assert vocabulary.types.tolist() == [NORMAL, NORMAL]
    assert vocabulary.special_ids == {}


BAD_METADATA: dict[str, dict[str, Any]] = {
    "another tokenizer": {**TOKENS, "model": "gpt2"},
    "a number as a model": {**TOKENS, "model": 5},
    "a list as a model": {**TOKENS, "model": np.zeros(2, np.int32)},
    "no tokens": {"model": "llama"},
    "numbers as tokens": {**TOKENS, "tokens": np.zeros(2, np.int32)},
    "a string as tokens": {**TOKENS, "tokens": "ab"},
    "too few scores": {**TOKENS, "scores": np.zeros(1, np.float32)},
    "too many types": {**TOKENS, "token_type": np.ones(3, np.int32)},
    "a number as scores": {**TOKENS, "scores": 1.0},
    "strings as scores": {**TOKENS, "scores": ["a", "b"]},
    "a string as scores": {**TOKENS, "scores": "a"},
    "a number as types": {**TOKENS, "token_type": 1},
    "strings as types": {**TOKENS, "token_type": ["a", "b"]},
    "fractions as types": {**TOKENS, "token_type": np.array([np.nan, 1])},
    "a string as an id": {**TOKENS, "bos_token_id": "1"},
    "a list as an id": {**TOKENS, "bos_token_id": np.zeros(2, np.int32)},
    "a negative id": {**TOKENS, "bos_token_id": -1},
    "an id beyond the tokens": {**TOKENS, "bos_token_id": 2},
}


@pytest.mark.parametrize("problem", BAD_METADATA)
def test_metadata_that_is_no_vocabulary(problem: str) -> None:
    metadata = {f"tokenizer.ggml.{key}": v for key, v in BAD_METADATA[problem].items()}
    with pytest.raises(FormatError, match=r"a\.gguf"):
        from_gguf(Path("a.gguf"), metadata)


@needs_released_tokenizer
def test_released_tokenizer() -> None:
    vocabulary = read_sentencepiece(RELEASED_TOKENIZER)
    assert len(vocabulary.tokens) == 131072
    assert Counter(vocabulary.types.tolist()) == {NORMAL: 130812, BYTE: 256, CONTROL: 3, UNKNOWN: 1}
    assert vocabulary.special_ids == {"pad": 0, "bos": 1, "eos": 2, "unk": 3}
