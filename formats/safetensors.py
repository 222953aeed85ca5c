"""Safetensors: a JSON header with byte ranges, then the data. Index, layout and sharding.

Format: 8 bytes little-endian header length N, N bytes of JSON (name -> dtype, shape,
data_offsets), then the data; ranges are relative to the data, in order, without gaps.
Source: https://github.com/huggingface/safetensors/blob/main/README.md
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard

from weightcast.errors import FormatError, MissingTensorError
from weightcast.formats.array import ITEM_BYTES, FileLayout, StoredArray
from weightcast.formats.directory import files_ending
from weightcast.formats.foreign import refuse_foreign, require_file
from weightcast.formats.foreign.downloads import arriving
from weightcast.formats.reading import parse_json, read_json_object
from weightcast.text import shown

# The limit of the reference implementation.
MAX_HEADER_BYTES: Final = 100_000_000
INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
_MAX_AXES: Final = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be laid out: name, dtype, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * prod(self.shape)


def lay_out(entries: list[Entry], metadata: dict[str, str]) -> FileLayout:
    """Place tensors in one file: wide dtypes first, which keeps all aligned, then by name."""
    ordered = sorted(entries, key=lambda e: (-ITEM_BYTES[e.dtype], e.name))
    header: dict[str, Any] = {"__metadata__": metadata}
    relative = {}
    end = 0
    for entry in ordered:
        relative[entry.name] = end
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.nbytes],
        }
        end += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise AssertionError("a header of more than 100 MB")
    raw = struct.pack("<Q", len(text)) + text
    offsets = {name: len(raw) + start for name, start in relative.items()}
    return FileLayout(raw, offsets, len(raw) + end)


def shard_name(number: int, count: int) -> str:
    """Name file `number` (from 0) of `count`, as transformers does."""
    return SINGLE_NAME if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def index_file(weight_map: dict[str, str], total_bytes: int) -> bytes:
    """Make the index of several files: tensor name -> file name, and the bytes of all tensors."""
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def read_index(path: Path) -> dict[str, StoredArray]:
    """Index one file: name -> place. Raises FormatError naming the file and offset."""
    header, data_start, size = read_header(path)
    header.pop("__metadata__", None)
    arrays = {name: read_entry(path, data_start, name, value) for name, value in header.items()}
    _check_coverage(path, data_start, size, list(arrays.values()))
    return arrays


def read_header_metadata(path: Path) -> dict[str, str]:
    """Read `__metadata__` of one file's header; empty if there is none. Raises FormatError."""
    metadata = read_header(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(path, 8, "__metadata__ is not a map of texts")
    return metadata


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Read the header's JSON object; also where the data start, and the file's size.

    Raises FormatError.
    """
    require_file(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        prefix = os.pread(fd, 8, 0)
        if len(prefix) < 8:
            refuse_foreign(path, "safetensors")
            raise FormatError(path, 0, "too short for a safetensors file")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            refuse_foreign(path, "safetensors")
            raise FormatError(
                path, 0, f"a header of {length} bytes in a file of {size}: not safetensors, or cut"
            )
        text = os.pread(fd, length, 8)
    finally:
        os.close(fd)
    try:
        header = parse_json(path, text, offset=8, what="the header is ", object_pairs_hook=_unique)
    except FormatError:
        refuse_foreign(path, "safetensors")
        raise
    if not isinstance(header, dict):
        raise FormatError(path, 8, "the header is not a JSON object")
    return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated keys, which the format forbids."""
    items = dict(pairs)
    if len(items) != len(pairs):
        raise ValueError("a repeated key")
    return items


def read_entry(path: Path, data_start: int, name: str, value: Any) -> StoredArray:
    """Read what a header says of a tensor. Raises FormatError if it contradicts itself."""

    def is_size_list(x: Any) -> TypeGuard[list[int]]:
        return (
            isinstance(x, list)
            and len(x) <= _MAX_AXES
            and all(type(n) is int and 0 <= n < 1 << 64 for n in x)
        )

    problem = f"tensor {name[:200]!r}: "
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise FormatError(path, 8, problem + "no dtype")
    dtype, shape, offsets = value["dtype"], value.get("shape"), value.get("data_offsets")
    if dtype not in ITEM_BYTES:
        raise FormatError(path, 8, problem + f"dtype {dtype[:50]!r} is not known")
    if not is_size_list(shape) or not is_size_list(offsets) or len(offsets) != 2:
        raise FormatError(path, 8, problem + "its shape or data_offsets are not lists of sizes")
    nbytes = ITEM_BYTES[dtype] * prod(shape)
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(path, 8, problem + f"{offsets[1] - offsets[0]} bytes for {dtype} {shape}")
    return StoredArray(path, data_start + offsets[0], nbytes, dtype, tuple(shape))


def _check_coverage(path: Path, start: int, size: int, arrays: list[StoredArray]) -> None:
    """The format demands that tensors fill the file without gaps or overlaps."""
    end = start
    for array in sorted(arrays, key=lambda a: (a.offset, a.nbytes)):
        if array.offset != end:
            raise FormatError(path, end, "tensors overlap or leave a gap")
        end += array.nbytes
    if end > size:
        raise FormatError(
            path,
            size,
            f"the file ends here, its tensors at {end:,}; go on with the download, or download it "
            "again",
        )
    if end != size:
        raise FormatError(path, min(end, size), f"tensors end at {end}, the file at {size}")


def is_file_name(name: str) -> bool:
    """Tell whether a file in a directory can have a name that an index gives."""
    is_plain = bool(name) and Path(name).name == name and not name.startswith(".")
    return is_plain and name.isprintable() and len(name.encode(errors="replace")) <= 255


def read_directory(path: Path) -> dict[str, StoredArray]:
    """Index a file, or a directory: the files its index names, or else all *.safetensors in it."""
    if path.is_file():
        return read_index(path)
    index = path / INDEX_NAME
    if index.is_file():
        return read_indexed(index, read_index)
    files = files_ending(path, ".safetensors")
    if not files:
        raise MissingTensorError(f"{path}: no *.safetensors files")
    return merge(files, read_index)


def read_indexed(
    index: Path, read: Callable[[Path], dict[str, StoredArray]]
) -> dict[str, StoredArray]:
    """Index the files that an index names; `read` reads one. Raises CheckpointError."""
    path = index.parent
    try:
        told = read_json_object(index)["weight_map"]
        weight_map = {tensor: name.removeprefix("./") for tensor, name in told.items()}
    except (KeyError, TypeError, AttributeError):
        raise FormatError(index, None, "not an index of files (no weight_map)") from None
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name.startswith("."):
            raise FormatError(index, None, f"file name {shown(name)} leaves the directory")
        if not is_file_name(name):
            raise FormatError(index, None, f"{shown(name)} is not a file name")
        if not (path / name).is_file():
            on_its_way = arriving(path / name)
            said = f" (unfinished: {on_its_way})" if on_its_way else ""
            raise MissingTensorError(
                f"{path / name}: missing{said}, but {index.name} names it; download it"
            )
    arrays = merge([path / name for name in names], read)
    for tensor, name in weight_map.items():
        if tensor not in arrays or arrays[tensor].path.name != name:
            raise MissingTensorError(f"{path / name}: tensor {tensor[:200]!r} is not in this file")
    return arrays


def merge(
    files: Iterable[Path], read: Callable[[Path], dict[str, StoredArray]]
) -> dict[str, StoredArray]:
    """Index several files as one. Raises FormatError for a tensor that two of them have."""
    arrays: dict[str, StoredArray] = {}
    for file in files:
        for name, array in read(file).items():
            if name in arrays:
                raise FormatError(file, None, f"tensor {name!r} is also in {arrays[name].path}")
            arrays[name] = array
    return arrays
