"""Find parts of a file that were never written: holes, and blocks of zeros.

Downloaders reserve a file in its full size and fill it piece by piece. What is missing reads as
zeros, as if it were weights.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.errors import CheckpointError

# Trained weights have no such run; a row of zeros, as an embedding may have, is shorter.
LEAST_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = 1 << 12
_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class Blank:
    """Bytes [start, end) of a file that hold nothing; in a hole the disk has none for them.

    Zeros that were found by samples may begin before and go on.
    """

    path: Path
    start: int
    end: int
    is_hole: bool

    def __str__(self) -> str:
        if self.is_hole:
            return f"{self.path}: a hole from byte {self.start:,} to {self.end:,}"
        return f"{self.path}: zeros from byte {self.start:,} on"


def find_blanks(path: Path, start: int, end: int) -> list[Blank]:
    """Find holes in bytes [start, end) of a file, and zeros at a few samples.

    Runs of less than LEAST_BYTES are none. Raises CheckpointError.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            holes = find_holes(path, fd, start, end)
            sampled = _sampled(fd, start, end, holes)
            zeros = [Blank(path, a, b, is_hole=False) for a, b in sampled]
        finally:
            os.close(fd)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    return join_blanks(holes, zeros)


def join_blanks(holes: Sequence[Blank], zeros: Iterable[Blank]) -> list[Blank]:
    """Put both in order; zeros that are read of a hole are no others. Holes come in order."""
    others = (blank for blank in zeros if not _is_in(holes, blank.start, blank.end))
    return sorted((*holes, *others), key=lambda blank: blank.start)


def _is_in(holes: Sequence[Blank], start: int, end: int) -> bool:
    """Tell whether bytes [start, end) lie in a hole, or a part of them; holes come in order."""
    first = bisect_right(holes, start, key=lambda hole: hole.end)
    return first < len(holes) and holes[first].start < end


def find_holes(path: Path, fd: int, start: int, end: int) -> list[Blank]:
    """Find holes of an open file in bytes [start, end). Raises OSError."""
    runs = (run for run in _holes(fd, start, end) if run[1] - run[0] >= LEAST_BYTES)
    return [Blank(path, a, b, is_hole=True) for a, b in runs]


def _holes(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """List holes as the file system tells them; those without holes say that there are none."""
    if not hasattr(os, "SEEK_HOLE"):
        return
    at = start
    while at < end:
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        if hole >= end:
            return
        try:
            at = os.lseek(fd, hole, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end of the file
            at = end
        yield hole, min(at, end)


def _sampled(fd: int, start: int, end: int, holes: Sequence[Blank]) -> Iterator[tuple[int, int]]:
    """Look at a few pages outside of holes, and around those that are zeros."""
    if end - start - sum(hole.end - hole.start for hole in holes) < LEAST_BYTES:
        return  # hardly anything else is there
    step = max(LEAST_BYTES // 2, (end - start) // _SAMPLES)
    reached = start
    for at in range(start + step // 2, end, step):
        if at < reached or _is_in(holes, at, at + _PAGE_BYTES):
            continue
        page = os.pread(fd, _PAGE_BYTES, at)
        if page.strip(b"\0"):
            continue
        low = max(start, at - LEAST_BYTES)
        around = os.pread(fd, min(end, at + LEAST_BYTES) - low, low)
        first = low + len(around[: at - low].rstrip(b"\0"))
        last = min(end, at + LEAST_BYTES) - len(around[at - low :].lstrip(b"\0"))
        if last - first >= LEAST_BYTES:
            yield first, last
            reached = last


class ZeroRuns:
    """Long runs of zeros in bytes that come piece by piece, in order."""

    def __init__(self) -> None:
        self._first = self._end = 0

    def add(self, at: int, chunk: bytes | memoryview) -> Iterator[tuple[int, int]]:
        """Add bytes that begin at `at`; gives the runs that ended, by whole pages of the chunk."""
        if at != self._end:
            yield from self.finish()
            self._first = at
        for start in range(0, len(chunk), _PAGE_BYTES):
            page = bytes(chunk[start : start + _PAGE_BYTES])
            if page.strip(b"\0"):
                self._end = at + start
                yield from self.finish()
                self._first = at + start + len(page)
        self._end = at + len(chunk)

    def finish(self) -> Iterator[tuple[int, int]]:
        """Give the run that the last bytes belong to, if it is long enough."""
        if self._end - self._first >= LEAST_BYTES:
            yield self._first, self._end
