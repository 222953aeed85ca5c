"""Lay out GGUF files: headers and the offset of every tensor, before any data exist.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightcast.errors import CheckpointError
from weightcast.formats.array import FileLayout
from weightcast.formats.gguf.header import MAX_HEADER_BYTES, Metadata, encoded, raw_number
from weightcast.formats.gguf.read import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    SPLIT_KEYS,
    VERSION,
)
from weightcast.quant.types import QuantType

# split.count is a uint16.
_MAX_PARTS = 65535


def ggml_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give a row-major shape as ggml writes it: without axes of 1 before the others."""
    n_ones = next((n for n, length in enumerate(shape[:-1]) if length != 1), len(shape) - 1)
    return shape[n_ones:] if shape else (1,)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be laid out: name, type, row-major shape."""

    name: str
    type: QuantType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.shape)


def lay_out(
    metadata: Mapping[str, bytes], entries: Sequence[Entry], split_bytes: int = 0
) -> list[FileLayout]:
    """Place tensors after raw metadata, in one file or in parts of `split_bytes` of tensor data.

    A tensor that is larger has a part of its own. The first part has all metadata; the others say
    which part they are, and their alignment. Raises CheckpointError for a header that is too large.
    """
    parts: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if parts[-1] and 0 < split_bytes < filled + entry.nbytes:
            parts.append([])
            filled = 0
        parts[-1].append(entry)
        filled += entry.nbytes
    whole = {key: raw for key, raw in metadata.items() if key not in SPLIT_KEYS}
    alignment = Metadata(whole).get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if len(parts) == 1:
        return [lay_out_file(whole, entries, alignment)]
    if len(parts) > _MAX_PARTS:
        raise CheckpointError(f"{len(parts):,} files; split into larger ones")
    layouts = []
    for number, part in enumerate(parts):
        kept = {key: raw for key, raw in whole.items() if number == 0 or key == ALIGNMENT_KEY}
        # Types as in llama.cpp's gguf-split.
        kept["split.no"] = raw_number("uint16", number)
        kept["split.count"] = raw_number("uint16", len(parts))
        kept["split.tensors.count"] = raw_number("int32", len(entries))
        layouts.append(lay_out_file(kept, part, alignment))
    return layouts


def lay_out_file(
    metadata: Mapping[str, bytes], entries: Sequence[Entry], alignment: int
) -> FileLayout:
    """Place tensors after raw metadata in one file. Raises CheckpointError if it is too large."""
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(entries), len(metadata)))
    for key, raw in metadata.items():
        header += encoded(key) + raw
    starts, end = [], 0
    for entry in entries:
        axes = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        header += encoded(entry.name) + axes + struct.pack("<IQ", entry.type.ggml_id, end)
        starts.append(end)
        end += -(-entry.nbytes // alignment) * alignment
    header += bytes(-len(header) % alignment)
    if len(header) > MAX_HEADER_BYTES:
        raise CheckpointError(f"a GGUF header of {len(header)} bytes")
    offsets = {e.name: len(header) + start for e, start in zip(entries, starts, strict=True)}
    return FileLayout(bytes(header), offsets, len(header) + end)
