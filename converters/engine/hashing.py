"""Hash whole files and regions in them with SHA-256: several files at once, each read once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.converters.engine.stream import Stream
from weightcast.converters.files import page_cache
from weightcast.errors import CheckpointError

# hashlib lets other threads run from 2 KiB on; larger chunks do not gain.
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FileToHash:
    """A file, and regions (start, length) of it in bytes that get a digest of their own.

    `check` gets the file's status before and after the file is read, and raises CheckpointError if
    the file is not what it ought to be.
    """

    path: Path
    check: Callable[[os.stat_result], None]
    regions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of a file and of its regions, in their order, in hexadecimal digits; its size."""

    sha256: str
    regions: tuple[str, ...]
    size: int


def hash_files(
    files: Sequence[FileToHash],
    workers: int,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> list[Digests]:
    """Hash files on several threads. Returns their digests in the order of the files.

    `on_progress` gets the bytes that were hashed. Raises CheckpointError, that of the first file
    that failed, the largest first.
    """
    sizes = [_size(file.path) for file in files]
    # The largest first, so that no thread is left alone with one at the end.
    order = sorted(range(len(files)), key=lambda number: -sizes[number])
    count = min(workers, len(files))
    chunks = [memoryview(bytearray(_CHUNK_BYTES)) for _ in range(count)]
    stream = Stream[memoryview, _Task, Digests](chunks)
    hasher = _Hasher(stream, page_cache.outgrows(sum(sizes)), on_progress)
    found = stream.run(
        order, lambda number, chunk: [_Task(files[number], chunk)], [hasher.hash] * count
    )
    digests = dict(zip(order, found, strict=True))
    return [digests[number] for number in range(len(files))]


@dataclass(frozen=True, slots=True)
class _Task:
    file: FileToHash
    chunk: memoryview


@dataclass(frozen=True, slots=True)
class _Hasher:
    """Hash files, each through a chunk; `forgets` lets the page cache forget what was read."""

    stream: Stream[memoryview, _Task, Digests]
    forgets: bool
    on_progress: Callable[[int], None]

    def hash(self, task: _Task) -> Digests:
        """Read and hash a file, or its beginning if the stream stops. Raises CheckpointError."""
        file = task.file
        try:
            with file.path.open("rb", buffering=0) as opened:
                before = os.fstat(opened.fileno())
                file.check(before)
                digests = self._hash_opened(opened.fileno(), file.regions, task.chunk)
                file.check(os.fstat(opened.fileno()))
        except OSError as problem:
            raise CheckpointError(
                f"{file.path}: cannot be read: {problem.strerror or problem}"
            ) from None
        return digests

    def _hash_opened(
        self, fd: int, regions: tuple[tuple[int, int], ...], chunk: memoryview
    ) -> Digests:
        """Read a file from start to end; every byte counts for it and for its region."""
        whole, parts = hashlib.sha256(), [hashlib.sha256() for _ in regions]
        order = sorted(range(len(regions)), key=lambda n: regions[n])
        first = position = 0
        while not self.stream.is_stopping:
            count = os.preadv(fd, [chunk], position)
            if count == 0:
                break
            whole.update(chunk[:count])
            while first < len(order) and _end(regions[order[first]]) <= position:
                first += 1
            for n in order[first:]:
                start, end = regions[n][0], _end(regions[n])
                if start >= position + count:
                    break
                run = slice(max(start - position, 0), min(end - position, count))
                parts[n].update(chunk[run])
            if self.forgets:
                page_cache.forget(fd, position, count)
            position += count
            self.on_progress(count)
        return Digests(whole.hexdigest(), tuple(part.hexdigest() for part in parts), position)


def _end(region: tuple[int, int]) -> int:
    return region[0] + region[1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reported when it is its turn
        return 0
