"""Cut a text into chunks of tokens, as llama-imatrix and llama-perplexity do.

A text is tokenized whole. Chunks are independent sequences; what is left over is dropped. Sources:
compute_imatrix in tools/imatrix/imatrix.cpp, perplexity in tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError, LayoutError, RequestError
from weightcast.formats.foreign import require_file
from weightcast.formats.gguf.importance_sums import CHUNK_SIZE
from weightcast.formats.reading import read_small
from weightcast.text import count, option

if TYPE_CHECKING:
    from weightcast.evaluation.tokenizers import Tokenizer

TOKENS_SUFFIX: Final = ".npy"
# Texts for calibration have some MB.
MAX_TEXT_BYTES: Final = 1 << 28
_MAX_TOKENS: Final = 1 << 28
_FEWEST_CHUNKS: Final = 2


@dataclass(frozen=True, slots=True)
class Chunks:
    """Tokens of a text, int32 [chunks, n_ctx], and the BOS that chunks begin with, if they do."""

    tokens: NDArray[np.int32]
    bos: int | None = None

    @property
    def n_ctx(self) -> int:
        return int(self.tokens.shape[1])

    def inputs(self) -> NDArray[np.int32]:
        """Give what a model reads, int32 [chunks, n_ctx]: BOS in the place of first tokens.

        What a position is scored against are `tokens`, which keep them.
        """
        if self.bos is None:
            return self.tokens
        found = self.tokens.copy()
        found[:, 0] = self.bos
        return found


def read_text(path: str | Path) -> str:
    """Read a text, less one newline at its end. Raises CheckpointError, also if it is not UTF-8."""
    path = Path(path)
    raw = read_small(path, MAX_TEXT_BYTES)
    try:
        text = raw.decode()
    except UnicodeDecodeError as problem:
        raise FormatError(path, problem.start, "not UTF-8; save the text as that") from None
    return text.removesuffix("\n")


def read_tokens(path: str | Path) -> NDArray[np.int32]:
    """Read ids int32 [n] from a .npy of whole numbers, of any shape, row by row.

    Raises CheckpointError, also for ids below 0.
    """
    path = Path(path)
    require_file(path)
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        said = " ".join(str(problem).split())
        raise FormatError(path, None, f"not tokens in a .npy file: {said}") from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "iu":
        kind = getattr(stored, "dtype", "several arrays")
        if not isinstance(stored, np.ndarray):
            stored.close()
        raise FormatError(path, None, f"{kind}, not whole numbers; save ids as int32")
    if stored.size > _MAX_TOKENS:
        raise FormatError(path, None, f"{stored.size:,} tokens; {_MAX_TOKENS:,} are read")
    if stored.size and not (stored.min() >= 0 and stored.max() < 1 << 31):
        raise FormatError(
            path, None, f"ids from {stored.min()} to {stored.max()}; ids of tokens are 0 or more"
        )
    return np.array(stored, np.int32).reshape(-1)


def tokens_of(path: str | Path, tokenizer: Tokenizer | None) -> NDArray[np.int32]:
    """Give the tokens int32 [n] of a text, or those that a .npy holds, which needs no tokenizer.

    Raises CheckpointError.
    """
    path = Path(path)
    if path.suffix == TOKENS_SUFFIX:
        return read_tokens(path)
    assert tokenizer is not None
    return tokenizer.encode(read_text(path))


def cut(
    tokens: NDArray[np.int32],
    n_ctx: int = CHUNK_SIZE,
    chunks: int | None = None,
    *,
    bos: int | None = None,
    n_vocab: int | None = None,
) -> Chunks:
    """Cut ids [n] to chunks of n_ctx, the first `chunks` of them; `bos` begins each, if given.

    Raises LayoutError for less than two chunks, or ids that a vocabulary of `n_vocab` has not.
    """
    if n_ctx < 3:
        raise RequestError(f"chunks of {count(n_ctx, 'token')}; they have 3 or more")
    if chunks is not None and chunks < 1:
        raise RequestError(f"{option('chunks', chunks)}: give 1 or more")
    if tokens.size < _FEWEST_CHUNKS * n_ctx:
        raise LayoutError(
            f"{count(tokens.size, 'token')}, and {_FEWEST_CHUNKS * n_ctx:,} are needed for chunks "
            f"of {n_ctx:,}; give a longer text, or shorter chunks"
        )
    if n_vocab is not None and tokens.max() >= n_vocab:
        raise LayoutError(
            f"token {tokens.max():,}, but the model has a vocabulary of {n_vocab:,}; the tokens "
            "belong to another model"
        )
    n = tokens.size // n_ctx if chunks is None else min(chunks, tokens.size // n_ctx)
    return Chunks(tokens[: n * n_ctx].reshape(n, n_ctx), bos)
