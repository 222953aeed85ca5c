"""GGUF: metadata, tensor infos, aligned data. Index, and layout of files to be written.

Reading is our own, bounded by the file's size whatever it declares; headers are written by the
gguf package. Shapes are row-major here, and reversed only in the file (ggml's `ne` order).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from weightcast.formats.layout import Layout
from weightcast.formats.stored import StoredArray
from weightcast.quant.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.quant.types import QuantType

if TYPE_CHECKING:
    from gguf import GGUFWriter

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
# A tokenizer of 131072 pieces takes 4 MB; nothing that belongs in a header is larger than this.
MAX_HEADER_BYTES: Final = 1 << 28
_MAX_NAME_BYTES = 256
_MAX_AXES = 4
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SCALARS: Final = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFIndex:
    """What a GGUF file (or all files of a split one) says: metadata and where tensors lie."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredArray]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be laid out: name, type, row-major shape."""

    name: str
    type: QuantType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.type.row_bytes(self.shape[-1]) * prod(self.shape[:-1])


class _Header:
    """Reads the header front to back; every length is checked against the file first."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._left = min(size, MAX_HEADER_BYTES)
        self.position = 0

    def error(self, problem: str) -> FormatError:
        return FormatError(self._path, self.position, problem)

    def require(self, count: int) -> None:
        if count > self._left:
            raise self.error(f"{count} bytes are declared, but only {self._left} are left")

    def take(self, count: int) -> bytes:
        self.require(count)
        raw = self._file.read(count)
        if len(raw) != count:
            raise self.error("the file shrank while it was read")
        self.position += count
        self._left -= count
        return raw

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def string(self, limit: int = MAX_HEADER_BYTES) -> str:
        count = self.unsigned(8)
        if count > limit:
            raise self.error(f"a name of {count} bytes")
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise self.error("a string is not valid UTF-8") from None

    def value(self, kind: int, *, nested: bool = False) -> Any:
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and not nested:
            element, count = self.unsigned(4), self.unsigned(8)
            if element in _SCALARS:
                dtype = np.dtype(_SCALARS[element])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype)
            # Each string takes at least its 8-byte length.
            self.require(8 * count)
            return [self.value(element, nested=True) for _ in range(count)]
        raise self.error(f"metadata of unknown type {kind}")


def read_file(path: Path) -> GGUFIndex:
    """Index one file. Raises FormatError naming the file and the offset."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        header = _Header(file, path, size)
        if size < 24 or header.take(4) != MAGIC:
            raise FormatError(path, 0, "not a GGUF file")
        version = header.unsigned(4)
        if version not in (2, 3):
            raise FormatError(path, 4, f"GGUF version {version}; 2 and 3, little-endian, are read")
        n_tensors, n_values = header.unsigned(8), header.unsigned(8)
        # The least that a tensor info and a metadata entry can take.
        header.require(n_tensors * 32 + n_values * 13)
        metadata = {}
        for _ in range(n_values):
            key = header.string(65535)
            if key in metadata:
                raise header.error(f"metadata key {key[:200]!r} occurs twice")
            metadata[key] = header.value(header.unsigned(4))
        infos = [_tensor_info(header) for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise header.error("general.alignment is not a power of two")
        data_start = -(-header.position // alignment) * alignment
    tensors: dict[str, StoredArray] = {}
    for name, dtype, shape, offset, nbytes in infos:
        if name in tensors:
            raise FormatError(path, None, f"tensor {name!r} occurs twice")
        start = data_start + offset
        if start + nbytes > size:
            raise FormatError(
                path, start, f"tensor {name!r} takes {nbytes} bytes, but the file ends at {size}"
            )
        tensors[name] = StoredArray(path, start, nbytes, dtype, shape)
    end = 0
    for array in sorted(tensors.values(), key=lambda a: a.offset):
        if array.offset < end:
            raise FormatError(path, array.offset, "two tensors overlap")
        end = array.offset + array.nbytes
    return GGUFIndex(metadata, tensors)


def _tensor_info(header: _Header) -> tuple[str, str, tuple[int, ...], int, int]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = header.string(_MAX_NAME_BYTES)
    n_axes = header.unsigned(4)
    if n_axes > _MAX_AXES:
        raise header.error(f"tensor {name!r} has {n_axes} axes")
    shape = tuple(reversed(struct.unpack(f"<{n_axes}Q", header.take(8 * n_axes))))
    type_id = header.unsigned(4)
    offset = header.unsigned(8)
    try:
        ggml_type = GGMLQuantizationType(type_id)
    except ValueError:
        raise header.error(f"tensor {name!r} has the unknown type {type_id}") from None
    elements, block_bytes = GGML_QUANT_SIZES[ggml_type]
    if not shape or shape[-1] % elements:
        raise header.error(f"tensor {name!r}: shape {list(shape)} does not fill its blocks")
    return name, ggml_type.name, shape, offset, prod(shape) // elements * block_bytes


def read_split(path: Path) -> GGUFIndex:
    """Index a file, and the other files if it is the first of a split. Raises FormatError."""
    first = read_file(path)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or count <= 1:
        return first
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise FormatError(
            path,
            None,
            f"one of {count} files, but not named like it (NAME-00001-of-{count:05}.gguf)",
        )
    if _number(first, "split.no") != 0:
        raise FormatError(path, None, f"not the first file: open {split_name(match[1], 0, count)}")
    tensors = dict(first.tensors)
    for number in range(1, count):
        part = path.with_name(split_name(match[1], number, count))
        if not part.is_file():
            raise MissingTensorError(f"{part}: missing part {number + 1} of {count}")
        index = read_file(part)
        if _number(index, "split.no") != number or _number(index, "split.count") != count:
            raise FormatError(part, None, f"says it is another part than {number + 1} of {count}")
        for name, array in index.tensors.items():
            if name in tensors:
                raise FormatError(part, None, f"tensor {name!r} is also in {tensors[name].path}")
            tensors[name] = array
    expected = _number(first, "split.tensors.count")
    if expected not in (None, len(tensors)):
        raise MissingTensorError(f"{path}: {len(tensors)} tensors in {count} files, not {expected}")
    return GGUFIndex(first.metadata, tensors)


def _number(index: GGUFIndex, key: str) -> int | None:
    """A whole number of the metadata; -1 for anything else, None if it is absent."""
    value = index.metadata.get(key)
    return value if value is None or type(value) is int else -1


def split_name(stem: str, number: int, count: int) -> str:
    """Name part `number` (from 0) of `count`, as llama.cpp does (from 1)."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def new_writer(architecture: str, split_bytes: int = 0) -> GGUFWriter:
    """Make a gguf package writer that collects metadata and never touches a file."""
    from gguf import GGUFWriter

    return GGUFWriter(None, architecture, split_max_size=split_bytes)


def lay_out(writer: GGUFWriter, entries: list[Entry]) -> list[Layout]:
    """Place tensors after the writer's metadata, in one file or in parts of the writer's limit."""
    from gguf import GGMLQuantizationType
    from gguf.gguf_writer import WriterState

    for entry in entries:
        writer.add_tensor_info(
            entry.name,
            entry.shape,
            np.dtype(np.float32),
            entry.nbytes,
            raw_dtype=GGMLQuantizationType(entry.type.ggml_id),
        )
    buffers = [io.BytesIO() for _ in writer.tensors]
    # The writer is told that its files are open, so that it writes into memory.
    writer.fout = buffers  # type: ignore[assignment]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    layouts = []
    for buffer, infos in zip(buffers, writer.tensors, strict=True):
        raw = buffer.getvalue()
        header = raw + bytes(-len(raw) % writer.data_alignment)
        if len(header) > MAX_HEADER_BYTES:
            raise CheckpointError(f"a GGUF header of {len(header)} bytes")
        end = len(header)
        offsets = {}
        for name, info in infos.items():
            offsets[name] = end
            end += -(-info.nbytes // writer.data_alignment) * writer.data_alignment
        layouts.append(Layout(header, offsets, end))
    return layouts
