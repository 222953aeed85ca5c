"""KL base files of llama-perplexity: tokens, and a model's log-probabilities in 16 bits each.

    "_logits_", u32 n_ctx, i32 n_vocab, i32 n_chunk, i32 tokens[n_chunk * n_ctx]
    for each scored position: f32 scale, f32 min_log_prob, u16 codes[n_vocab], u16 if that is odd

    log p = scale * code + min_log_prob

Positions n_ctx / 2 ... n_ctx - 2 of a chunk are scored, each by the next token. What is more than
16 nats below the likeliest token is raised to that. With a vocabulary of 131,072 a position takes
262,152 bytes. Source: log_softmax and kl_divergence in llama.cpp's tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, FormatError, LayoutError
from weightcast.formats.array import read_into
from weightcast.formats.foreign import require_file
from weightcast.text import count

MAGIC: Final = b"_logits_"
# Nats below the likeliest token that a code can be.
DEPTH: Final = 16
_HEAD: Final = struct.Struct("<8sIii")
_MAX_VOCABULARY: Final = 1 << 22
_MAX_TOKENS: Final = 1 << 27
_LARGEST_CODE: Final = 65535
# Values of logits that are encoded at a time: what is made of them stays in the cache.
_BLOCK: Final = 1 << 18
_AGAIN: Final = "make it again (llama-perplexity --save-all-logits FILE)"


def first_scored(n_ctx: int) -> int:
    """Give the first position of a chunk that is scored: those before are context only."""
    return n_ctx // 2


def scored_positions(n_ctx: int) -> int:
    """Count the positions of a chunk that are scored: the last has no next token."""
    return n_ctx - 1 - first_scored(n_ctx)


def _record_bytes(n_vocab: int) -> int:
    return 2 * (4 + n_vocab + n_vocab % 2)


@dataclass(frozen=True, slots=True)
class KLBase:
    """A base file: tokens int32 [chunks, n_ctx], log-probabilities read when they are asked for."""

    path: Path
    n_vocab: int
    tokens: NDArray[np.int32] = field(repr=False)

    @property
    def n_chunks(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def n_ctx(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def positions(self) -> int:
        """Count the scored positions of a chunk."""
        return scored_positions(self.n_ctx)

    def targets(self, chunk: int) -> NDArray[np.int32]:
        """Give the tokens that the scored positions of a chunk are held against, [positions]."""
        return self.tokens[chunk, first_scored(self.n_ctx) + 1 :]

    def log_probs(self, chunk: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Read log-probabilities of scored positions [start, stop) of a chunk, [positions, vocab].

        All of a chunk take 134 MB for a vocabulary of 131,072 and 512 tokens. Raises FormatError
        for scales that are none.
        """
        stop = self.positions if stop is None else min(stop, self.positions)
        row_bytes = _record_bytes(self.n_vocab)
        if start >= stop:
            return np.empty((0, self.n_vocab), np.float32)
        raw = np.empty((stop - start, row_bytes), np.uint8)
        row0 = chunk * self.positions + start
        offset = _HEAD.size + self.tokens.nbytes + row0 * row_bytes
        try:
            with self.path.open("rb") as file:
                read_into(file.fileno(), self.path, offset, raw.data.cast("B"))
        except OSError as problem:
            raise CheckpointError(f"{self.path}: cannot be read: {problem.strerror}") from None
        heads = raw[:, :8].copy().view("<f4")
        bad = np.flatnonzero(~np.isfinite(heads).all(1) | (heads[:, 0] < 0))
        if bad.size:
            scale, least = heads[bad[0]]
            said = f"scale {scale}, least log-probability {least}"
            raise FormatError(self.path, offset + int(bad[0]) * row_bytes, f"{said}; {_AGAIN}")
        return _decoded(heads, raw.view("<u2")[:, 4 : 4 + self.n_vocab])


