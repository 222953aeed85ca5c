"""GGUF: metadata, tensor infos, aligned data. Index, and layout of files to be written.

Reading is bounded by the file's size whatever it declares. Metadata of a new file is collected by
the gguf package, that of another file carried over as it lies there. Shapes are row-major here, and
reversed only in the file (ggml's `ne` order).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import io
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

from weightcast.errors import FormatError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.foreign import refuse_foreign, require_file
from weightcast.formats.foreign.downloads import arriving
from weightcast.formats.gguf.header import DAMAGED, HeaderReader, Metadata
from weightcast.formats.split import SPLIT_NAME, split_name
from weightcast.quant.types import MXFP4, STORED_TYPES
from weightcast.text import shown, some

MAGIC: Final = b"GGUF"
VERSION: Final = 3
DEFAULT_ALIGNMENT: Final = 32
ARCHITECTURE_KEY: Final = "general.architecture"
ALIGNMENT_KEY: Final = "general.alignment"
SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")
# Headers are padded to it in memory; files have 32, some 4096.
MAX_ALIGNMENT: Final = 1 << 20
# ggml has 4; the convolutions of video models have 5.
_MAX_AXES = 8
# An axis is signed for ggml, and so is the size of a tensor.
_MAX_BYTES: Final = (1 << 63) - 1
# Large models have some thousands, each expert by itself ten times as many.
MAX_TENSORS: Final = 1 << 17
_AGAIN: Final = "make the file again from the original weights"
_TYPES: Final = {t.ggml_id: t for t in STORED_TYPES.values()}


@dataclass(frozen=True)
class GGUFIndex:
    """The index of a GGUF file (or of all files of a split one): metadata and where tensors lie.

    Tensors in the order of the files, `paths` all of these; the metadata is that of the first.
    """

    metadata: Metadata
    tensors: dict[str, StoredArray]
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as a header declares it: `start` is a byte offset in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def stored(self, path: Path, size: int) -> StoredArray:
        """Give the array in a file of `size` bytes; one without values lies nowhere beyond it."""
        start = self.start if self.nbytes else min(self.start, size)
        return StoredArray(path, start, self.nbytes, self.dtype, self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """The header of one file, before it is known whether the file keeps to it.

    `end` is where the header ends, `data_start` where the data begin, `size` the file's own.
    """

    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    alignment: int
    end: int
    data_start: int
    size: int


def read_header(path: Path) -> GGUFHeader:
    """Read one file's header. Raises FormatError naming the file and the offset."""
    require_file(path)
    with path.open("rb") as file:
        return _read_header(file, path)


def header_of_bytes(raw: bytes, path: Path) -> GGUFHeader:
    """Read a header in memory, that of a file to be; see read_header."""
    return _read_header(io.BytesIO(raw), path)


