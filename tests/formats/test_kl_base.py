"""KL base files: one of llama-perplexity, those written here, and hostile ones."""

from __future__ import annotations

import io
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support import DATA
from weightcast.errors import CheckpointError, FormatError, LayoutError
from weightcast.formats import kl_base
from weightcast.formats.kl_base import (
    KLBaseWriter,
    encode_header,
    encode_records,
    first_scored,
    read_kl_base,
    scored_positions,
)

RECORDED = DATA / "kl_base" / "base.kld"
F32 = NDArray[np.float32]


def some_logits(n: int, n_vocab: int, seed: int = 0, spread: float = 4) -> F32:
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((n, n_vocab))).astype(np.float32)


def some_tokens(chunks: int, n_ctx: int, n_vocab: int) -> NDArray[np.int32]:
    rng = np.random.default_rng(7)
    return rng.integers(0, n_vocab, (chunks, n_ctx), dtype=np.int32)


def write(path: Path, tokens: NDArray[np.int32], logits: F32) -> Path:
    with path.open("wb") as file:
        writer = KLBaseWriter(file, tokens, logits.shape[1])
        writer.add(logits)
        writer.finish()
    return path


def record(row: F32) -> bytes:
    """One record, number by number: the independent arithmetic."""
    f = np.float32
    largest = max(row)
    least = max(min(row), f(largest - f(16)))
    total = sum(float(np.exp(f(x - largest))) for x in row)
    scale = f(f(largest - least) / f(65535))
    least_log = f(f(least - largest) - f(math.log(total)))
    inverse = f(1) / scale if scale else f(0)
    codes = [round(float(f(inverse * f(x - least)))) if x > least else 0 for x in row]
    padding = [0] * (len(row) % 2)
    return struct.pack(f"<ff{len(row) + len(padding)}H", scale, least_log, *codes, *padding)


def test_a_file_of_llama_perplexity() -> None:
    """Its log-probabilities are normalized, and its perplexity is what was printed."""
    base = read_kl_base(RECORDED)
    assert (base.n_chunks, base.n_ctx, base.positions, base.n_vocab) == (15, 16, 7, 320)
    found = np.stack([base.log_probs(chunk) for chunk in range(base.n_chunks)])
    assert found.dtype == np.float32
    assert found.shape == (15, 7, 320)
    np.testing.assert_allclose(np.exp(found.astype(float)).sum(-1), 1, atol=1e-4)
    assert found.max() <= 0
    losses = [
        -found[chunk, position, token]
        for chunk in range(15)
        for position, token in enumerate(base.targets(chunk))
    ]
    assert math.exp(np.mean(losses, dtype=float)) == pytest.approx(1291.854490, abs=1e-3)


@pytest.mark.parametrize("n_vocab", [1, 2, 7, 64, 301])
def test_records_are_as_llama_perplexity_computes_them(n_vocab: int) -> None:
    logits = some_logits(5, n_vocab)
    if n_vocab > 2:
        logits[1] = 3.5
        logits[2, 1] = -1000
        logits[3, 0] = 1000
    found = encode_records(logits)
    assert found.dtype == np.dtype("<u2")
    raw = b"".join(record(row) for row in logits)
    expected = np.frombuffer(raw, np.uint16).reshape(found.shape)
    np.testing.assert_array_equal(found[:, 4:], expected[:, 4:])
    np.testing.assert_allclose(
        found[:, :4].copy().view("<f4"), expected[:, :4].copy().view("<f4"), rtol=2e-7
    )


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = some_logits(20, 33)
    whole = encode_records(logits)
    monkeypatch.setattr(kl_base, "_BLOCK", 70)
    np.testing.assert_array_equal(encode_records(logits), whole)


def test_which_positions_are_scored() -> None:
    assert [(first_scored(n), scored_positions(n)) for n in (3, 4, 16, 512)] == [
        (1, 1),
        (2, 1),
        (8, 7),
        (256, 255),
    ]


def test_layout(tmp_path: Path) -> None:
    """Magic, three numbers, tokens, then records of 4 + vocab codes, padded to even."""
    tokens = some_tokens(2, 4, 5)
    raw = write(tmp_path / "b", tokens, some_logits(2, 5)).read_bytes()
    assert raw[:20] == b"_logits_" + struct.pack("<Iii", 4, 5, 2)
    assert raw[20:52] == tokens.tobytes()
    assert len(raw) == 52 + 2 * 2 * (4 + 6)


