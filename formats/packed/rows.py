"""Read rows of a packed matrix, an array [out, in], from just their bytes of its parts.

Rows come into memory a byte a value, as they stay until they are used: int8 codes with scales,
GGUF blocks, or what is decoded to float32 later, by whoever needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, LayoutError, MissingTensorError
from weightcast.formats.array import LoadedRows, StoredArray, dense_strides, read_stored
from weightcast.formats.packed.layout import NUMPY_DTYPES, AnyMatrixLayout, PackedMatrix, Part
from weightcast.formats.packed.regions import ReadRegion, unpack_rows
from weightcast.quant.types import I8, TYPES, WeightType


@dataclass(frozen=True, slots=True)
class PackedReader:
    """Reads rows of a packed matrix; `name` is the matrix's in messages."""

    name: str
    matrix: PackedMatrix

    @property
    def type(self) -> WeightType:
        return self.matrix.shape.type

    @property
    def layout(self) -> str:
        return self.matrix.layout.name

    @property
    def stored_as(self) -> AnyMatrixLayout:
        return self.matrix.stored_as

    @property
    def parts(self) -> Mapping[str, StoredArray]:
        return self.matrix.parts

    @property
    def memory_dtype(self) -> str:
        return self.matrix.stored_as.coding.memory_dtype(self.type)

    @property
    def scales(self) -> tuple[StoredArray, tuple[int, int]] | None:
        if self.memory_dtype != I8.name:
            return None
        suffix = self.matrix.stored_as.scales
        array = self.parts[suffix]
        strides = dense_strides(array.shape)
        axis = next(part.out_axis for part in _parts(self.matrix) if part.suffix == suffix)
        return array, (strides[1], strides[0]) if axis else (strides[0], strides[1])

    @property
    def row_multiple(self) -> int:
        return max(part.rows_each for part in _parts(self.matrix))

    @property
    def row_bytes(self) -> int:
        dtype, n_in = self.memory_dtype, self.matrix.shape.n_in
        return TYPES[dtype].row_bytes(n_in) if dtype in TYPES else n_in

    @property
    def working_bytes(self) -> int:
        stored = sum(array.nbytes for array in self.parts.values())
        shape = self.matrix.shape
        return 2 * -(-stored // shape.n_out) + shape.n_in

    def read(self, row0: int, row1: int, buffer: memoryview) -> LoadedRows:
        """Read rows [row0, row1) into `buffer`, `row_bytes` each. Raises CheckpointError."""
        out = np.frombuffer(buffer, np.uint8).reshape(row1 - row0, self.row_bytes)
        layout = self.matrix.stored_as
        try:
            with _opened(self.matrix) as read:
                rows = unpack_rows(layout, read, self.matrix.shape, row0, row1)
            return layout.coding.load(rows, self.type, out)
        except (LayoutError, MissingTensorError) as problem:
            file = main_part(self.matrix).path
            raise type(problem)(f"{file}: {self.name}: {problem}") from None


def stored_matrix(name: str, matrix: PackedMatrix) -> StoredArray:
    """Describe a packed matrix as an array [out, in] of its type, at the offset of its codes.

    Raises LayoutError if the kernels cannot make such rows.
    """
    shape = matrix.shape
    shape.type.check_row(shape.n_in)
    codes = main_part(matrix)
    nbytes = sum(array.nbytes for array in matrix.parts.values())
    reader = PackedReader(name, matrix)
    return StoredArray(
        codes.path,
        codes.offset,
        nbytes,
        shape.type.label,
        (shape.n_out, shape.n_in),
        packed=reader,
    )


def main_part(matrix: PackedMatrix) -> StoredArray:
    """Give the part that holds the codes: the first of all layouts."""
    return matrix.parts[_parts(matrix)[0].suffix]


def _parts(matrix: PackedMatrix) -> tuple[Part, ...]:
    return matrix.stored_as.parts(matrix.shape)


@contextmanager
def _opened(matrix: PackedMatrix) -> Iterator[ReadRegion]:
    """Open the files of a matrix; gives what reads a region of a part."""
    files: dict[Path, int] = {}

    def read(part: Part, region: tuple[slice, ...]) -> NDArray[Any]:
        array = matrix.parts[part.suffix]
        try:
            if array.path not in files:
                files[array.path] = os.open(array.path, os.O_RDONLY)
            return _read_region(files[array.path], array, region)
        except OSError as problem:
            raise CheckpointError(f"{array.path}: cannot be read: {problem.strerror}") from None

    try:
        yield read
    finally:
        for fd in files.values():
            os.close(fd)


def _read_region(fd: int, array: StoredArray, region: tuple[slice, ...]) -> NDArray[Any]:
    """Read a region of an array of one or two axes: whole rows at once, or a run of each row."""
    result = np.empty([run.stop - run.start for run in region], NUMPY_DTYPES[array.dtype])
    item, first = result.itemsize, region[0].start
    row_items = array.shape[1] if len(region) == 2 else 1
    if len(region) == 1 or result.shape[1] == row_items:
        whole = result.reshape(-1).view(np.uint8).data
        read_stored(fd, array, first * row_items * item, whole)
        return result
    for row, run in enumerate(result.view(np.uint8), first):
        read_stored(fd, array, (row * row_items + region[1].start) * item, run.data)
    return result
