"""What a child process costs: wall and CPU time, memory, bytes to and from the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

POLL_S = 0.2
_OWN = ("RssAnon", "RssShmem")


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Run a command, its output in a file, and give what it took.

    `peak_gb` is the largest resident set, which counts files that are mapped; `own_gb` is the same
    without files, looked at every 0.2 s. `disk_read_gb` is what came from the disk and not from
    the cache.
    """
    with log.open("wb") as file:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=file)
        own = _OwnMemory(process.pid)
        own.start()
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # its /proc stays until it is reaped
        wall = time.monotonic() - start
        moved = _numbers(f"/proc/{process.pid}/io")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        own.stop()
    if status:
        sys.exit(f"failed: {' '.join(command)}\n{log.read_text(errors='replace')[-2000:]}")
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "own_gb": own.peak_bytes / 1e9,
        "disk_read_gb": moved["read_bytes"] / 1e9,
    }


class _OwnMemory(threading.Thread):
    """Looks at how much memory a process has that no file backs."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._place = f"/proc/{pid}/status"
        self._done = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._done.wait(POLL_S):
            values = _numbers(self._place)
            self.peak_bytes = max(self.peak_bytes, 1024 * sum(values.get(key, 0) for key in _OWN))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _numbers(place: str) -> dict[str, int]:
    """Read lines of NAME: NUMBER; nothing of a process that is gone."""
    try:
        lines = Path(place).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace("kB", "").split(":", 1) for line in lines)
    return {name: int(value) for name, value in pairs if value.strip().isdigit()}


def nbytes(paths: Iterable[Path]) -> int:
    """Bytes of files and of those in folders."""
    return sum(file.stat().st_size for path in paths for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """A file, or those in a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def prepare(paths: Iterable[Path], *, cold: bool) -> None:
    """Flush everything; then read files, so that they are cached as far as memory goes, or drop
    them from the cache."""
    subprocess.run(["sync"], check=True)
    for path in paths:
        for file in files_of(path):
            with file.open("rb", buffering=0) as stream:
                if cold:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    buffer = bytearray(1 << 24)
                    while stream.readinto(buffer):
                        pass


def cached(*paths: Path) -> float:
    """Share of the pages of files that are in the page cache. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = total = 0
    for path in paths:
        size = path.stat().st_size
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            place = ctypes.c_void_p(ctypes.addressof(first))
            status = libc.mincore(place, ctypes.c_size_t(size), pages)
            del first
        if status != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        there += sum(page & 1 for page in pages)
        total += len(pages)
    return there / total
