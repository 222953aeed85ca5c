"""Texts and tokens cut to chunks as llama.cpp's tools do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, FormatError, LayoutError, RequestError
from weightcast.evaluation.text import Chunks, cut, read_text, read_tokens, tokens_of

TOKENS = np.arange(100, dtype=np.int32)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\n", "a"),
        (b"a\n\n", "a\n"),
        (b"a\r\n", "a\r"),
        (b"\n", ""),
        (b"", ""),
        (b" a\\n ", " a\\n "),
        ("\ufeff\xe9".encode(), "\ufeff\xe9"),
    ],
)
def test_one_newline_at_the_end_is_removed(tmp_path: Path, raw: bytes, text: str) -> None:
    (tmp_path / "t").write_bytes(raw)
    assert read_text(tmp_path / "t") == text


def test_texts_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes("abc\xe9".encode("latin-1"))
    with pytest.raises(FormatError, match=f"{path} at byte 3: not UTF-8; save the text as that"):
        read_text(path)
    with pytest.raises(CheckpointError, match="absent: no such file"):
        read_text(tmp_path / "absent")


@pytest.mark.parametrize("chunks", [None, 1, 2, 99])
def test_chunks(chunks: int | None) -> None:
    found = cut(TOKENS, 30, chunks)
    n = min(chunks or 3, 3)
    np.testing.assert_array_equal(found.tokens, TOKENS[: 30 * n].reshape(n, 30))
    assert found.tokens.dtype == np.int32
    assert found.n_ctx == 30
    assert found.inputs() is found.tokens


def test_bos_takes_the_place_of_first_tokens() -> None:
    found = cut(TOKENS, 30, bos=7)
    inputs = found.inputs()
    assert inputs[:, 0].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(inputs[:, 1:], found.tokens[:, 1:])
    assert found.tokens[:, 0].tolist() == [0, 30, 60]


def test_too_few_tokens() -> None:
    assert cut(TOKENS, 50).tokens.shape == (2, 50)
    expected = "100 tokens, and 102 are needed for chunks of 51; give a longer text, or shorter"
    with pytest.raises(LayoutError, match=expected):
        cut(TOKENS, 51)
    with pytest.raises(LayoutError, match=r"^1 token, and 1,024 are needed"):
        cut(TOKENS[:1])


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(RequestError, match="chunks of 2 tokens; they have 3 or more"):
        cut(TOKENS, 2)
    with pytest.raises(RequestError, match="chunks=0: give 1 or more"):
        cut(TOKENS, 10, 0)
    assert cut(TOKENS, 10, n_vocab=100).tokens.size == 100
    with pytest.raises(LayoutError, match="token 99, but the model has a vocabulary of 99"):
        cut(TOKENS, 10, n_vocab=99)


@given(n=st.integers(0, 60), n_ctx=st.integers(3, 20), chunks=st.none() | st.integers(1, 9))
def test_chunks_are_a_beginning(n: int, n_ctx: int, chunks: int | None) -> None:
    try:
        found = cut(TOKENS[:n], n_ctx, chunks)
    except LayoutError:
        assert n < 2 * n_ctx
        return
    assert isinstance(found, Chunks)
    np.testing.assert_array_equal(found.tokens.reshape(-1), TOKENS[: found.tokens.size])
    left = n - found.tokens.size
    assert left < n_ctx or len(found.tokens) == chunks


@pytest.mark.parametrize(
    "stored",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(6, dtype=">i8"),
        np.arange(6, dtype=np.uint16).reshape(3, 2),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
)
def test_tokens_of_a_file(tmp_path: Path, stored: NDArray[Any]) -> None:
    np.save(tmp_path / "t.npy", stored)
    found = read_tokens(tmp_path / "t.npy")
    assert found.dtype == np.int32
    assert found.tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (np.ones(3), "float64, not whole numbers; save ids as int32"),
        (np.array(["a"]), "<U1, not whole numbers"),
        (np.array([1, -1]), "ids from -1 to 1"),
        (np.array([1, 1 << 31]), "ids from 1 to 2147483648"),
        (np.array([1, (1 << 64) - 1], np.uint64), "ids from 1 to 18446744073709551615"),
    ],
)
def test_numbers_that_are_no_tokens(tmp_path: Path, stored: NDArray[Any], problem: str) -> None:
    path = tmp_path / "t.npy"
    np.save(path, stored)
    with pytest.raises(FormatError, match=re.escape(f"{path}: {problem}")):
        read_tokens(path)


def test_files_that_hold_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    np.save(path, np.arange(100))
    raw = path.read_bytes()
    objects = tmp_path / "o.npy"
    np.save(objects, np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=TOKENS)
    hostile = raw.replace(b"(100,)", b"(9" + b"9" * 17 + b",)")[:200]
    for content in (b"", b"text", raw[:-8], raw[:20], hostile, objects.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"{path}: not tokens in a .npy file"):
            read_tokens(path)
    with pytest.raises(FormatError, match="several arrays, not whole numbers"):
        read_tokens(tmp_path / "several.npz")
    with pytest.raises(CheckpointError, match="absent"):
        read_tokens(tmp_path / "absent.npy")


class _Letters:
    """A tokenizer of letters."""

    bos = None

    def encode(self, text: str) -> NDArray[np.int32]:
        return np.array([ord(letter) for letter in text], np.int32)


def test_tokens_of_either(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab\n")
    np.save(tmp_path / "t.npy", np.array([[3, 2], [1, 0]]))
    assert tokens_of(tmp_path / "t.txt", _Letters()).tolist() == [97, 98]
    assert tokens_of(tmp_path / "t.npy", _Letters()).tolist() == [3, 2, 1, 0]
