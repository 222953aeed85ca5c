"""Sums that an importance matrix is made of: squared inputs by column, and how many there were.

llama-imatrix stores sums, not means, so that texts can be added later. Rules of merging:
load_imatrix in tools/imatrix/imatrix.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError, RequestError
from weightcast.text import shown

# What names of tensors in a file end in: sums of squares, counts, sums of the inputs themselves.
SQUARES, COUNTS, PLAIN = ".in_sum2", ".counts", ".in_sum"
# n_ctx of llama.cpp's tools, unless it is given.
CHUNK_SIZE: Final = 512


@dataclass(frozen=True, slots=True)
class TensorSums:
    """What went into one tensor's products: sums [matrices, in] and counts int64 [matrices].

    `squares` are sums of squared inputs, float32 or float64; `plain`, sums of the inputs
    themselves, which llama.cpp does not read yet. A matrix that no token reached has the count 0.
    """

    squares: NDArray[np.floating[Any]]
    counts: NDArray[np.int64]
    plain: NDArray[np.floating[Any]] | None = None

    @property
    def n_in(self) -> int:
        """Count the columns of a matrix."""
        return int(self.squares.shape[-1])


@dataclass(frozen=True, slots=True)
class ImportanceSums:
    """Sums by GGUF tensor name, the texts they came from, and the tokens in a chunk of these."""

    entries: Mapping[str, TensorSums]
    datasets: tuple[str, ...]
    chunk_size: int = CHUNK_SIZE

    @property
    def chunks(self) -> int:
        """Count the chunks that the largest count stands for, rounded down."""
        counts = (int(entry.counts.max(initial=0)) for entry in self.entries.values())
        return max(counts, default=0) // self.chunk_size


def merge_sums(parts: Sequence[ImportanceSums], chunk_size: int | None = None) -> ImportanceSums:
    """Add sums and counts of the same tensors; float64 [matrices, in]. Texts follow one another.

    One count beside many, as older files have, counts for every expert. Plain sums are kept if all
    parts have them. The size of a chunk is that of the first part unless it is given. Raises
    RequestError without parts, LayoutError naming a tensor of two shapes.
    """
    if not parts:
        raise RequestError("no importance matrices to merge")
    entries: dict[str, TensorSums] = {}
    for part in parts:
        for name, sums in part.entries.items():
            entries[name] = _added(name, entries[name], sums) if name in entries else _wide(sums)
    datasets = tuple(dataset for part in parts for dataset in part.datasets)
    return ImportanceSums(entries, datasets, chunk_size or parts[0].chunk_size)


def _wide(sums: TensorSums) -> TensorSums:
    """Copy sums as float64: what is added to them must not change a part."""
    plain = None if sums.plain is None else sums.plain.astype(np.float64)
    return TensorSums(sums.squares.astype(np.float64), sums.counts.astype(np.int64), plain)


def _added(name: str, a: TensorSums, b: TensorSums) -> TensorSums:
    matrices = max(a.counts.size, b.counts.size)
    fits = all(each.counts.size in (1, matrices) for each in (a, b))
    if a.squares.size != b.squares.size or a.squares.size % matrices or not fits:
        shapes = " and ".join(f"[{s.counts.size}, {s.n_in}]" for s in (a, b))
        raise LayoutError(
            f"{shown(name)}: sums of {shapes}; merge importance matrices of the same model"
        )
    shape = (matrices, -1)
    plain = None
    if a.plain is not None and b.plain is not None:
        plain = a.plain.reshape(shape) + b.plain.reshape(shape)
    return TensorSums(
        a.squares.reshape(shape) + b.squares.reshape(shape),
        np.broadcast_to(a.counts, matrices) + np.broadcast_to(b.counts, matrices),
        plain,
    )