def _read_header(file: BinaryIO, path: Path) -> GGUFHeader:
    header = HeaderReader(file, path)
    if header.size < 24 or header.take(4) != MAGIC:
        refuse_foreign(path, "gguf")
        raise FormatError(path, 0, "not a GGUF file, or cut; download it again")
    version = header.unsigned(4)
    if version not in (2, 3):
        raise FormatError(path, 4, _other_version(path, version))
    n_tensors, n_values = header.unsigned(8), header.unsigned(8)
    # The least that a tensor info and a metadata entry can take.
    header.require(n_tensors * 24 + n_values * 13)
    if n_tensors > MAX_TENSORS:
        raise header.error(f"{n_tensors:,} tensors; {MAX_TENSORS:,} are read")
    metadata = Metadata(header.pairs(n_values))
    architecture = metadata.get("general.architecture")
    alignment = _alignment(header, metadata)
    infos = [_tensor_info(header, architecture) for _ in range(n_tensors)]
    data_start = -(-header.position // alignment) * alignment
    tensors = tuple(TensorInfo(*info[:3], data_start + info[3], info[4]) for info in infos)
    return GGUFHeader(
        version, metadata, tensors, alignment, header.position, data_start, header.size
    )


def _alignment(header: HeaderReader, metadata: Metadata) -> int:
    """Look the alignment up. Raises FormatError if it is none; any whole number's type will do."""
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int:
        problem = f"{shown(alignment)}, not a whole number"
    elif alignment < 1 or alignment & (alignment - 1):
        problem = f"{alignment:,}, not a power of two"
    elif alignment > MAX_ALIGNMENT:
        problem = f"{alignment:,}, and up to {MAX_ALIGNMENT:,} is read"
    else:
        return alignment
    raise header.error(f"{ALIGNMENT_KEY} is {problem}; {_AGAIN}")


def read_file(path: Path) -> GGUFIndex:
    """Index one file. Raises FormatError naming the file and the offset."""
    header = read_header(path)
    tensors: dict[str, StoredArray] = {}
    for info in header.tensors:
        if info.name in tensors:
            raise FormatError(path, None, f"tensor {shown(info.name)} occurs twice; {_AGAIN}")
        if info.nbytes and info.start + info.nbytes > header.size:
            raise _cut(path, header, info)
        tensors[info.name] = info.stored(path, header.size)
    _check_overlaps(path, header.tensors)
    return GGUFIndex(header.metadata, tensors, (path,))


def _check_overlaps(path: Path, infos: Iterable[TensorInfo]) -> None:
    """Raise FormatError if two tensors share bytes; empty ones have none, wherever they lie."""
    placed = sorted((info for info in infos if info.nbytes), key=lambda info: info.start)
    for before, info in pairwise(placed):
        if info.start < before.start + before.nbytes:
            both = f"{shown(before.name)} and {shown(info.name)}"
            raise FormatError(path, info.start, f"tensors {both} overlap; {_AGAIN}")


def _cut(path: Path, header: GGUFHeader, first: TensorInfo) -> FormatError:
    """Make the error for a file that ends before its tensors do; `first` is one that is cut."""
    needed = max(info.start + info.nbytes for info in header.tensors if info.nbytes)
    return FormatError(
        path,
        header.size,
        f"the file ends here, its tensors at {needed:,} (tensor {shown(first.name)} is cut); "
        "go on with the download, or download it again",
    )


def _other_version(path: Path, version: int) -> str:
    """Describe a version that is not read; a small number from the other end is big-endian."""
    turned = int.from_bytes(version.to_bytes(4, "little"), "big")
    if turned in (2, 3):
        turn = f"gguf-convert-endian {shlex.quote(str(path))} little"
        return f"a big-endian GGUF file; turn it round with the gguf package ({turn})"
    if version == 1:
        return f"GGUF version 1, of August 2023; {_AGAIN} with llama.cpp"
    return f"GGUF version {version}, and 2 and 3 are read; {_AGAIN}, or use a newer weightcast"


def _tensor_info(
    header: HeaderReader, architecture: object
) -> tuple[str, str, tuple[int, ...], int, int]:
    name = header.name()
    n_axes = header.unsigned(4)
    if n_axes > _MAX_AXES:
        said = f"tensor {shown(name)} has {n_axes:,} axes, and up to {_MAX_AXES} are read"
        raise header.error(f"{said}; {DAMAGED}")
    shape = tuple(reversed(struct.unpack(f"<{n_axes}Q", header.take(8 * n_axes))))
    type_id = header.unsigned(4)
    offset = header.unsigned(8)
    found = _TYPES.get(type_id)
    if found is None or (found is MXFP4 and _is_of_bitnet(architecture)):
        raise header.error(f"tensor {shown(name)} is of {_foreign(type_id, architecture)}")
    if not found.fits(shape[-1] if shape else 1):
        raise header.error(
            f"tensor {shown(name)}: shape {list(shape)} does not fill blocks of {found.name}; "
            f"{_AGAIN}"
        )
    if prod(max(size, 1) for size in shape) * found.block_bytes > _MAX_BYTES:
        raise header.error(f"tensor {shown(name)}: shape {list(shape)} is too large; {_AGAIN}")
    return name, found.name, shape, offset, found.nbytes(shape)


def _is_of_bitnet(architecture: object) -> bool:
    """Tell whether a file may be of bitnet.cpp, which had MXFP4's number for a type of its own."""
    return isinstance(architecture, str) and architecture.startswith("bitnet")


def _foreign(number: int, architecture: object) -> str:
    """Put a type into words that is not read, and what to do about it."""
    from weightcast.formats.gguf.foreign_types import foreign_types

    found = foreign_types(architecture).get(number)
    return f"the unknown type {number}; {_AGAIN}" if found is None else found.told(number)


def read_split(path: Path) -> GGUFIndex:
    """Index a file, and the other files if it is the first of a split. Raises FormatError."""
    first = read_file(path)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or count <= 1:
        return first
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise FormatError(
            path,
            None,
            f"one of {count} files, but not named like it; name them as they were "
            f"(NAME-00001-of-{count:05}.gguf)",
        )
    if whole_number(first.metadata, "split.no") != 0:
        raise _not_the_first(path, whole_number(first.metadata, "split.no"), count)
    tensors, paths = dict(first.tensors), [path]
    for number in range(1, count):
        part = path.with_name(split_name(match[1], number, count))
        if not part.is_file():
            raise _missing_parts(path, match[1], count)
        index = read_file(part)
        said = [whole_number(index.metadata, key) for key in ("split.no", "split.count")]
        if said != [number, count]:
            raise _another_part(part, number, count, said)
        for name, array in index.tensors.items():
            if name in tensors:
                also = f"is also in {tensors[name].path}; these are parts of different files"
                raise FormatError(part, None, f"tensor {shown(name)} {also}, download them again")
            tensors[name] = array
        paths.append(part)
    expected = whole_number(first.metadata, "split.tensors.count")
    if expected not in (None, len(tensors)):
        raise MissingTensorError(f"{path}: {len(tensors)} tensors in {count} files, not {expected}")
    return GGUFIndex(first.metadata, tensors, tuple(paths))


def _another_part(part: Path, number: int, count: int, said: Sequence[int | None]) -> FormatError:
    no, total = said
    own = "no part" if no is None or total is None else f"part {no + 1} of {total}"
    return FormatError(
        part, None, f"{own} by its metadata, not part {number + 1} of {count}; download it again"
    )


def _not_the_first(path: Path, number: int | None, count: int) -> FormatError:
    match = SPLIT_NAME.fullmatch(path.name)
    assert match is not None
    first = path.with_name(split_name(match[1], 0, count))
    there = "" if first.is_file() else ", which is missing"
    said = f"part {number + 1} of {count}" if number and 0 < number < count else "a part"
    if first == path:
        problem = f"says it is {said}, but is named as the first; name all parts as they were"
        return FormatError(path, None, problem)
    return FormatError(path, None, f"{said}, not the first file; give {first}{there}")


def _missing_parts(path: Path, stem: str, count: int) -> MissingTensorError:
    """Name the parts of a split file that are not there, the first of them in full."""
    parts = (path.with_name(split_name(stem, number, count)) for number in range(1, count))
    missing = [part for part in parts if not part.is_file()]
    what = f"parts of {count} are" if len(missing) > 1 else f"part of {count} is"
    on_the_way = [name for part in missing[:4] if (name := arriving(part))]
    said = f" (unfinished: {some(on_the_way)})" if on_the_way else ""
    named = some([part.name for part in missing])
    return MissingTensorError(
        f"{path}: {len(missing):,} {what} missing{said}; download {named} into the same folder"
    )


def whole_number(metadata: Mapping[str, Any], key: str) -> int | None:
    """Look a whole number up in metadata; -1 for anything else, None if it is absent."""
    value = metadata.get(key)
    return value if value is None or type(value) is int else -1
