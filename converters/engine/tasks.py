"""What threads hand to each other: slabs on loan, pieces of them, what was made of these."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from weightcast.converters.engine.panels import Strip
from weightcast.converters.graph import Slab
from weightcast.converters.output.journal import Write
from weightcast.converters.plan.plan import WorkItem
from weightcast.quant.backend import Lane
from weightcast.quant.cpu.library import BlockCounts


@dataclass(slots=True)
class Loan:
    """A slab buffer on loan to the pieces of one item; the last one gives it back."""

    buffer: mmap.mmap
    owner: SimpleQueue[mmap.mmap]
    pieces: int
    made: Made
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self) -> None:
        with self.lock:
            self.pieces -= 1
            last = self.pieces == 0
        if last:
            self.owner.put(self.buffer)


@dataclass(slots=True)
class Made:
    """What the pieces of one item made, by the number of the destination."""

    pieces: int
    counts: dict[int, BlockCounts] = field(default_factory=lambda: defaultdict(BlockCounts))
    writes: dict[int, list[Write]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, made: Sequence[tuple[BlockCounts, Sequence[Write]]]) -> bool:
        """Add what a piece made, destination by destination; whether it was the last piece."""
        with self.lock:
            for number, (counts, writes) in enumerate(made):
                self.counts[number] += counts
                self.writes[number].extend(writes)
            self.pieces -= 1
            return self.pieces == 0


def slab_buffer(nbytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE))
    # Columns are read at strides of many pages, which huge pages make cheap.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them is only slower
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


@dataclass(frozen=True, slots=True)
class Worker:
    """What a thread keeps to itself: a lane, and a buffer for the rows that it makes."""

    lane: Lane
    buffer: mmap.mmap
    # Held while there is a piece in the making.
    busy: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Close the lane, after the piece in the making: not every thread can be waited for."""
        with self.busy:
            self.lane.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [row0, row1) of a slab, for one worker; `nbytes` of what was read count for it."""

    number: int
    item: WorkItem
    slab: Slab
    row0: int
    row1: int
    nbytes: int
    loan: Loan
    strip: Strip
