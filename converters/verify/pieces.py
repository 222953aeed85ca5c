"""Check files against the SHA-1 of each piece that a torrent has."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from weightcast.converters.engine import Stream
from weightcast.converters.verify.result import Problem
from weightcast.errors import CheckpointError
from weightcast.formats.directory import beside
from weightcast.formats.torrent import Torrent, read_torrent
from weightcast.text import count, some

_CHUNK_BYTES: Final = 1 << 20
_REMEDY: Final = "let the torrent client check and finish the download"


Found = tuple[Torrent, list[Path | None]]


def find_torrents(directory: Path) -> tuple[list[Found], list[str]]:
    """Find torrents in or beside a directory that have files in it, and where these lie.

    Also says which cannot be read; those beside the directory may be of anything.
    """
    found, unread = [], []
    for path in beside(directory, 2):
        if path.suffix != ".torrent" or path.name.startswith(".") or not path.is_file():
            continue
        try:
            torrent = read_torrent(path)
        except CheckpointError as problem:
            unread.append(f"pieces: {problem}")
            continue
        places = [_place(torrent, n, directory) for n in range(len(torrent.files))]
        if any(place is not None and place.parent == directory for place in places):
            found.append((torrent, places))
    return found, unread


def _place(torrent: Torrent, number: int, directory: Path) -> Path | None:
    """Find a file of a torrent that has the directory somewhere in it; None if it is not there."""
    file = torrent.files[number]
    if file.is_padding:
        return None
    for base in (directory, directory.parent, directory.parent.parent):
        for parts in (file.path, (torrent.name, *file.path)):
            if base.joinpath(*parts).is_file():
                return base.joinpath(*parts)
    return None


def check_pieces(
    torrent: Torrent,
    places: Sequence[Path | None],
    jobs: int,
    on_progress: Callable[[int], None],
) -> list[Problem]:
    """Hash every piece whose files are all there; name the files of those that differ.

    Raises CheckpointError if a file cannot be read.
    """
    problems = []
    for file, place in zip(torrent.files, places, strict=True):
        if place is not None and place.stat().st_size != file.size:
            what = f"has {place.stat().st_size:,} bytes, {file.size:,} by {torrent.path.name}"
            problems.append(Problem(str(place), what, remedy=_REMEDY, mistake="size"))
    buffers = [memoryview(bytearray(_CHUNK_BYTES)) for _ in range(jobs)]
    stream = Stream[memoryview, tuple[_Piece, memoryview], bool](buffers)

    def is_right(task: tuple[_Piece, memoryview]) -> bool:
        piece = task[0]
        right = _sha1(*task) in (None, torrent.digests[piece.number])
        on_progress(sum(part.nbytes for part in piece.parts))
        return right

    pieces = list(_pieces(torrent, places))
    found = stream.run(
        pieces,
        lambda piece, buffer: [(piece, buffer)],
        [is_right] * jobs,
    )
    # A piece of many small files says of none which it is.
    wrong: Counter[tuple[Path, ...]] = Counter()
    for piece, right in zip(pieces, found, strict=True):
        if not right:
            of = (part.path for part in piece.parts if part.path is not None and part.nbytes)
            wrong[tuple(dict.fromkeys(of)) or (torrent.path,)] += 1
    for paths, number in wrong.items():
        what = f"{count(number, 'piece')} unlike those of {torrent.path.name}"
        if len(paths) > 1:
            what = f"or {some([path.name for path in paths[1:]])}: {what}"
        problems.append(Problem(str(paths[0]), what, remedy=_REMEDY, mistake="piece"))
    return problems


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a piece: where they lie; those of padding nowhere."""

    path: Path | None
    offset: int
    nbytes: int
    is_padding: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    number: int
    parts: tuple[_Part, ...]


def _pieces(torrent: Torrent, places: Sequence[Path | None]) -> Iterator[_Piece]:
    ends = list(accumulate(file.size for file in torrent.files))
    first = 0
    for number in range(len(torrent.digests)):
        start = number * torrent.piece_bytes
        end = min(start + torrent.piece_bytes, ends[-1])
        while ends[first] <= start and first + 1 < len(ends):
            first += 1
        parts, n = [], first
        while start < end:
            file = torrent.files[n]
            stop = min(end, ends[n])
            offset = start - (ends[n] - file.size)
            parts.append(_Part(places[n], offset, stop - start, file.is_padding))
            start, n = stop, n + 1
        yield _Piece(number, tuple(parts))


def _sha1(piece: _Piece, buffer: memoryview) -> bytes | None:
    """Hash a piece; None if a part of it is of a file that is not there."""
    if any(part.path is None and not part.is_padding for part in piece.parts):
        return None
    sha = hashlib.sha1(usedforsecurity=False)
    for part in piece.parts:
        if part.path is None:
            sha.update(bytes(part.nbytes))
            continue
        try:
            _hash_part(sha.update, part.path, part, buffer)
        except OSError as problem:
            raise CheckpointError(f"{part.path}: cannot be read: {problem.strerror}") from None
    return sha.digest()


def _hash_part(
    update: Callable[[memoryview], None], path: Path, part: _Part, buffer: memoryview
) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        at, end = part.offset, part.offset + part.nbytes
        while at < end:
            read = os.preadv(fd, [buffer[: min(len(buffer), end - at)]], at)
            if not read:
                return  # the file is short, of which there is a problem
            update(buffer[:read])
            at += read
    finally:
        os.close(fd)
