"""Share out the memory that a conversion may take.

A quarter of a budget is for each of two slabs, a quarter for panels that are put together, the rest
for the tasks of all workers, once for the rows they make and once for what they need meanwhile.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.errors import RequestError
from weightcast.text import bytes_text, option

# One expert of the release: read as a whole, so that shards are read front to back.
SLAB_BYTES: Final = 192 << 20
# One expert of the release with its scales, a byte a weight; or two with half a byte.
STAGED_BYTES: Final = 224 << 20
TASK_BYTES: Final = 8 << 20
# Tasks of all workers together, so that memory does not grow with the number of cores.
MAX_TASKS_BYTES: Final = 64 << 20
# A device has thousands of threads to fill, and starts a task in some microseconds.
DEVICE_TASK_BYTES: Final = 32 << 20
MAX_DEVICE_TASKS_BYTES: Final = 1 << 30
# Stacks of threads, and what Python needs when the plan is there already.
_RESERVE_BYTES: Final = 48 << 20
# With less of it tasks are single rows, and reading them takes longer than making them.
_LEAST_BUFFER_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """The most bytes of a slab, of staged panels, and of all tasks on the host and on devices."""

    slab: int
    staged: int
    tasks: int
    device_tasks: int


def budget_of(memory: int | None, used: Callable[[], int] | None = None) -> Budget:
    """Share out `memory` bytes, some of them `used` already; None takes as much as helps.

    Raises RequestError if that is too little.
    """
    if memory is None:
        return Budget(SLAB_BYTES, STAGED_BYTES, MAX_TASKS_BYTES, MAX_DEVICE_TASKS_BYTES)
    needed = (used or resident_bytes)() + _RESERVE_BYTES
    if memory - needed < _LEAST_BUFFER_BYTES:
        least = -(-(needed + _LEAST_BUFFER_BYTES) // 10**6)
        raise RequestError(
            f"{option('memory')} of {bytes_text(memory)} is too little: {least:,}M is the least "
            "for this"
        )
    share = (memory - needed) // 4
    # A power of two: a run that goes on cuts its work as the one before, which may have used some
    # bytes more or less.
    slab = SLAB_BYTES if share >= SLAB_BYTES else 1 << share.bit_length() - 1
    tasks = min(MAX_TASKS_BYTES, share // 2)
    return Budget(slab, min(STAGED_BYTES, share), tasks, min(MAX_DEVICE_TASKS_BYTES, share))


def resident_bytes() -> int:
    """Return the bytes of memory that this process has at this moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
