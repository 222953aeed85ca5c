"""Torrents: the SHA-1 of each piece of a set of files, bencoded.

Sources: https://www.bittorrent.org/beps/bep_0003.html, and bep_0047.html for padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.errors import FormatError
from weightcast.formats.reading import check_downloaded, read_small

# Pieces of 16 KiB of 10 TB take no more.
MAX_BYTES: Final = 1 << 24
_MAX_DEPTH: Final = 16
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
    raw = read_small(path, MAX_BYTES)
    try:
        value, end = _value(raw, 0, 0)
        if end != len(raw) or not isinstance(value, dict):
            raise ValueError
        return _torrent(path, value[b"info"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        check_downloaded(path)
        raise FormatError(path, None, "not a torrent with a SHA-1 of each piece") from None


def _value(raw: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Read the value at a position; also where it ends. Raises ValueError, IndexError."""
    kind = raw[at : at + 1]
    if depth > _MAX_DEPTH:
        raise ValueError
    if kind == b"i":
        end = raw.index(b"e", at, at + 24)
        return int(raw[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items = []
        at += 1
        while raw[at : at + 1] != b"e":
            item, at = _value(raw, at, depth + 1)
            items.append(item)
        if kind == b"l":
            return items, at + 1
        return dict(zip(items[::2], items[1::2], strict=True)), at + 1
    colon = raw.index(b":", at, at + 12)
    start, size = colon + 1, int(raw[at:colon])
    if size < 0 or start + size > len(raw):
        raise ValueError
    return raw[start : start + size], start + size


def _torrent(path: Path, info: dict[bytes, Any]) -> Torrent:
    pieces, piece_bytes = info[b"pieces"], info[b"piece length"]
    name = info[b"name"].decode()
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
        yield _file(tuple(part.decode() for part in said[b"path"]), said)


def _file(parts: tuple[str, ...], said: dict[bytes, Any]) -> TorrentFile:
    size = said[b"length"]
    if type(size) is not int or size < 0 or not parts:
        raise ValueError
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise ValueError
    return TorrentFile(parts, size, b"p" in said.get(b"attr", b""))