@given(
    chunks=st.integers(1, 3),
    n_ctx=st.integers(3, 9),
    n_vocab=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, chunks: int, n_ctx: int, n_vocab: int, seed: int
) -> None:
    """Within half a code, or raised to what lies 16 nats below the largest."""
    tokens = some_tokens(chunks, n_ctx, n_vocab)
    logits = some_logits(chunks * scored_positions(n_ctx), n_vocab, seed, 8)
    base = read_kl_base(write(tmp_path_factory.mktemp("b") / "b", tokens, logits))
    np.testing.assert_array_equal(base.tokens, tokens)
    exact = logits.astype(float)
    exact = exact - exact.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    raised = np.maximum(exact, exact.max(1, keepdims=True) - 16)
    found = np.concatenate([base.log_probs(chunk) for chunk in range(chunks)])
    np.testing.assert_allclose(found, raised, atol=16 / 65535 / 2 + 1e-5)
    for chunk in range(chunks):
        np.testing.assert_array_equal(base.targets(chunk), tokens[chunk, n_ctx // 2 + 1 :])


def test_part_of_a_chunk() -> None:
    base = read_kl_base(RECORDED)
    whole = base.log_probs(3)
    np.testing.assert_array_equal(base.log_probs(3, 2, 5), whole[2:5])
    np.testing.assert_array_equal(base.log_probs(3, 5, 99), whole[5:])
    assert base.log_probs(3, 7).shape == (0, 320)


def test_logits_come_in_any_parts(tmp_path: Path) -> None:
    tokens, logits = some_tokens(3, 8, 10), some_logits(9, 10)
    file = io.BytesIO()
    writer = KLBaseWriter(file, tokens, 10)
    for start, stop in ((0, 1), (1, 6), (6, 9)):
        writer.add(logits[start:stop])
    writer.finish()
    assert file.getvalue() == write(tmp_path / "b", tokens, logits).read_bytes()


def test_logits_that_do_not_belong() -> None:
    writer = KLBaseWriter(io.BytesIO(), some_tokens(2, 4, 10), 10)
    with pytest.raises(LayoutError, match=re.escape("[1, 9] logits, expected [up to 2, 10]")):
        writer.add(some_logits(1, 9))
    with pytest.raises(LayoutError, match=re.escape("[3, 10] logits, expected [up to 2, 10]")):
        writer.add(some_logits(3, 10))
    writer.add(some_logits(1, 10))
    with pytest.raises(LayoutError, match="1 position of a KL base file have no logits"):
        writer.finish()
    with pytest.raises(LayoutError, match="chunks of 2 tokens"):
        KLBaseWriter(io.BytesIO(), some_tokens(2, 2, 10), 10)


def test_logits_that_are_none() -> None:
    logits = some_logits(3, 4)
    logits[1, 2] = -np.inf
    assert encode_records(logits)[1, 6] == 0
    for value in (np.nan, np.inf):
        logits[2, 0] = value
        with pytest.raises(LayoutError, match=f"position 2: their largest is {value}"):
            encode_records(logits)
    with pytest.raises(LayoutError, match="position 0: their largest is -inf"):
        encode_records(np.full((1, 4), -np.inf, np.float32))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"_logits" + bytes(99), " at byte 0: not a KL base file of llama-perplexity"),
        (b"", " at byte 0: not a KL base file of llama-perplexity"),
        (b"_logits_" + bytes(4), " at byte 12: the file ends within its header"),
        (struct.pack("<8sIii", b"_logits_", 2, 5, 1), "1 chunks of 2 tokens"),
        (struct.pack("<8sIii", b"_logits_", 8, 0, 1), "a vocabulary of 0"),
        (struct.pack("<8sIii", b"_logits_", 8, -1, 1), "a vocabulary of -1"),
        (struct.pack("<8sIii", b"_logits_", 8, 1 << 30, 1), "a vocabulary of 1073741824"),
        (struct.pack("<8sIii", b"_logits_", 8, 9, -3), "-3 chunks"),
        (struct.pack("<8sIii", b"_logits_", (1 << 32) - 1, 9, 1 << 30), "tokens; 134,217,728 are"),
        (struct.pack("<8sIii", b"_logits_", 8, 9, 1), "the file ends within its tokens"),
    ],
)
def test_files_that_are_none(tmp_path: Path, raw: bytes, problem: str) -> None:
    (tmp_path / "b").write_bytes(raw)
    with pytest.raises(FormatError, match=re.escape(problem)) as caught:
        read_kl_base(tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)


def test_a_cut_file_says_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "b", some_tokens(3, 8, 10), some_logits(9, 10))
    raw = path.read_bytes()
    chunk = 3 * 2 * 14
    path.write_bytes(raw[: -chunk - 5])
    expected = f"at byte {len(raw) - chunk - 5}: the file ends here, with 1 of 3 chunks (whole at"
    with pytest.raises(FormatError, match=re.escape(expected)):
        read_kl_base(path)
    path.write_bytes(raw + b"more")
    with pytest.raises(FormatError, match=f"at byte {len(raw)}: 4 bytes follow the last chunk"):
        read_kl_base(path)


def test_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    tokens = some_tokens(2, 4, 10)
    tokens[1, 2] = 10
    path = write(tmp_path / "b", tokens, some_logits(2, 10))
    with pytest.raises(FormatError, match="at byte 44: token 10 of a vocabulary of 10"):
        read_kl_base(path)


@pytest.mark.parametrize("head", [(np.nan, 0), (-1, 0), (1, np.inf)])
def test_scales_that_are_none(tmp_path: Path, head: tuple[float, float]) -> None:
    path = write(tmp_path / "b", some_tokens(1, 8, 10), some_logits(3, 10))
    raw = bytearray(path.read_bytes())
    place = 20 + 32 + 28
    raw[place : place + 8] = struct.pack("<ff", *head)
    path.write_bytes(raw)
    base = read_kl_base(path)
    assert np.isfinite(base.log_probs(0, 0, 1)).all()
    with pytest.raises(FormatError, match=f"at byte {place}: scale"):
        base.log_probs(0)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = write(tmp_path / "b", some_tokens(1, 8, 10), some_logits(3, 10))
    base = read_kl_base(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the file ends 1 bytes too early"):
        base.log_probs(0)


@given(data=st.data())
def test_every_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("b") / "b", some_tokens(2, 4, 5), some_logits(2, 5))
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[position:]
    else:
        raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        base = read_kl_base(path)
        found = [base.log_probs(chunk) for chunk in range(base.n_chunks)]
    except CheckpointError:
        return
    assert not np.isnan(found).any()


def test_headers_alone() -> None:
    tokens = some_tokens(2, 4, 10)
    assert encode_header(tokens, 10)[20:] == tokens.tobytes()
