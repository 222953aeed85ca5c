"""Importance matrices: llama.cpp's GGUF files and the older .dat, read within bounds.

For each tensor they hold the squared inputs that its columns saw, summed or averaged over the
tokens of some text; a tensor of experts has a row for each. Sources: common_imatrix_load in
common/imatrix-loader.cpp and load_imatrix in tools/quantize/quantize.cpp of llama.cpp.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.array import StoredArray
from weightcast.formats.foreign import refuse_foreign, require_file
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.importance_sums import (
    CHUNK_SIZE,
    COUNTS,
    PLAIN,
    SQUARES,
    ImportanceSums,
    TensorSums,
)
from weightcast.text import shown

# Grok-1's takes 0.2 GB.
MAX_FILE_BYTES: Final = 1 << 32
_MAX_NAME_BYTES: Final = 1 << 12
_MAX_ENTRIES: Final = gguf.MAX_TENSORS
# More tokens than any text has.
_MAX_COUNT: Final = 1 << 62
# The least that an entry of the old format can take: two lengths, a count, one value.
_LEAST_ENTRY_BYTES: Final = 16
_NEITHER: Final = "neither a GGUF file nor an older importance matrix"


@dataclass(frozen=True)
class ImportanceMatrix:
    """Importance of input columns by GGUF tensor name: float32 [matrices * in], finite, not < 0.

    `unused` lists the matrices (experts) that no token reached: all their columns count the same.
    `left_out` counts entries of layers that a model is to lose, and that llama.cpp counts too.
    With a `floor`, `rows` raises what is nearly nothing; `raised` are the arrays where it did.
    """

    path: Path
    entries: dict[str, NDArray[np.float32]]
    unused: dict[str, tuple[int, ...]]
    datasets: tuple[str, ...]
    chunks: int
    left_out: int = 0
    floor: float | None = None
    raised: set[int] = field(default_factory=set, compare=False, repr=False)

    def rows(self, name: str, matrices: int) -> NDArray[np.float32]:
        """Give the importance of a tensor's matrices, float32 [matrices, in], a view of its entry.

        The entry is raised in place, once: copies for every output could outgrow the memory.
        """
        entry = self.entries[name]
        rows = entry.reshape(matrices, -1)
        if self.floor is not None and id(entry) not in self.raised:
            for row in rows:
                raise_row(row, self.floor)
            self.raised.add(id(entry))
        return rows


def raise_row(row: NDArray[np.float32], floor: float) -> None:
    """Bring the importance of a matrix's columns, float32 [in], to where float32 sums keep it.

    All are multiplied by the power of two that brings the largest into [1, 2), which asks for the
    same and changes no bit of what is made, unless sums underflowed or overflowed before. Columns
    below `floor` times their mean (float64) are then raised to that. If all are 0, all become 1:
    nothing is known of them.
    """
    largest = float(row.max())
    if largest == 0:
        row[:] = 1
        return
    np.ldexp(row, 1 - math.frexp(largest)[1], out=row)
    np.maximum(row, np.float32(floor * row.mean(dtype=np.float64)), out=row)


def read_imatrix(path: str | Path) -> ImportanceMatrix:
    """Read a file of either format. Raises CheckpointError naming file and tensor."""
    path = Path(path)
    with _opened(path) as file:
        if _is_gguf(file):
            return _from_gguf(path, file)
        return _from_old(path, file)


def read_sums(path: str | Path, chunk_size: int = CHUNK_SIZE) -> ImportanceSums:
    """Read the sums in a file of either format, float32 [matrices, in], and its counts.

    The older format has neither sums, the size of a chunk nor the number of a tensor's matrices. As
    in llama-imatrix, its values and calls are multiplied by `chunk_size`, and all experts are one
    matrix with one count. Raises CheckpointError naming file and tensor.
    """
    path = Path(path)
    with _opened(path) as file:
        if _is_gguf(file):
            return _sums_from_gguf(path, file)
        old = _read_old(path, file)
    entries = {}
    for name, (calls, values) in old.entries.items():
        with np.errstate(over="ignore"):
            values *= np.float32(chunk_size)
        counts = np.array([max(calls, 0) * chunk_size], np.int64)
        entries[name] = TensorSums(_checked(path, name, values)[None], counts)
    return ImportanceSums(entries, old.datasets, chunk_size)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    require_file(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None


def _is_gguf(file: BinaryIO) -> bool:
    return file.read(len(gguf.MAGIC)) == gguf.MAGIC


def _from_old(path: Path, file: BinaryIO) -> ImportanceMatrix:
    old = _read_old(path, file)
    entries = {}
    for name, (calls, values) in old.entries.items():
        if calls > 0:
            values /= np.float32(calls)
        entries[name] = values
    return ImportanceMatrix(path, entries, {}, old.datasets, old.chunks)


def _read_old(path: Path, file: BinaryIO) -> _Old:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        _check_size(path, size)
        return _OldFile(path, file, size).read()
    except FormatError:
        refuse_foreign(path, "imatrix")
        raise


def _check_size(path: Path, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise FormatError(path, None, f"{size:,} bytes, which is no importance matrix")


def _from_gguf(path: Path, file: BinaryIO) -> ImportanceMatrix:
    index, datasets, chunks = _described(path, file)
    entries: dict[str, NDArray[np.float32]] = {}
    unused: dict[str, tuple[int, ...]] = {}
    for name, sums, counts in _sums(path, file, index):
        # llama.cpp takes experts without tokens for equally important columns.
        used = counts > 0
        sums[used] /= counts[used, None].astype(np.float32)
        sums[~used] = 1
        entries[name] = _checked(path, name, sums.reshape(-1))
        if not used.all():
            unused[name] = tuple(np.flatnonzero(~used).tolist())
    return ImportanceMatrix(path, entries, unused, datasets, chunks)


def _sums_from_gguf(path: Path, file: BinaryIO) -> ImportanceSums:
    index, datasets, _ = _described(path, file)
    chunk_size = index.metadata["imatrix.chunk_size"]
    if type(chunk_size) is not int or not 0 < chunk_size < 1 << 31:
        raise FormatError(path, None, f"imatrix.chunk_size is {shown(chunk_size)}")
    entries = {}
    for name, sums, counts in _sums(path, file, index):
        plain = None
        if name + PLAIN in index.tensors:
            plain = _floats(path, file, name, index.tensors[name + PLAIN])
            if plain.size != sums.size or not np.isfinite(plain).all():
                problem = f"{plain.size} plain sums, expected {sums.size}, all finite"
                raise FormatError(path, None, f"{shown(name)}: {problem}")
            plain = plain.reshape(sums.shape)
        entries[name] = TensorSums(_checked(path, name, sums), counts, plain)
    return ImportanceSums(entries, datasets, chunk_size)


def _described(path: Path, file: BinaryIO) -> tuple[gguf.GGUFIndex, tuple[str, ...], int]:
    """Index a GGUF file, with the texts and the number of chunks that it names."""
    index = gguf.read_file(path)
    metadata = index.metadata
    datasets = metadata.get("imatrix.datasets")
    chunks = metadata.get("imatrix.chunk_count")
    if datasets is None or chunks is None or "imatrix.chunk_size" not in metadata:
        what = "an importance matrix that lacks metadata (imatrix.*)"
        if not any(key.startswith("imatrix.") for key in metadata):
            architecture = shown(metadata.get("general.architecture", "unknown")).strip("'")
            what = f"a GGUF file of the architecture {architecture}, not an importance matrix"
        raise FormatError(path, None, f"{what}; make one (weightcast imatrix SRC TEXT -o FILE)")
    _check_size(path, file.seek(0, io.SEEK_END))
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise FormatError(path, None, "imatrix.datasets is not a list of names")
    if type(chunks) is not int or not 0 <= chunks < 1 << 31:
        raise FormatError(path, None, f"imatrix.chunk_count is {shown(chunks)}")
    return index, tuple(datasets), chunks


def _sums(
    path: Path, file: BinaryIO, index: gguf.GGUFIndex
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.int64]]]:
    """Read name, sums [matrices, in] and counts [matrices], rounded as llama.cpp does, of each."""
    names = _names(path, index.tensors)
    if not names:
        raise FormatError(path, None, "an importance matrix without entries")
    for name in names:
        found = [_floats(path, file, name, index.tensors[name + s]) for s in (SQUARES, COUNTS)]
        sums, counts = (_checked(path, name, values) for values in found)
        if not counts.size or not sums.size or sums.size % counts.size:
            raise FormatError(
                path, None, f"{shown(name)}: {sums.size} sums do not divide into {counts.size}"
            )
        if counts.max() >= _MAX_COUNT:
            raise FormatError(path, None, f"{shown(name)}: a count of {counts.max():g}")
        rounded = np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)
        yield name, sums.reshape(counts.size, -1), rounded


def _names(path: Path, tensors: Mapping[str, StoredArray]) -> list[str]:
    """Tensors that have both sums and counts; other arrays in the file do not matter."""
    sums = {name.removesuffix(SQUARES) for name in tensors if name.endswith(SQUARES)}
    counts = {name.removesuffix(COUNTS) for name in tensors if name.endswith(COUNTS)}
    for name in sorted(sums ^ counts):
        has, lacks = ("sums", "counts") if name in sums else ("counts", "sums")
        raise FormatError(path, None, f"{shown(name)} has {has}, but no {lacks}")
    return sorted(sums)


def _floats(path: Path, file: BinaryIO, name: str, array: StoredArray) -> NDArray[np.float32]:
    if array.dtype != "F32":
        raise FormatError(path, None, f"{shown(name)}: stored as {array.dtype}, expected F32")
    file.seek(array.offset)
    return _take_floats(path, file, array.nbytes // 4)


def _take_floats(path: Path, file: BinaryIO, count: int) -> NDArray[np.float32]:
    raw = file.read(4 * count)
    if len(raw) != 4 * count:
        raise FormatError(path, None, "the file shrank while it was read")
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _checked(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        raise FormatError(
            path, None, f"{shown(name)}: value {bad[0]} is {values[bad[0]]}; none can be below 0"
        )
    return values


@dataclass(frozen=True, slots=True)
class _Old:
    """What the format before GGUF has: calls and values by tensor, texts, chunks."""

    entries: dict[str, tuple[int, NDArray[np.float32]]]
    datasets: tuple[str, ...]
    chunks: int


class _OldFile:
    """The format before GGUF: a count of entries, then name, calls and values of each."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size

    def read(self) -> _Old:
        n_entries = self._number(1, min(_MAX_ENTRIES, self._left // _LEAST_ENTRY_BYTES), "entries")
        entries: dict[str, tuple[int, NDArray[np.float32]]] = {}
        for _ in range(n_entries):
            name = self._text(self._number(1, _MAX_NAME_BYTES, "bytes of a name"))
            if name in entries:
                raise self._error(f"{shown(name)} occurs twice")
            calls = self._number(-(1 << 31), (1 << 31) - 1, "calls")
            count = self._number(1, self._left // 4, f"values of {shown(name)}")
            values = _checked(self._path, name, _take_floats(self._path, self._file, count))
            entries[name] = calls, values
        chunks, datasets = self._trailer()
        return _Old(entries, datasets, chunks)

    def _trailer(self) -> tuple[int, tuple[str, ...]]:
        """Chunks and the text they came from; files of the first versions end before either."""
        if self._left < 4:
            return 0, ()
        chunks = self._number(0, (1 << 31) - 1, "chunks")
        if self._left < 4:
            return chunks, ()
        length = self._number(0, self._left, "bytes of a name")
        return chunks, (self._text(length),) if length else ()

    @property
    def _left(self) -> int:
        return self._size - self._file.tell()

    def _error(self, problem: str) -> FormatError:
        return FormatError(self._path, self._file.tell(), problem)

    def _number(self, least: int, most: int, what: str) -> int:
        raw = self._file.read(4)
        if len(raw) != 4:
            raise self._error(f"{_NEITHER}, ends here")
        number = int.from_bytes(raw, "little", signed=True)
        if not least <= number <= most:
            raise self._error(f"{_NEITHER}, declares {number} {what}")
        return number

    def _text(self, length: int) -> str:
        raw = self._file.read(length)
        if len(raw) != length:
            raise self._error("ends within a name")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._error("a name is not valid UTF-8") from None
