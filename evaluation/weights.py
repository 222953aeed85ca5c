"""Matrices of a graph as float32 tiles of rows, decoded once and used for all tokens.

A matrix is read as it is stored, front to back; while workers multiply with one tile the next is
decoded, and behind the last tile the next matrix is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from weightcast.converters.graph import StoredMatrix, Tensor, TensorGraph, matrices
from weightcast.converters.graph.read import Slab, forget_rows, load_float32, named, read_slab
from weightcast.errors import CheckpointError
from weightcast.evaluation.arithmetic import F32
from weightcast.quant.cpu.library import Blocks, SourceValueError, quantize_matrix
from weightcast.quant.types import F32 as F32_TYPE

# Weights of a tile: its products with a block of tokens stay in the cache of a core.
TILE_WEIGHTS = 1 << 23
# Rows of the stored matrix that are read at once. Shards have rows across, which need them all.
SLAB_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows [start, start + len(values)) of a matrix, float32 [rows, in]."""

    start: int
    values: F32

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.values))


@dataclass(frozen=True)
class Weights:
    """The weights of a graph in float32; some may be given, float32 by name, instead of stored."""

    graph: TensorGraph
    given: Mapping[str, F32] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.graph.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor, [..., out, in]."""
        return self.graph[name].shape

    def whole(self, name: str) -> F32:
        """Load a tensor. Raises LayoutError for values that are not finite."""
        given = self.given.get(name)
        return load_float32(self.graph[name]) if given is None else given

    def rows_of(self, name: str, ids: Iterable[int]) -> F32:
        """Load some rows of a matrix, as an embedding's, [ids, in]."""
        wanted = np.asarray(ids)
        found = np.empty((len(wanted), self.shape(name)[-1]), np.float32)
        for tile in self.tiles(name):
            here = (wanted >= tile.start) & (wanted < tile.rows.stop)
            found[here] = tile.values[wanted[here] - tile.start]
        return found

    def tiles(self, name: str, expert: int = 0) -> Iterator[Tile]:
        """Decode a matrix tile by tile; of a tensor of experts, that of one."""
        given = self.given.get(name)
        if given is not None:
            matrix = given if given.ndim == 2 else given[expert]
            yield from (Tile(start, matrix[start:stop]) for start, stop in _cuts(*matrix.shape))
            return
        tensor = self.graph[name]
        with ThreadPoolExecutor(1) as ahead:
            source = _decoded(tensor, matrices(tensor)[expert])
            upcoming = ahead.submit(next, source, None)
            while (tile := upcoming.result()) is not None:
                upcoming = ahead.submit(next, source, None)
                yield tile


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
            yield Tile(row0, _float32(tensor, view, slab, start, row0, row1))


def _lies_across(view: StoredMatrix) -> bool:
    single = view.single
    return single is None or (not single.is_blocked and single.strides[1] != 1)


def _float32(
    tensor: Tensor, view: StoredMatrix, slab: Slab, start: int, row0: int, row1: int
) -> F32:
    piece = slab.matrix(row0 - start, row1 - start)
    matrix = piece.dequantized() if isinstance(piece, Blocks) else piece
    values = np.empty((row1 - row0, view.shape[1]), np.float32)
    try:
        quantize_matrix(matrix, F32_TYPE, values.reshape(-1).view(np.uint8))
    except SourceValueError as error:
        raise named(error, tensor.name, view, row0) from None
    return values
