"""SHA-256 of whole files and of regions in them, several files at once, each read one time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from weightcast.converters.files import page_cache
from weightcast.converters.files.interrupts import signals_held
from weightcast.errors import CheckpointError

# hashlib lets other threads run from 2 KiB on; larger chunks do not gain.
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FileToHash:
    """A file, and regions of it (start, length) in bytes that have a digest of their own.

    `check` gets the file's status before and after it was read, and raises CheckpointError if it
    is not what it ought to be.
    """

    path: Path
    check: Callable[[os.stat_result], None]
    regions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 in hexadecimal digits of a file and of its regions in their order, and its size."""

    sha256: str
    regions: tuple[str, ...]
    size: int


def hash_files(
    files: Sequence[FileToHash],
    workers: int,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> list[Digests]:
    """Hash files on several threads; the result is in their order.

    `on_progress` gets the bytes that were hashed. Raises CheckpointError, that of the first file
    that failed.
    """
    run = _Run(files, on_progress)
    # Simple queues alone, as in `execute`: an interrupt could leave a pool's locks locked.
    threads = [threading.Thread(target=run.work) for _ in range(max(1, min(workers, len(files))))]
    try:
        for thread in threads:
            thread.start()
        for _ in files:
            run.finished.get()
    except RuntimeError as problem:  # a limit of the system on threads
        raise CheckpointError(f"cannot start {len(threads)} threads ({problem})") from None
    finally:
        run.stop.set()
        with signals_held():
            for thread in threads:
                if thread.is_alive():
                    thread.join()
    if run.errors:
        raise run.errors[min(run.errors)]
    return [run.digests[number] for number in range(len(files))]


class _Run:
    def __init__(self, files: Sequence[FileToHash], on_progress: Callable[[int], None]) -> None:
        self._files = files
        self._on_progress = on_progress
        sizes = [_size(file.path) for file in files]
        self._is_large = page_cache.outgrows(sum(sizes))
        self._numbers: SimpleQueue[int] = SimpleQueue()
        self.finished: SimpleQueue[int] = SimpleQueue()
        self.stop = threading.Event()
        self.digests: dict[int, Digests] = {}
        self.errors: dict[int, BaseException] = {}
        # The largest first, so that no thread is left alone with one at the end.
        for number in sorted(range(len(files)), key=lambda n: -sizes[n]):
            self._numbers.put(number)

    def work(self) -> None:
        """Hash files until there are none left."""
        while True:
            try:
                number = self._numbers.get_nowait()
            except Empty:
                return
            try:
                self.digests[number] = self._hash(self._files[number])
            except BaseException as error:
                self.errors[number] = error
                self.stop.set()
            finally:
                self.finished.put(number)

    def _hash(self, file: FileToHash) -> Digests:
        try:
            with file.path.open("rb", buffering=0) as opened:
                before = os.fstat(opened.fileno())
                file.check(before)
                digests = self._hash_opened(opened.fileno(), file.regions)
                file.check(os.fstat(opened.fileno()))
        except OSError as problem:
            raise CheckpointError(
                f"{file.path}: cannot be read: {problem.strerror or problem}"
            ) from None
        return digests

    def _hash_opened(self, fd: int, regions: tuple[tuple[int, int], ...]) -> Digests:
        """Read a file from start to end; every byte counts for it and for its region."""
        whole, parts = hashlib.sha256(), [hashlib.sha256() for _ in regions]
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        order = sorted(range(len(regions)), key=lambda n: regions[n])
        first = position = 0
        while not self.stop.is_set():
            count = os.preadv(fd, [buffer], position)
            if count == 0:
                break
            whole.update(buffer[:count])
            while first < len(order) and _end(regions[order[first]]) <= position:
                first += 1
            for n in order[first:]:
                start, end = regions[n][0], _end(regions[n])
                if start >= position + count:
                    break
                run = slice(max(start - position, 0), min(end - position, count))
                parts[n].update(buffer[run])
            if self._is_large:
                page_cache.forget(fd, position, count)
            position += count
            self._on_progress(count)
        return Digests(whole.hexdigest(), tuple(part.hexdigest() for part in parts), position)


def _end(region: tuple[int, int]) -> int:
    return region[0] + region[1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # said when it is its turn
        return 0
