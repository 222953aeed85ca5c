"""Lay out GGUF files: headers and the offset of every tensor, before any data exist.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.errors import CheckpointError
from weightcast.formats.array import FileLayout
from weightcast.formats.gguf.header import (
    MAX_HEADER_BYTES,
    Metadata,
    encoded,
    raw_number,
    raw_uint,
)
from weightcast.formats.gguf.read import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    VERSION,
)
from weightcast.quant.types import QuantType

# split.count is a uint16.
_MAX_PARTS = 65535
# GGML_MAX_DIMS in ggml/include/ggml.h.
GGML_AXES: Final = 4


def ggml_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give a row-major shape as ggml writes it: without axes of 1 before the others.

    Tensors that it does not have keep theirs: those without values, and those of more axes.
    """
    if len(shape) > GGML_AXES or not all(shape):
        return shape
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

    def padded_bytes(self, alignment: int) -> int:
        """Bytes that it takes in a file, with the padding after it."""
        return -(-self.nbytes // alignment) * alignment


def lay_out(
    metadata: Mapping[str, bytes],
    parts: Sequence[Sequence[Entry]],
    numbering: Sequence[str] = (),
) -> list[FileLayout]:
    """Place the tensors of each part in a file of its own, after raw metadata.

    The first has all metadata; the others have none but their alignment, if it is not the usual
    one. Each says which part it is in the keys of `numbering`, the last of its metadata; one part
    alone need not. Raises CheckpointError for too many parts, or a header that is too large.
    """
    if len(parts) > _MAX_PARTS:
        raise CheckpointError(f"{len(parts):,} files; split into larger ones")
    alignment = Metadata(metadata).get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if ALIGNMENT_KEY in metadata:  # of any whole type; llama.cpp reads this one
        metadata = {**metadata, ALIGNMENT_KEY: raw_uint(alignment)}
    kept = {} if alignment == DEFAULT_ALIGNMENT else {ALIGNMENT_KEY: metadata[ALIGNMENT_KEY]}
    layouts = []
    for number, part in enumerate(parts):
        # Types as in llama.cpp's gguf-split.
        numbers = {
            "split.no": raw_number("uint16", number),
            "split.count": raw_number("uint16", len(parts)),
            "split.tensors.count": raw_number("int32", sum(map(len, parts))),
        }
        raw = {**(kept if number else metadata), **{key: numbers[key] for key in numbering}}
        layouts.append(lay_out_file(raw, part, alignment))
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
        end += entry.padded_bytes(alignment)
    header += bytes(-len(header) % alignment)
    if len(header) > MAX_HEADER_BYTES:
        raise CheckpointError(f"a GGUF header of {len(header)} bytes")
    offsets = {e.name: len(header) + start for e, start in zip(entries, starts, strict=True)}
    return FileLayout(bytes(header), offsets, len(header) + end)
