"""How much memory a conversion may take, and how much of it goes where.

A quarter of a budget is for each of two slabs, a quarter for strips that are put together, the rest
for the pieces of all workers, once as they are made and once for what is needed meanwhile.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.errors import RequestError

# One expert of the release: read as a whole, so that shards are read front to back.
SLAB_BYTES: Final = 192 << 20
# One expert of the release with its scales, a byte a weight; or two with half a byte.
STAGED_BYTES: Final = 224 << 20
PIECE_BYTES: Final = 8 << 20
# Pieces of all workers together, so that memory does not grow with the number of cores.
MAX_PIECES_BYTES: Final = 64 << 20
# A device has thousands of threads to fill, and starts a piece in some microseconds.
DEVICE_PIECE_BYTES: Final = 32 << 20
MAX_DEVICE_PIECES_BYTES: Final = 1 << 30
# Stacks of threads, and what Python needs when the plan is there already.
_RESERVE_BYTES: Final = 48 << 20
# With less of it pieces are rows, and reading them takes longer than making them.
_LEAST_BUFFER_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """The most bytes of a slab, of staged strips, and of all pieces here and for devices."""

    slab: int
    staged: int
    pieces: int
    device_pieces: int


def budget_of(memory: int | None, used: Callable[[], int] | None = None) -> Budget:
    """Share out `memory` bytes, of which some are `used` already; None is as much as helps.

    Raises RequestError if that is too little.
    """
    if memory is None:
        return Budget(SLAB_BYTES, STAGED_BYTES, MAX_PIECES_BYTES, MAX_DEVICE_PIECES_BYTES)
    needed = (used or resident_bytes)() + _RESERVE_BYTES
    if memory - needed < _LEAST_BUFFER_BYTES:
        least = -(-(needed + _LEAST_BUFFER_BYTES) // 10**6)
        raise RequestError(
            f"--memory of {memory / 10**6:,.0f}M is too little: {least:,}M is the least for this"
        )
    share = (memory - needed) // 4
    # A power of two: a run that goes on cuts its work as the one before, which may have used some
    # bytes more or less.
    slab = SLAB_BYTES if share >= SLAB_BYTES else 1 << share.bit_length() - 1
    pieces = min(MAX_PIECES_BYTES, share // 2)
    return Budget(slab, min(STAGED_BYTES, share), pieces, min(MAX_DEVICE_PIECES_BYTES, share))


def resident_bytes() -> int:
    """Bytes of memory that this process has at this moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
