"""PyTorch's .bin and .pt files: a zip archive with a pickle, and a file for each storage.

Nothing that the pickle names is imported or called: it goes through a closed grammar, that of a
dictionary of tensors. Storages are not compressed, so tensors are read where they lie.
Source: torch.save and _rebuild_tensor_v2 in torch/serialization.py and torch/_utils.py of 2.13.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, cast

from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.array import ITEM_BYTES, StoredArray, dense_strides
from weightcast.formats.directory import files_ending
from weightcast.formats.foreign import refuse_foreign, require_file
from weightcast.formats.jax.unpickler import Global, Limits, Machine, Text, by_name
from weightcast.formats.safetensors import merge, read_indexed

if TYPE_CHECKING:
    import zipfile

INDEX_NAME: Final = "pytorch_model.bin.index.json"
# Beside such, other files of the suffix are of optimizers and of arguments.
_NAME: Final = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
SUFFIXES: Final = (".bin", ".pt", ".pth")
MAGIC: Final = b"PK\x03\x04"
# A pickle of ten thousand tensors has 2 MB.
_LIMITS: Final = Limits(opcodes=1 << 22, stack=1 << 18, memo=1 << 20)
_MAX_PICKLE_BYTES: Final = 1 << 25
_MAX_ENTRIES: Final = 1 << 18
_MAX_DIRECTORY_BYTES: Final = 1 << 24
_MAX_AXES: Final = 64
# What training scripts put the weights under.
_HOLDERS: Final = ("state_dict", "model", "module")
_MOST_HOLDERS: Final = 3
# What torch.save puts into an archive beside the storages.
_BESIDE: Final = ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment")
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_DTYPES: Final = {
    Global("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Bool": "BOOL",
        "Char": "I8",
        "Byte": "U8",
        "Short": "I16",
        "Half": "F16",
        "BFloat16": "BF16",
        "Int": "I32",
        "Float": "F32",
        "Long": "I64",
        "Double": "F64",
    }.items()
}
_ORDERED: Final = Global("collections", "OrderedDict")
_TENSOR: Final = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER: Final = Global("torch._utils", "_rebuild_parameter")
_ALLOWED: Final = by_name(*_DTYPES, _ORDERED, _TENSOR, _PARAMETER)


@dataclass(frozen=True, slots=True)
class _Storage:
    """A storage as the pickle names it: the file of the archive, and what its elements are."""

    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_torch(path: Path) -> bool:
    """Tell whether a file is a zip archive under one of PyTorch's suffixes."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def is_named(path: Path) -> bool:
    """Tell whether a file has the name that weights have."""
    return _NAME.fullmatch(path.name) is not None


def files_in(directory: Path) -> list[Path]:
    """List the files of a directory that PyTorch wrote weights into.

    Those of the usual name, complete or not, or else all archives.
    """
    there = files_ending(directory, ".bin")
    return list(filter(is_named, there)) or list(filter(is_torch, there))


def read_directory(path: Path) -> dict[str, StoredArray]:
    """Index a file, or a directory: the files its index names, or else all in it."""
    if path.is_file():
        return read_torch(path)
    index = path / INDEX_NAME
    return read_indexed(index, read_torch) if index.is_file() else merge(files_in(path), read_torch)


def read_torch(path: Path) -> dict[str, StoredArray]:
    """Index the tensors of one file. Raises FormatError, UnsafePickleError."""
    import zipfile  # sources of other kinds need not wait for it

    require_file(path)
    try:
        with (
            path.open("rb") as file,
            zipfile.ZipFile(cast(IO[bytes], _Bounded(file, path))) as archive,
        ):
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, OverflowError, ValueError, NotImplementedError):
        refuse_foreign(path, "torch")
        raise FormatError(path, None, _not_an_archive(path)) from None
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    if len(entries) > _MAX_ENTRIES:
        raise FormatError(path, None, f"{len(entries):,} storages; {_MAX_ENTRIES:,} are read")
    (pickle, root) = _pickle(path, entries)
    fd = os.open(path, os.O_RDONLY)
    try:
        start = _data_at(fd, path, pickle)
        machine = Machine(
            fd,
            path,
            _ALLOWED,
            _construct,
            _build,
            region=(start, start + pickle.file_size),
            limits=_LIMITS,
            persistent=_storage,
        )
        value = machine.run()
        if not isinstance(value, dict):
            raise FormatError(path, None, "holds no dictionary of tensors")
        try:
            tensors = _tensors(value).items()
        except ValueError as problem:
            raise FormatError(path, None, f"{problem}, of which one is the model's") from None
        return {name: _located(fd, path, tensor, entries, root) for name, tensor in tensors}
    finally:
        os.close(fd)


def _not_an_archive(path: Path) -> str:
    """Describe a file that is no zip archive, or has lost the end, where its directory is."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return "a zip archive without its directory, which comes last: cut; download it again"
    return "not a zip archive that PyTorch wrote; download it again, or save it with PyTorch 1.6"


class _Bounded:
    """A file of which no more than an archive's directory is read at once."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.seek = file.seek
        self.tell = file.tell

    def read(self, count: int = -1) -> bytes:
        """Read bytes, up to the end if no number is given. Raises FormatError."""
        if count < 0:
            at = self.tell()
            count = self.seek(0, os.SEEK_END) - at
            self.seek(at)
        if count > _MAX_DIRECTORY_BYTES:
            said = f"a directory of {count:,} bytes, which is too much"
            raise FormatError(self._path, None, said)
        return self._file.read(count)


