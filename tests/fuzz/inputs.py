"""Several files in one input of the fuzzer: each after a line `=== NAME ===`.

Safetensors files are written as their JSON header, a NUL and the first bytes of their data, so that
an edit of the header is not lost on the length before it and the size behind it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEAD = re.compile(rb"(?:\A|\n)=== ([A-Za-z0-9_][A-Za-z0-9_.-]{0,60}) ===\n")
_MAX_FILES = 16
_MAX_DATA_BYTES = 1 << 16


def split_files(raw: bytes) -> dict[str, bytes]:
    """Take an input apart; what lies before the first line with a name is nothing."""
    pieces = _HEAD.split(raw)[1:]
    return {
        name.decode(): content
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
        if name.rstrip(b".")
    }


def join_files(files: Mapping[str, bytes]) -> bytes:
    """Undo split_files."""
    return b"\n".join(b"=== %s ===\n%s" % (name.encode(), raw) for name, raw in files.items())


def write_files(folder: Path, raw: bytes) -> None:
    """Write the files of an input, and those that end in .safetensors with lengths that fit."""
    for name, content in list(split_files(raw).items())[:_MAX_FILES]:
        if name.endswith(".safetensors"):
            content = safetensors_file(content)
        (folder / name).write_bytes(content)


def safetensors_file(raw: bytes) -> bytes:
    """Make a file of `HEADER NUL DATA`: as long as the header's largest data_offsets say."""
    header, _, data = raw.partition(b"\0")
    size = min(_largest_end(header), _MAX_DATA_BYTES)
    return struct.pack("<Q", len(header)) + header + data[:size].ljust(size, b"\0")


def safetensors_input(raw: bytes) -> bytes:
    """Undo safetensors_file; zeros at the end of the data are left out."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end] + b"\0" + raw[end:].rstrip(b"\0")


def _largest_end(header: bytes) -> int:
    try:
        values: Any = json.loads(header)
    except (ValueError, RecursionError):
        return 0
    ends = [0]
    for value in values.values() if isinstance(values, dict) else ():
        offsets = value.get("data_offsets") if isinstance(value, dict) else None
        if isinstance(offsets, list):
            ends += [n for n in offsets if type(n) is int and n > 0]
    return max(ends)
