"""Pass objects between the reader and the workers of a conversion."""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from weightcast.converters.engine.panels import Panel
from weightcast.converters.graph.read import Slab
from weightcast.converters.output import Write
from weightcast.converters.plan import WorkItem
from weightcast.quant.backend import Backend
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix


@dataclass(frozen=True, slots=True)
class Worker:
    """The backend of a thread, and its buffer for the rows that it makes."""

    backend: Backend
    buffer: mmap.mmap
    # Held while there is a task in work.
    busy: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Close the backend, after the task in work: not every thread can be waited for."""
        with self.busy:
            self.backend.close()


@dataclass(frozen=True, slots=True)
class Task:
    """Rows [row0, row1) of a slab, for one worker; `read_bytes` of what was read count for it.

    Where there is no slab the rows go from file to file as they are. The task places columns in
    `panel`, which it shares with others, and adds what it made to the `result` of its item.
    """

    item: WorkItem
    slab: Slab | None
    row0: int
    row1: int
    read_bytes: int
    panel: Panel
    result: ItemResult

    @property
    def out0(self) -> int:
        """Return the number of the first row in the matrix."""
        return self.item.out0 + self.row0

    @property
    def out1(self) -> int:
        """Return the number of the row after the last."""
        return self.item.out0 + self.row1

    @property
    def matrix(self) -> Matrix | Blocks:
        """Return the rows as kernels take them."""
        assert self.slab is not None
        return self.slab.matrix(self.row0, self.row1)


@dataclass(slots=True)
class TaskResult:
    """Blocks that a task made for one destination, by origin, and the writes that hold them."""

    counts: BlockCounts
    writes: list[Write]


@dataclass(slots=True)
class ItemResult:
    """Add up what the `tasks` of one item made, by the number of the destination."""

    tasks: int
    counts: dict[int, BlockCounts] = field(default_factory=lambda: defaultdict(BlockCounts))
    writes: dict[int, list[Write]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, results: Sequence[TaskResult]) -> bool:
        """Add the results of a task, one for each destination. Returns whether it was the last."""
        with self.lock:
            for number, result in enumerate(results):
                self.counts[number] += result.counts
                self.writes[number].extend(result.writes)
            self.tasks -= 1
            return self.tasks == 0