def _pickle(path: Path, entries: dict[str, zipfile.ZipInfo]) -> tuple[zipfile.ZipInfo, str]:
    """Find the pickle, and the folder that it lies in."""
    found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    _check_kind(path, entries)
    if len(found) != 1:
        raise FormatError(
            path, None, "a zip archive, but not one of PyTorch (no data.pkl); unpack it first"
        )
    entry, root = entries[found[0]], found[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and entries[f"{root}byteorder"].file_size != len("little"):
        raise FormatError(path, None, "big-endian data is not read")
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise FormatError(path, None, f"a pickle of {entry.file_size:,} bytes, which is too much")
    return entry, root


def _check_kind(path: Path, entries: Iterable[str]) -> None:
    """Raise FormatError for archives of others: programs of TorchScript, arrays of NumPy."""
    if all(name.partition("/")[2] in _BESIDE or "/data/" in name for name in entries):
        return
    from weightcast.formats.foreign.files import archive_of_others

    found = archive_of_others(path, entries)
    if found is not None:
        raise FormatError(path, None, str(found))


def _data_at(fd: int, path: Path, entry: zipfile.ZipInfo) -> int:
    """Tell where an entry's bytes begin. Raises FormatError if they are compressed."""
    from zipfile import ZIP_STORED

    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
        raise FormatError(path, entry.header_offset, f"{entry.filename} is compressed")
    size = os.fstat(fd).st_size
    raw = b""
    if 0 <= entry.header_offset < size:
        raw = os.pread(fd, _LOCAL_HEADER.size, entry.header_offset)
    if len(raw) != _LOCAL_HEADER.size or raw[:4] != MAGIC:
        raise FormatError(path, entry.header_offset, "not the header of a file in the archive")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
    start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + entry.file_size > size:
        raise FormatError(path, start, f"{entry.filename} goes on after the end of the file: cut")
    return int(start)


def _tensors(value: dict[str, Any], depth: int = _MOST_HOLDERS) -> dict[str, _Tensor]:
    """Give tensors by their names; a state_dict may lie in other dictionaries, in itself too.

    Raises ValueError if there are several.
    """
    inside = [value[name] for name in _HOLDERS if isinstance(value.get(name), dict)]
    held = [_tensors(inner, depth - 1) for inner in inside if depth and inner is not value]
    found = [tensors for tensors in held if tensors]
    if len(found) > 1:
        raise ValueError("tensors in several dictionaries")
    own = {name: each for name, each in value.items() if isinstance(each, _Tensor)}
    return found[0] if found else own


def _located(
    fd: int, path: Path, tensor: _Tensor, entries: dict[str, zipfile.ZipInfo], root: str
) -> StoredArray:
    entry = entries.get(f"{root}data/{tensor.storage.key}")
    if entry is None:
        raise FormatError(path, None, f"storage {tensor.storage.key[:50]!r} is not in the archive")
    item = ITEM_BYTES[tensor.storage.dtype]
    count = prod(tensor.shape)
    last = tensor.start + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if count and item * (last + 1) > entry.file_size:
        raise FormatError(path, None, f"{entry.filename} has fewer bytes than its tensors take")
    strides = None if tensor.strides == dense_strides(tensor.shape) else tensor.strides
    if strides is not None and count and last - tensor.start + 1 != count:
        raise FormatError(path, None, f"a tensor in {entry.filename} is part of another")
    offset = _data_at(fd, path, entry) + item * tensor.start
    return StoredArray(path, offset, item * count, tensor.storage.dtype, tensor.shape, strides)


def _storage(identity: Any) -> _Storage:
    """Answer a persistent id: ("storage", type, key, device, number of elements)."""
    if (
        isinstance(identity, tuple)
        and len(identity) == 5
        and all(isinstance(identity[n], Text) for n in (0, 2, 3))
        and identity[0].value == "storage"
        and isinstance(identity[1], Global)
        and identity[1] in _DTYPES
        and identity[2].value is not None
    ):
        return _Storage(identity[2].value, _DTYPES[identity[1]])
    raise ValueError("a persistent id that is not a storage of numbers")


def _construct(function: Global, args: tuple[Any, ...]) -> Any:
    """Answer REDUCE; ValueError if the arguments are not what torch.save writes."""
    if function == _ORDERED and args == ():
        return {}
    if function == _PARAMETER and len(args) == 3 and isinstance(args[0], _Tensor):
        return args[0]
    if function == _TENSOR and len(args) in (6, 7):
        storage, start, shape, strides = args[:4]
        if args[6:] not in ((), (None,), ({},)):
            raise ValueError("a tensor with metadata, such as being negated")
        if isinstance(storage, _Storage) and _are_sizes((start,), shape, strides):
            return _Tensor(storage, start, shape, _usual(shape, strides))
    raise ValueError(f"{function.module}.{function.name} is called with unexpected arguments")


def _are_sizes(start: Any, shape: Any, strides: Any) -> bool:
    """Tell whether they are the place of a tensor in its storage."""
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        return False
    sizes = (*start, *shape, *strides)
    are_whole = all(type(size) is int and 0 <= size < 1 << 40 for size in sizes)
    return are_whole and len(shape) == len(strides) <= _MAX_AXES


def _usual(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Give axes of one element the strides that they would have: theirs mean nothing."""
    usual = dense_strides(shape)
    own = zip(shape, strides, usual, strict=True)
    return tuple(dense if size == 1 else stride for size, stride, dense in own)


def _build(target: Any, state: Any) -> None:
    """Answer BUILD: state_dicts have versions of modules as an attribute, which do not matter."""
    if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
        raise ValueError("a state is set on something that is not a state_dict")
