"""How slabs are cut into pieces, each for one worker, and what a piece takes in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from weightcast.converters.plan.plan import Destination, WorkItem, whole
from weightcast.quant.types import TYPES

# The kernels work on 64 columns of a source at a time: one cache line of int8.
_ROW_STEP: Final = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """Pieces of at most `limit_bytes` each, enough of them for all workers.

    Strips that are put together from pieces take `staged_bytes` at most.
    """

    workers: int
    limit_bytes: int
    staged_bytes: int

    def rows_per_piece(self, item: WorkItem) -> int:
        n_in = item.view.shape[1]
        row_bytes = max(d.row_bytes(n_in) for d in item.destinations)
        row_bytes = max(row_bytes, item.view.decoded_row_bytes)
        # A small slab is shared out too: only two are in memory.
        share = -(-(item.out1 - item.out0) // self.workers)
        rows = min(max(1, self.limit_bytes // row_bytes), max(share, _ROW_STEP))
        multiple = max(d.row_multiple for d in item.destinations)
        return whole(rows, multiple if rows < _ROW_STEP else max(multiple, _ROW_STEP))


@dataclass(frozen=True, slots=True)
class PieceBytes:
    """Bytes of the largest pieces: as stored, as float32 on the way, as output."""

    source: int = 0
    floats: int = 0
    output: int = 0


def keeps_bytes(item: WorkItem, destination: Destination) -> bool:
    """Whether the stored bytes go to a destination as they are."""
    view = item.view
    if destination.packed is not None:
        return False
    return destination.is_copied or (view.is_blocked and view.dtype == destination.type.name)


def is_measured(item: WorkItem, destination: Destination) -> bool:
    """Whether what goes to a destination are weights, which have errors."""
    return not keeps_bytes(item, destination) or item.view.dtype in TYPES


def largest_pieces(items: Iterable[WorkItem], cut: Cut) -> PieceBytes:
    """The buffers that fit every piece that is converted."""
    source = floats = output = 0
    for item in items:
        view, n_in = item.view, item.view.shape[1]
        made = [d.row_bytes(n_in) for d in item.destinations if not keeps_bytes(item, d)]
        if not made:
            continue
        rows = min(cut.rows_per_piece(item), item.out1 - item.out0)
        output = max(output, rows * max(made))
        if view.is_blocked:
            floats = max(floats, rows * n_in * 4)
            source = max(source, item.nbytes // (item.out1 - item.out0) * rows)
        elif view.is_encoded:
            source = max(source, rows * n_in * 4)
        else:
            source = max(source, view.piece_bytes(rows))
    return PieceBytes(source, floats, output)
