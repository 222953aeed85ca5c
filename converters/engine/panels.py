"""Put parts whose words lie along `out` together from the tasks of many rows, and write them.

The rows of a task are a short run of bytes in each row of such a part, and files take short runs
far more slowly than whole rows. So the tasks of a panel, which is some rows of an item, share a
buffer in which each worker places its columns. Whoever finishes the last task of the panel writes
it: one run, if it is whole rows.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from queue import SimpleQueue
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.output import OutputFiles, Write
from weightcast.converters.plan import Destination, Tiling, WorkItem, whole
from weightcast.converters.targets.packing import Packing
from weightcast.errors import LayoutError
from weightcast.formats.packed.layout import NUMPY_DTYPES, Part, Segment

_ALIGNMENT: Final = 64


def write_segment(files: OutputFiles, destination: Destination, segment: Segment) -> Write:
    """Write runs of a part where they belong in the file. Raises OutputError."""
    assert destination.packed is not None
    file, start = destination.packed.places[segment.suffix]
    offset = start + segment.offset
    return files.write_runs(destination.output, file, segment.data, offset, segment.stride)


@cache
def _columns_parts(packing: Packing, n_out: int, n_in: int) -> tuple[Part, ...]:
    """Find the parts of a matrix in which the rows of a task are columns."""
    parts = [part for part in packing.parts(n_out, n_in) if part.out_axis == 1]
    constants = packing.constants(n_out, n_in) if parts else {}
    return tuple(part for part in parts if part.suffix not in constants)


class Slot:
    """Columns [row0, row1) of the matrix of one destination, as `parts` store them."""

    def __init__(
        self, parts: Iterable[Part], row0: int, row1: int, buffer: NDArray[np.uint8]
    ) -> None:
        self._wholes: dict[str, Segment] = {}
        at = 0
        for part in parts:
            item = NUMPY_DTYPES[part.dtype].itemsize
            first, last = _columns(part, row0, row1)
            shape = part.shape[0], (last - first) * item
            array = buffer[at : at + shape[0] * shape[1]].reshape(shape)
            self._wholes[part.suffix] = Segment(
                part.suffix, array, first * item, part.shape[1] * item
            )
            at += _aligned(array.nbytes)

    def holds(self, suffix: str) -> bool:
        """Return whether a part is put together here."""
        return suffix in self._wholes

    def place(self, segment: Segment) -> Segment:
        """Copy a segment to where it belongs, and return it there; leave that of another part.

        Raises LayoutError if it belongs to other rows or lies elsewhere.
        """
        if segment.suffix not in self._wholes:
            return segment
        slot, (runs, run_bytes) = self._wholes[segment.suffix], segment.data.shape
        column = segment.offset - slot.offset
        fits = runs == len(slot.data) and 0 <= column <= slot.data.shape[1] - run_bytes
        if not fits or (runs > 1 and segment.stride != slot.stride):
            raise LayoutError(f"{segment.suffix}: byte {segment.offset} is not where it belongs")
        columns = slot.data[:, column : column + run_bytes]
        columns[...] = segment.data
        return Segment(segment.suffix, columns, slot.offset + column, slot.stride)

    def segments(self) -> Iterator[Segment]:
        """Yield what was placed, all columns of each part."""
        yield from self._wholes.values()


class Panel:
    """Rows of an item: the slots of its destinations. A context for each of its `tasks`.

    Whoever leaves it last writes what was placed, unless a task failed, and returns the buffer to
    its pool.
    """

    def __init__(
        self,
        slots: Mapping[int, tuple[Destination, Slot]],
        tasks: int,
        files: OutputFiles,
        buffer: mmap.mmap | None = None,
        pool: SimpleQueue[mmap.mmap] | None = None,
    ) -> None:
        self._slots = slots
        self._tasks = tasks
        self._files = files
        self._buffer = buffer
        self._pool = pool
        self._failed = False
        self._writes: list[tuple[int, Write]] = []
        self._lock = threading.Lock()

    def slot(self, destination: Destination) -> Slot:
        """Return the slot of a destination, an empty one if it has none."""
        slots = self._slots.values()
        return next((slot for owner, slot in slots if owner is destination), _NO_SLOT)

    def give_up(self) -> None:
        """Mark the panel as failed, so that it is never written."""
        self._failed = True

    def take_writes(self) -> list[tuple[int, Write]]:
        """Return the writes since the last call, with the numbers of their destinations."""
        with self._lock:
            writes, self._writes = self._writes, []
            return writes

    def __enter__(self) -> Panel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._tasks -= 1
            self._failed |= error is not None
            if self._tasks:
                return
        try:
            if not self._failed:
                self._write()
        finally:
            if self._pool is not None and self._buffer is not None:
                self._pool.put(self._buffer)

    def _write(self) -> None:
        for number, (destination, slot) in self._slots.items():
            for segment in slot.segments():
                write = write_segment(self._files, destination, segment)
                with self._lock:
                    self._writes.append((number, write))


class PanelPool:
    """Panels and their buffers, of which there are one or two, whatever the number of workers."""

    def __init__(self, tiling: Tiling, files: OutputFiles, buffers: Iterable[mmap.mmap]) -> None:
        """Take buffers of the sizes that `panel_bytes` gives."""
        self._tiling = tiling
        self._files = files
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)

    def open(self, item: WorkItem, out0: int, out1: int) -> Panel:
        """Make slots for rows [out0, out1) of an item's matrix; waits until a buffer is free."""
        tasks = len(range(out0, out1, self._tiling.rows_of(item)))
        parts = _parts(item)
        if not parts:
            return Panel({}, tasks, self._files)
        buffer = self._free.get()
        memory = np.frombuffer(buffer, np.uint8)
        slots, at = {}, 0
        for number, found in parts.items():
            slots[number] = item.destinations[number], Slot(found, out0, out1, memory[at:])
            at += _slot_bytes(found, out0, out1)
        return Panel(slots, tasks, self._files, buffer, self._free)


