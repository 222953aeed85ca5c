"""Matrices of a graph as float32 tiles of rows, decoded once and used for all tokens.

A matrix is read as it is stored, front to back; while workers multiply with one tile the next is
decoded, and behind the last tile the next matrix is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import StoredMatrix, Tensor, TensorGraph, matrices
from weightcast.converters.graph.read import decode_into, forget_rows, load_float32, read_slab
from weightcast.errors import CheckpointError, LayoutError
from weightcast.evaluation.arithmetic import F32
from weightcast.quant.arrays import dequantize, quantize
from weightcast.quant.cpu.library import uses_importance
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

# Weights of a tile: its products with a block of tokens stay in the cache of a core.
TILE_WEIGHTS = 1 << 23
# Rows of the stored matrix that are read at once. Shards have rows across, which need them all.
SLAB_BYTES = 256 << 20
_COPIED_ROWS = 512


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows [start, start + len(values)) of a matrix, float32 [rows, in]."""

    start: int
    values: F32

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.values))


@dataclass(frozen=True, slots=True)
class Rounding:
    """A type that a tensor is to have, and how: by a search, with importance [matrices, in]."""

    type: QuantType
    importance: F32 | None = None
    search: Search = GGML

    def apply(self, name: str, values: F32, matrix: int) -> F32:
        """Quantize rows [rows, in] of a tensor's matrix, and give what a reader makes of them.

        Raises LayoutError, with the tensor's name, for values that the type cannot hold.
        """
        importance = None
        if self.importance is not None and uses_importance(self.type, self.search):
            importance = self.importance[min(matrix, len(self.importance) - 1)]
        how = self.search.describe()
        try:
            blocks = quantize(values, self.type.name, importance, how["name"], how["effort"])
        except LayoutError as problem:
            raise LayoutError(f"{name}: {problem}") from None
        return dequantize(blocks, self.type.name)


@dataclass(frozen=True)
class Weights:
    """The weights of a graph in float32; those of some tensors rounded to another type first."""

    graph: TensorGraph
    rounded: Mapping[str, Rounding] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.graph.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor, [..., out, in]."""
        return self.graph[name].shape

    def whole(self, name: str) -> F32:
        """Load a tensor. Raises LayoutError for values that are not finite."""
        loaded = load_float32(self.graph[name])
        rounding = self.rounded.get(name)
        if rounding is None:
            return loaded
        rows = loaded.reshape(-1, *loaded.shape[-2:])
        changed = [rounding.apply(name, matrix, number) for number, matrix in enumerate(rows)]
        return np.stack(changed).reshape(loaded.shape)

    def rows_into(self, name: str, ids: NDArray[np.int64], out: F32) -> None:
        """Load rows `ids` [n] of a matrix, as an embedding's, into `out` [n, in]."""
        for tile in self.tiles(name):
            here = np.flatnonzero((ids >= tile.start) & (ids < tile.rows.stop))
            # Some at a time: a copy of all would take as much memory again.
            for start in range(0, len(here), _COPIED_ROWS):
                rows = here[start : start + _COPIED_ROWS]
                out[rows] = tile.values[ids[rows] - tile.start]

    def tiles(self, name: str, expert: int = 0) -> Iterator[Tile]:
        """Decode a matrix tile by tile; of a tensor of experts, that of one."""
        tensor = self.graph[name]
        with ThreadPoolExecutor(1) as ahead:
            source = self._rounded(name, expert, _decoded(tensor, matrices(tensor)[expert]))
            upcoming = ahead.submit(next, source, None)
            while (tile := upcoming.result()) is not None:
                upcoming = ahead.submit(next, source, None)
                yield tile

    def _rounded(self, name: str, expert: int, tiles: Iterator[Tile]) -> Iterator[Tile]:
        rounding = self.rounded.get(name)
        for tile in tiles:
            values = tile.values if rounding is None else rounding.apply(name, tile.values, expert)
            yield Tile(tile.start, values)


def _cuts(n_out: int, n_in: int) -> Iterator[tuple[int, int]]:
    """Cut rows into tiles, the same for a matrix however it is stored."""
    step = max(1, TILE_WEIGHTS // max(1, n_in))
    return ((start, min(n_out, start + step)) for start in range(0, n_out, step))


def _decoded(tensor: Tensor, view: StoredMatrix) -> Iterator[Tile]:
    n_out, n_in = view.shape
    cuts = list(_cuts(n_out, n_in))
    per_read = len(cuts)
    if not _lies_across(view):
        per_read = max(1, SLAB_BYTES * len(cuts) // max(1, view.slab_bytes(0, n_out)))
    for first in range(0, len(cuts), per_read):
        tiles = cuts[first : first + per_read]
        start, stop = tiles[0][0], tiles[-1][1]
        buffer = memoryview(bytearray(view.slab_bytes(start, stop)))
        try:
            slab = read_slab(view, start, stop, buffer)
        except OSError as problem:
            raise CheckpointError(f"{tensor.name}: cannot be read: {problem}") from None
        forget_rows(view, start, stop)
        for row0, row1 in tiles:
            values = np.empty((row1 - row0, n_in), np.float32)
            decode_into(values, slab.matrix(row0 - start, row1 - start), tensor, view, row0)
            yield Tile(row0, values)


def _lies_across(view: StoredMatrix) -> bool:
    single = view.single
    return single is None or (not single.is_blocked and single.strides[1] != 1)
