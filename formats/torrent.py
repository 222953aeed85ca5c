"""Torrents: the SHA-1 of each piece of a set of files, bencoded.

Sources: https://www.bittorrent.org/beps/bep_0003.html, and bep_0047.html for padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.errors import FormatError
from weightcast.formats.directory import MAX_NAME_BYTES
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.reading import read_small

# Pieces of 1 MiB, which are small ones, of 800 GB take no more.
MAX_BYTES: Final = 1 << 24
_MAX_DEPTH: Final = 16
_MAX_VALUES: Final = 1 << 18
_MAX_PATH: Final = 512
_MAX_PIECE_BYTES: Final = 1 << 30
DIGEST_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class TorrentFile:
    """A file: the parts of its path, its size in bytes; padding is zeros and no file."""

    path: tuple[str, ...]
    size: int
    is_padding: bool = False


@dataclass(frozen=True, slots=True)
class Torrent:
    """Files one after another, cut into pieces of `piece_bytes` with a SHA-1 of each."""

    path: Path
    name: str
    files: tuple[TorrentFile, ...]
    piece_bytes: int
    digests: tuple[bytes, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def read_torrent(path: Path) -> Torrent:
    """Read a torrent of version 1. Raises FormatError for anything else."""
    raw = read_small(path, MAX_BYTES, "torrent")
    try:
        value = _Values(raw).read_all()
        return _torrent(path, value[b"info"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        if not raw.startswith(b"d"):
            refuse_foreign(path, "torrent")
        raise FormatError(path, None, "not a torrent with a SHA-1 of each piece") from None


class _Values:
    """Bencoded values; `read_all` raises ValueError and IndexError."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        self._left = _MAX_VALUES

    def read_all(self) -> Any:
        """Read one value that ends where the bytes end."""
        value = self._read(0)
        if self._at != len(self._raw):
            raise ValueError
        return value

    def _read(self, depth: int) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or not self._left:
            raise ValueError
        kind = self._kind()
        if kind == b"i":
            self._at += 1
            return int(self._until(b"e", 24))
        if kind not in (b"l", b"d"):
            return self._take(int(self._until(b":", 12)))
        self._at += 1
        items = []
        while self._kind() != b"e":
            items.append(self._read(depth + 1))
        self._at += 1
        return items if kind == b"l" else dict(zip(items[::2], items[1::2], strict=True))

    def _kind(self) -> bytes:
        return self._raw[self._at : self._at + 1]

    def _until(self, mark: bytes, most: int) -> bytes:
        """Take what is before a mark, and the mark."""
        end = self._raw.index(mark, self._at, self._at + most)
        taken, self._at = self._raw[self._at : end], end + 1
        return taken

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._raw) - self._at:
            raise ValueError
        start, self._at = self._at, self._at + size
        return self._raw[start : self._at]


def _torrent(path: Path, info: dict[bytes, Any]) -> Torrent:
    pieces, piece_bytes = info[b"pieces"], info[b"piece length"]
    name = _part(info[b"name"])
    files = tuple(_files(name, info))
    total = sum(file.size for file in files)
    digests = tuple(
        pieces[start : start + DIGEST_BYTES] for start in range(0, len(pieces), DIGEST_BYTES)
    )
    if not 0 < piece_bytes <= _MAX_PIECE_BYTES or len(pieces) % DIGEST_BYTES:
        raise ValueError
    if not files or len(digests) != -(-total // piece_bytes):
        raise ValueError
    return Torrent(path, name, files, piece_bytes, digests)


def _files(name: str, info: dict[bytes, Any]) -> Iterator[TorrentFile]:
    if b"files" not in info:
        yield _file((name,), info)
        return
    for said in info[b"files"]:
        yield _file(tuple(map(_part, said[b"path"])), said)


def _file(parts: tuple[str, ...], said: dict[bytes, Any]) -> TorrentFile:
    size = said[b"length"]
    if type(size) is not int or size < 0 or not parts:
        raise ValueError
    if sum(len(part) for part in parts) > _MAX_PATH:
        raise ValueError
    return TorrentFile(parts, size, b"p" in said.get(b"attr", b""))


def _part(raw: bytes) -> str:
    """Read a name of a file or folder, which never leads out of where it is."""
    if raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw or len(raw) > MAX_NAME_BYTES:
        raise ValueError
    return raw.decode()