def rows_per_panel(tiling: Tiling, item: WorkItem) -> int:
    """Choose the rows of an item that are put together: whole tasks, all of them if they fit."""
    rows, step = item.out1 - item.out0, tiling.rows_of(item)
    n_out = item.view.shape[0]
    staged = (part for parts in _parts(item).values() for part in parts)
    row_bytes = sum(-(-part.nbytes // n_out) for part in staged)
    fitting = tiling.staged_bytes // max(row_bytes, 1)
    return rows if rows <= fitting else whole(fitting, step)


def panel_bytes(items: Iterable[WorkItem], tiling: Tiling) -> tuple[int, ...]:
    """Size the buffers of panels: two if they fit, so that one is filled while one is written."""
    largest = 0
    for item in items:
        parts = _parts(item)
        rows = rows_per_panel(tiling, item) if parts else 0
        for row0 in range(item.out0, item.out1, rows or item.out1):
            row1 = min(row0 + rows, item.out1)
            nbytes = sum(_slot_bytes(found, row0, row1) for found in parts.values())
            largest = max(largest, nbytes)
    if not largest:
        return ()
    return (largest,) * (2 if 2 * largest <= tiling.staged_bytes else 1)


def _parts(item: WorkItem) -> dict[int, tuple[Part, ...]]:
    """Find the parts that need a slot, by the number of their destination."""
    found = {}
    for number, destination in enumerate(item.destinations):
        if destination.packed is not None:
            parts = _columns_parts(destination.packed.packing, *item.view.shape)
            if parts:
                found[number] = parts
    return found


def _slot_bytes(parts: Iterable[Part], row0: int, row1: int) -> int:
    total = 0
    for part in parts:
        first, last = _columns(part, row0, row1)
        total += _aligned(part.shape[0] * (last - first) * NUMPY_DTYPES[part.dtype].itemsize)
    return total


def _columns(part: Part, row0: int, row1: int) -> tuple[int, int]:
    """Return the elements along `out`, first and last + 1, in which rows [row0, row1) lie."""
    return row0 // part.rows_each, -(-row1 // part.rows_each)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


_NO_SLOT: Final = Slot((), 0, 0, np.empty(0, np.uint8))
