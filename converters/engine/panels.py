"""Parts whose words lie along `out`: put together from pieces of many rows, and then written.

A piece of rows is a short run of bytes in each row of such a part, and files take short runs far
more slowly than whole rows. So the pieces of a strip of rows share a buffer, in which each worker
places its columns; whoever finishes the last piece writes the strip: one run, if it is whole rows.
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

from weightcast.converters.output.files import OutputFiles
from weightcast.converters.output.journal import Write
from weightcast.converters.plan.plan import Destination, WorkItem, whole
from weightcast.converters.plan.tiling import Cut
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
    """The parts of a matrix that pieces of rows are columns of."""
    parts = [part for part in packing.parts(n_out, n_in) if part.out_axis == 1]
    constants = packing.constants(n_out, n_in) if parts else {}
    return tuple(part for part in parts if part.suffix not in constants)


class Room:
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
        return suffix in self._wholes

    def place(self, segment: Segment) -> Segment:
        """Copy a segment to where it belongs here, and give it there; one without room as it is.

        Raises LayoutError if it belongs to other rows or lies elsewhere.
        """
        if segment.suffix not in self._wholes:
            return segment
        room, (runs, run_bytes) = self._wholes[segment.suffix], segment.data.shape
        column = segment.offset - room.offset
        fits = runs == len(room.data) and 0 <= column <= room.data.shape[1] - run_bytes
        if not fits or (runs > 1 and segment.stride != room.stride):
            raise LayoutError(f"{segment.suffix}: byte {segment.offset} is not where it belongs")
        columns = room.data[:, column : column + run_bytes]
        columns[...] = segment.data
        return Segment(segment.suffix, columns, room.offset + column, room.stride)

    def segments(self) -> Iterator[Segment]:
        """What was placed, all columns."""
        yield from self._wholes.values()


class Strip:
    """Rows of an item: the rooms of its destinations. A context for each of its `pieces`.

    Who leaves it last writes what was placed, unless a piece failed, and gives the buffer back.
    """

    def __init__(
        self,
        rooms: Mapping[int, tuple[Destination, Room]],
        pieces: int,
        files: OutputFiles,
        buffer: mmap.mmap | None = None,
        owner: SimpleQueue[mmap.mmap] | None = None,
    ) -> None:
        self._rooms = rooms
        self._pieces = pieces
        self._files = files
        self._buffer = buffer
        self._owner = owner
        self._failed = False
        self._writes: list[tuple[int, Write]] = []
        self._lock = threading.Lock()

    def room(self, destination: Destination) -> Room:
        rooms = self._rooms.values()
        return next((room for owner, room in rooms if owner is destination), _NO_ROOM)

    def give_up(self) -> None:
        """Say that a piece is not made: nothing will be written."""
        self._failed = True

    def take_writes(self) -> list[tuple[int, Write]]:
        """What was written since this was last asked, with the numbers of the destinations."""
        with self._lock:
            writes, self._writes = self._writes, []
            return writes

    def __enter__(self) -> Strip:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._pieces -= 1
            self._failed |= error is not None
            if self._pieces:
                return
        try:
            if not self._failed:
                self._write()
        finally:
            if self._owner is not None and self._buffer is not None:
                self._owner.put(self._buffer)

    def _write(self) -> None:
        for number, (destination, room) in self._rooms.items():
            for segment in room.segments():
                write = write_segment(self._files, destination, segment)
                with self._lock:
                    self._writes.append((number, write))


class Strips:
    """Strips and their buffers, of which there are one or two, whatever the number of workers."""

    def __init__(self, cut: Cut, files: OutputFiles) -> None:
        self._cut = cut
        self._files = files
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()

    def add(self, buffer: mmap.mmap) -> None:
        """Lend a buffer, of the size that `staging_buffers` says."""
        self._free.put(buffer)

    def open(self, item: WorkItem, out0: int, out1: int, pieces: int) -> Strip:
        """Make room for rows [out0, out1) of an item's matrix; waits until there is a buffer."""
        parts = _parts(item)
        if not parts:
            return Strip({}, pieces, self._files)
        buffer = self._free.get()
        memory = np.frombuffer(buffer, np.uint8)
        rooms, at = {}, 0
        for number, found in parts.items():
            rooms[number] = item.destinations[number], Room(found, out0, out1, memory[at:])
            at += _strip_bytes(found, out0, out1)
        return Strip(rooms, pieces, self._files, buffer, self._free)


def rows_per_strip(cut: Cut, item: WorkItem) -> int:
    """Rows of an item that are put together: whole pieces, all of them if they fit."""
    rows, step = item.out1 - item.out0, cut.rows_per_piece(item)
    n_out = item.view.shape[0]
    staged = (part for parts in _parts(item).values() for part in parts)
    row_bytes = sum(-(-part.nbytes // n_out) for part in staged)
    fitting = cut.staged_bytes // max(row_bytes, 1)
    return rows if rows <= fitting else whole(fitting, step)


def staging_buffers(items: Iterable[WorkItem], cut: Cut) -> list[int]:
    """Sizes of the buffers that strips need: two, so that one is filled while one is written."""
    largest = 0
    for item in items:
        parts = _parts(item)
        rows = rows_per_strip(cut, item) if parts else 0
        for row0 in range(item.out0, item.out1, rows or item.out1):
            row1 = min(row0 + rows, item.out1)
            nbytes = sum(_strip_bytes(found, row0, row1) for found in parts.values())
            largest = max(largest, nbytes)
    if not largest:
        return []
    return [largest] * (2 if 2 * largest <= cut.staged_bytes else 1)


def _parts(item: WorkItem) -> dict[int, tuple[Part, ...]]:
    """The parts that need room, by the number of their destination."""
    found = {}
    for number, destination in enumerate(item.destinations):
        if destination.packed is not None:
            parts = _columns_parts(destination.packed.packing, *item.view.shape)
            if parts:
                found[number] = parts
    return found


def _strip_bytes(parts: Iterable[Part], row0: int, row1: int) -> int:
    total = 0
    for part in parts:
        first, last = _columns(part, row0, row1)
        total += _aligned(part.shape[0] * (last - first) * NUMPY_DTYPES[part.dtype].itemsize)
    return total


def _columns(part: Part, row0: int, row1: int) -> tuple[int, int]:
    """The elements along `out` that rows [row0, row1) lie in."""
    return row0 // part.rows_each, -(-row1 // part.rows_each)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


_NO_ROOM: Final = Room((), 0, 0, np.empty(0, np.uint8))
