"""A packed matrix as one stored array [out, in]: rows are read from just their bytes of its parts.

Rows come into memory a byte a value, as they are held until they are used: int8 codes with scales,
GGUF blocks, or what is decoded to float32 later, by whoever needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray, dense_strides, read_stored
from weightcast.formats.packed import LAYOUTS, fp8
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import NUMPY_DTYPES, Fp8Type, Part, unpack_rows
from weightcast.formats.packed.recognize import PackedMatrix
from weightcast.quant.groups import Groups, GroupType, dequantize_groups
from weightcast.quant.types import TYPES, QuantType

# Held as bytes that mean nothing until they are decoded.
ENCODED: Final = "U8"
_SCALES: Final = (".weight_scale", ".scales")
_SIGN: Final = np.uint8(128)
Decode = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class HeldRows:
    """Rows in memory: what belongs to the bytes in the buffer.

    `scales`, float32 [groups, rows], of int8 codes; `decode` gives rows [row0, row1) of these as
    float32 [row1 - row0, in].
    """

    scales: NDArray[np.float32] | None = None
    decode: Decode | None = None


@dataclass(frozen=True, slots=True)
class PackedSource:
    """A packed matrix that rows are read of, and its name in messages."""

    name: str
    matrix: PackedMatrix

    @property
    def held_dtype(self) -> str:
        """What rows are in memory: I8 (with scales), a type of GGUF blocks, or ENCODED."""
        kind = self.matrix.type
        if isinstance(kind, QuantType):
            return kind.name
        if isinstance(kind, GroupType) and kind.bits == 8 and kind.symmetric:
            return "I8"
        return ENCODED

    @property
    def scales(self) -> tuple[StoredArray, tuple[int, int]] | None:
        """The scales of int8 codes and their strides as [out, groups]."""
        if self.held_dtype != "I8":
            return None
        suffix = next(suffix for suffix in _SCALES if suffix in self.matrix.parts)
        array = self.matrix.parts[suffix]
        strides = dense_strides(array.shape)
        axis = next(part.out_axis for part in _parts(self.matrix) if part.suffix == suffix)
        return array, (strides[1], strides[0]) if axis else (strides[0], strides[1])

    @property
    def row_multiple(self) -> int:
        """Rows that share words or scales: what is read starts at multiples."""
        return max(part.rows_each for part in _parts(self.matrix))

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in memory."""
        dtype, n_in = self.held_dtype, self.matrix.n_in
        return TYPES[dtype].row_bytes(n_in) if dtype in TYPES else n_in

    @property
    def working_bytes(self) -> int:
        """Bytes that a row takes beside these while it is read: its parts, and unpacked."""
        stored = sum(array.nbytes for array in self.matrix.parts.values())
        return 2 * -(-stored // self.matrix.n_out) + self.matrix.n_in

    def read(self, row0: int, row1: int, buffer: memoryview) -> HeldRows:
        """Read rows [row0, row1) into `buffer`, `row_bytes` each. Raises CheckpointError."""
        held = np.frombuffer(buffer, np.uint8).reshape(row1 - row0, self.row_bytes)
        kind = self.matrix.type
        try:
            with _opened(self.matrix) as read:
                if isinstance(kind, GroupType):
                    return self._read_groups(kind, read, row0, row1, held)
                if isinstance(kind, Fp8Type):
                    return self._read_fp8(kind, read, row0, row1, held)
                parts = _regions(self.matrix, read, row0, row1)
                layout = FP4_LAYOUTS[kind.name]
                np.copyto(held, layout.unpack(parts, row1 - row0, self.matrix.n_in))
                return HeldRows()
        except (LayoutError, MissingTensorError) as problem:
            file = main_part(self.matrix).path
            raise type(problem)(f"{file}: {self.name}: {problem}") from None

    def _read_groups(
        self, kind: GroupType, read: _Read, row0: int, row1: int, held: NDArray[np.uint8]
    ) -> HeldRows:
        layout, shape = LAYOUTS[self.matrix.layout], (self.matrix.n_out, self.matrix.n_in)
        groups = unpack_rows(layout, read, kind, shape, row0, row1)
        if self.held_dtype == "I8":
            np.bitwise_xor(groups.codes, _SIGN, out=held)
            return HeldRows(scales=np.ascontiguousarray(groups.scales.T, np.float32))
        np.copyto(held, groups.codes)
        kept = Groups(held, groups.scales, groups.zero_points)
        return HeldRows(decode=partial(_decode_groups, kept, kind))

    def _read_fp8(
        self, kind: Fp8Type, read: _Read, row0: int, row1: int, held: NDArray[np.uint8]
    ) -> HeldRows:
        parts = _regions(self.matrix, read, row0, row1)
        np.copyto(held, parts[fp8.WEIGHT].view(np.uint8))
        scales = parts[fp8.SCALE]
        if kind.block:
            scales = scales.repeat(kind.block, axis=0)[: row1 - row0]
        return HeldRows(decode=partial(_decode_fp8, held, scales, kind))


_Read = Callable[[Part, tuple[slice, ...]], NDArray[Any]]


def stored_matrix(name: str, matrix: PackedMatrix, label: str) -> StoredArray:
    """Describe a packed matrix as an array [out, in] of dtype `label`, at the place of its codes.

    Raises LayoutError if rows do not fill groups.
    """
    if isinstance(matrix.type, GroupType):
        matrix.type.groups_in(matrix.n_in)
    codes = main_part(matrix)
    nbytes = sum(array.nbytes for array in matrix.parts.values())
    shape = (matrix.n_out, matrix.n_in)
    source = PackedSource(name, matrix)
    return StoredArray(codes.path, codes.offset, nbytes, label, shape, packed=source)


def main_part(matrix: PackedMatrix) -> StoredArray:
    """The part that holds the codes: the first of all layouts."""
    return matrix.parts[_parts(matrix)[0].suffix]


def _parts(matrix: PackedMatrix) -> tuple[Part, ...]:
    shape = (matrix.n_out, matrix.n_in)
    if isinstance(matrix.type, GroupType):
        return LAYOUTS[matrix.layout].parts(matrix.type, *shape)
    if isinstance(matrix.type, Fp8Type):
        return fp8.parts(matrix.type, *shape)
    return FP4_LAYOUTS[matrix.type.name].parts(*shape)


def _decode_groups(groups: Groups, kind: GroupType, row0: int, row1: int) -> NDArray[np.float32]:
    zero_points = groups.zero_points
    rows = Groups(
        groups.codes[row0:row1],
        groups.scales[row0:row1],
        None if zero_points is None else zero_points[row0:row1],
    )
    return dequantize_groups(rows, kind)


def _decode_fp8(
    held: NDArray[np.uint8], scales: NDArray[np.float32], kind: Fp8Type, row0: int, row1: int
) -> NDArray[np.float32]:
    spread = scales[row0:row1]
    if kind.block:
        spread = spread.repeat(kind.block, axis=1)[:, : held.shape[1]]
    weights = held[row0:row1].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
        values: NDArray[np.float32] = weights * spread
    return values


def _regions(matrix: PackedMatrix, read: _Read, row0: int, row1: int) -> dict[str, NDArray[Any]]:
    """Read what belongs to rows [row0, row1) of each part."""
    regions = {}
    for part in _parts(matrix):
        rows = slice(row0 // part.rows_each, -(-row1 // part.rows_each))
        regions[part.suffix] = read(
            part,
            tuple(
                rows if axis == part.out_axis else slice(0, size)
                for axis, size in enumerate(part.shape)
            ),
        )
    return regions


@contextmanager
def _opened(matrix: PackedMatrix) -> Iterator[_Read]:
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
