"""Bytes stored as Latin-1 characters in UTF-8, as pickle protocol 2 writes them.

CPython pickles bytes for protocol 2 as `_codecs.encode(text, 'latin1')`: bytes below 0x80 take one
byte in the file, the others two. Byte n therefore has no computable address; the scan that checks
the text also notes the address of every 1 MiB, and reads start from the nearest note.
Source: Pickler.save_bytes in CPython's Lib/pickle.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Latin1Text:
    """The places of encoded bytes: `marks` holds ascending (decoded position, file offset)."""

    end: int
    nbytes: int
    marks: tuple[tuple[int, int], ...]

    def read(self, fd: int, path: Path, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with decoded bytes from position `start` on."""
        index = int(np.searchsorted([m[0] for m in self.marks], start, side="right")) - 1
        position, offset = self.marks[index]
        done = 0
        while done < len(buffer):
            raw = _read_chunk(fd, offset, self.end)
            if raw.size == 0:
                raise FormatError(path, offset, "the file ends inside an array")
            decoded = _decode(path, offset, raw)
            skip = min(max(start - position, 0), decoded.size)
            part = decoded[skip : skip + len(buffer) - done]
            buffer[done : done + part.size] = part.data
            done += part.size
            position += decoded.size
            offset += raw.size


def scan(fd: int, path: Path, offset: int, length: int) -> Latin1Text:
    """Check `length` bytes of text at `offset` and index them. Raises FormatError."""
    end = offset + length
    position = 0
    marks = []
    while offset < end:
        marks.append((position, offset))
        raw = _read_chunk(fd, offset, end)
        if raw.size == 0:
            raise FormatError(path, offset, "the file ends inside an array")
        position += _decode(path, offset, raw).size
        offset += raw.size
    return Latin1Text(end, position, tuple(marks) or ((0, end),))


def _read_chunk(fd: int, offset: int, end: int) -> NDArray[np.uint8]:
    """Read up to 1 MiB that does not end inside a character, unless the text does."""
    raw = np.frombuffer(os.pread(fd, min(_CHUNK, end - offset), offset), np.uint8)
    if raw.size > 1 and raw[-1] >= 0xC0 and offset + raw.size < end:
        return raw[:-1]
    return raw


def _decode(path: Path, offset: int, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode whole characters; only U+0000 to U+00FF occur (lead bytes 0xC2 and 0xC3)."""
    is_lead = raw >= 0xC0
    is_tail = (raw & 0xC0) == 0x80
    follows = np.empty_like(is_lead)
    follows[0] = False
    follows[1:] = is_lead[:-1]
    bad = (is_lead & (raw != 0xC2) & (raw != 0xC3)) | (is_tail != follows)
    bad[-1] |= is_lead[-1]
    if bad.any():
        raise FormatError(path, offset + int(bad.argmax()), "text that does not encode bytes")
    decoded = raw.copy()
    # A lead byte carries the top two bits of its character, of which the tail already has one.
    decoded[1:][is_lead[:-1]] |= (raw[:-1][is_lead[:-1]] & 3) << 6
    return decoded[~is_lead]
