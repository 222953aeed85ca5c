"""Clear the system's page cache of what large runs read and write.

Pages that nobody asks for twice would push out what other programs have there. Taking new pages
all the time also costs more than the disk does: on the machine of
benchmarks/results/page-cache-2026-11-22.md four times as much.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from pathlib import Path
from typing import Final

# What a container may take, its page cache included: a number, or "max".
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
# Smaller runs leave what they read and wrote there, for the next one.
_SHARE_OF_MEMORY: Final = 4
# Long enough for the disk to take it: only what has arrived can be forgotten.
_BEHIND_BYTES: Final = 256 << 20


def outgrows(nbytes: int) -> bool:
    """Tell whether so many bytes would push much else out of the cache."""
    return nbytes > memory_bytes() // _SHARE_OF_MEMORY


def memory_bytes() -> int:
    """Memory of the machine, or of the container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return memory


def forget(fd: int, start: int = 0, length: int = 0) -> None:
    """Let the cache forget pages of a file; those yet to be written are sent to the disk instead.

    Pages that lie partly in the range stay. A length of 0 reaches to the end of the file.
    """
    with contextlib.suppress(OSError):  # advice: what cannot take it does not need it
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def forget_read(path: Path, start: int, length: int) -> None:
    """Let the cache forget what was read of a file."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            forget(fd, start, length)
        finally:
            os.close(fd)


class WrittenPages:
    """Sends what was written to the disk at once, and lets the cache forget it a while later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._behind: deque[tuple[int, int, int]] = deque()
        self._behind_bytes = 0

    def add(self, fd: int, start: int, length: int) -> None:
        """Take note of a run of bytes that was written; any thread may call."""
        forget(fd, start, length)
        arrived = []
        with self._lock:
            self._behind.append((fd, start, length))
            self._behind_bytes += length
            while self._behind_bytes > _BEHIND_BYTES:
                arrived.append(self._behind.popleft())
                self._behind_bytes -= arrived[-1][2]
        for place in arrived:
            forget(*place)