def _decoded(heads: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Give log-probabilities [n, vocab] of scales and least ones [n, 2] and codes [n, vocab].

    Rounded once, as processors do that multiply and add in one step: near 0, where the likeliest
    tokens are, another rounding would move them by 1e-6.
    """
    found = np.empty(codes.shape, np.float32)
    rows = max(1, _BLOCK // codes.shape[1])
    for row in range(0, len(codes), rows):
        scale, least = (heads[row : row + rows, [n]].astype(np.float64) for n in (0, 1))
        with np.errstate(over="ignore"):
            found[row : row + rows] = scale * codes[row : row + rows] + least
    return found


def read_kl_base(path: str | Path) -> KLBase:
    """Index a base file. Raises CheckpointError for what is none, is cut, or is too long."""
    path = Path(path)
    require_file(path)
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None


def _read(path: Path, file: BinaryIO) -> KLBase:
    size = os.fstat(file.fileno()).st_size
    raw = file.read(_HEAD.size)
    if raw[:8] != MAGIC:
        raise FormatError(path, 0, f"not a KL base file of llama-perplexity; {_AGAIN}")
    if len(raw) < _HEAD.size:
        raise FormatError(path, size, f"the file ends within its header; {_AGAIN}")
    _, n_ctx, n_vocab, n_chunks = _HEAD.unpack(raw)
    if n_ctx < 3 or not 0 < n_vocab <= _MAX_VOCABULARY or n_chunks < 1:
        said = f"{n_chunks} chunks of {n_ctx} tokens, a vocabulary of {n_vocab}"
        raise FormatError(path, 8, f"a KL base file of {said}; {_AGAIN}")
    if n_ctx * n_chunks > _MAX_TOKENS:
        problem = f"{n_ctx * n_chunks:,} tokens; {_MAX_TOKENS:,} are read"
        raise FormatError(path, 8, problem)
    start = _HEAD.size + 4 * n_ctx * n_chunks
    chunk_bytes = scored_positions(n_ctx) * _record_bytes(n_vocab)
    if size != start + n_chunks * chunk_bytes:
        raise _wrong_size(path, size, start, n_chunks, chunk_bytes)
    tokens = np.empty((n_chunks, n_ctx), "<i4")
    read_into(file.fileno(), path, _HEAD.size, tokens.data.cast("B"))
    bad = np.flatnonzero((tokens < 0) | (tokens >= n_vocab))
    if bad.size:
        token = tokens.flat[bad[0]]
        problem = f"token {token} of a vocabulary of {n_vocab:,}; {_AGAIN}"
        raise FormatError(path, _HEAD.size + 4 * int(bad[0]), problem)
    return KLBase(path, n_vocab, tokens)


def _wrong_size(path: Path, size: int, start: int, chunks: int, chunk_bytes: int) -> FormatError:
    """Make the error for a file that is shorter or longer than its header says."""
    whole = start + chunks * chunk_bytes
    if size > whole:
        problem = f"{size - whole:,} bytes follow the last chunk"
        return FormatError(path, whole, f"{problem}, as in files of other programs; {_AGAIN}")
    if size < start:
        has = "the file ends within its tokens"
    else:
        has = (
            f"the file ends here, with {(size - start) // chunk_bytes} of {count(chunks, 'chunk')}"
        )
    return FormatError(path, size, f"{has} (whole at {whole:,} bytes); {_AGAIN}")


def encode_header(tokens: NDArray[np.int32], n_vocab: int) -> bytes:
    """Encode what comes before the records, of tokens [chunks, n_ctx]."""
    n_chunks, n_ctx = tokens.shape
    return _HEAD.pack(MAGIC, n_ctx, n_vocab, n_chunks) + tokens.astype("<i4").tobytes()


def encode_records(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Encode logits [positions, vocab] as records [positions, 4 + vocab, padded to even].

    In float32 as llama-perplexity does, sums in float64. Logits of -inf are as unlikely as can be.
    Raises LayoutError for NaN, inf, and positions without any finite logit.
    """
    n, n_vocab = logits.shape
    records = np.zeros((n, _record_bytes(n_vocab) // 2), "<u2")
    rows = max(1, _BLOCK // n_vocab)
    for row in range(0, n, rows):
        heads, codes = _encoded(logits[row : row + rows], row)
        records[row : row + rows, :4] = heads.view("<u2")
        records[row : row + rows, 4 : 4 + n_vocab] = codes
    return records


def _encoded(
    logits: NDArray[np.float32], row0: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode rows [n, vocab]: scale and least log-probability [n, 2], codes [n, vocab]."""
    largest = logits.max(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        raise LayoutError(
            f"logits of position {row0 + bad[0]}: their largest is {largest[bad[0], 0]}"
        )
    least = np.maximum(logits.min(axis=1, keepdims=True), largest - np.float32(DEPTH))
    total = np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)
    scale = (largest - least) / np.float32(_LARGEST_CODE)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(np.float32(1) / scale * (logits - least))
    codes = np.where((logits > least) & (scale > 0), codes, np.float32(0))
    heads = np.concatenate([scale, least - largest - np.log(total).astype(np.float32)], axis=1)
    return heads.astype("<f4"), codes


class KLBaseWriter:
    """Writes a base file front to back: tokens first, then records as logits come.

    `file` is empty and open for writing; `finish` says whether all positions came.
    """

    def __init__(self, file: BinaryIO, tokens: NDArray[np.int32], n_vocab: int) -> None:
        if tokens.shape[1] < 3:
            raise LayoutError(f"chunks of {tokens.shape[1]} tokens; KL base files have 3 or more")
        self._file = file
        self._n_vocab = n_vocab
        self._left = tokens.shape[0] * scored_positions(tokens.shape[1])
        file.write(encode_header(tokens, n_vocab))

    def add(self, logits: NDArray[np.float32]) -> None:
        """Write logits [positions, vocab] of the next scored positions, any number of them."""
        n, n_vocab = logits.shape
        if n_vocab != self._n_vocab or n > self._left:
            said = f"[{n}, {n_vocab}] logits, expected [up to {self._left}, {self._n_vocab}]"
            raise LayoutError(said)
        rows = max(1, _BLOCK // n_vocab)
        for row in range(0, n, rows):
            self._file.write(encode_records(logits[row : row + rows]).tobytes())
        self._left -= n

    def finish(self) -> None:
        """Raise LayoutError unless all positions were written."""
        if self._left:
            raise LayoutError(f"{count(self._left, 'position')} of a KL base file have no logits")
