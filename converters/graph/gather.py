"""Put rows of assemblies together, in memory, from parts that a slab holds as they are stored.

Each worker puts together the rows that it needs, so that the reader only reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph.assembly import Assembly, Part
from weightcast.converters.graph.sums import Factors, Patch
from weightcast.formats.packed.layout import NUMPY_DTYPES
from weightcast.quant.cpu.library import Blocks, Matrix
from weightcast.quant.cpu.transpose import copy_turned
from weightcast.quant.types import F32, I8, TYPES

# Of all that is stored element by element.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **NUMPY_DTYPES,
    "BOOL": np.dtype(np.bool_),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "I16": np.dtype("<i2"),
    "F64": np.dtype("<f8"),
}
# Of products at a time, 256 KiB with what is added to them: they stay in a core's cache, and take
# long enough that other threads get their turn.
_TILE_ROWS: Final = 16
_TILE_COLUMNS: Final = 2048


class RowsInMemory(Protocol):
    """Rows of a window in memory."""

    def matrix(self, row0: int, row1: int) -> Matrix | Blocks:
        """Give rows [row0, row1) of those in memory."""


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Rows of a plain part in memory: the first element, and strides in elements.

    `scales`, float32 [groups, rows], belong to int8 codes.
    """

    part: Part
    rows: range
    data: NDArray[np.generic]
    start: int
    strides: tuple[int, int]
    scales: NDArray[np.float32] | None = None

    def matrix(self, rows: range) -> Matrix:
        """Give some of the part's rows, where they lie."""
        first, last = (row - self.rows.start for row in (rows.start, rows.stop))
        return Matrix(
            self.data,
            self.part.view.dtype,
            len(rows),
            self.part.shape[1],
            *self.strides,
            start=self.start + first * self.strides[0],
            scales=None if self.scales is None else self.scales[:, first:last],
        )


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows of a part that is decoded; those of its window from `first` on are in memory."""

    part: Part
    rows: range
    first: int
    source: RowsInMemory

    def matrix(self, rows: range) -> Matrix | Blocks:
        """Give some of the part's rows, decoded if they are cut from others."""
        window, length = self.part.window, self.part.view.shape[1]
        if window is None:
            return self.source.matrix(rows.start - self.first, rows.stop - self.first)
        stored = self.part.stored_rows(rows)
        found = self.source.matrix(stored.start - self.first, stored.stop - self.first)
        start = window.start + rows.start * window.strides[0] - stored.start * length
        if isinstance(found, Blocks) and window.has_whole_rows(length):
            stored_rows = found.data.reshape(-1, found.type.row_bytes(length))
            wanted = stored_rows[start // length :: window.strides[0] // length][: len(rows)]
            kept = np.ascontiguousarray(wanted)
            return Blocks(kept.reshape(-1), found.type, len(rows), length)
        values = as_float32(found).reshape(-1)
        return Matrix(values, F32.name, len(rows), window.shape[1], *window.strides, start=start)


PartRows = PlainRows | EncodedRows


@dataclass(frozen=True, slots=True)
class AssembledRows:
    """Rows of an assembly from `out0` on: what a slab holds of each of its parts."""

    assembly: Assembly
    out0: int
    parts: tuple[PartRows, ...]

    def matrix(self, row0: int, row1: int) -> Matrix | Blocks:
        """Put rows [row0, row1) of the slab together: in place if one part holds them all."""
        row0, row1 = row0 + self.out0, row1 + self.out0
        found = []
        for held in self.parts:
            if rows := held.part.rows_in(row0, row1):
                found.append((held, rows))
        held, rows = found[0]
        if len(found) == 1 and _is_ready(held.part, self.assembly):
            matrix = held.matrix(rows)
            if isinstance(matrix, Blocks) or min(matrix.stride_out, matrix.stride_in) == 1:
                return matrix
        make = {I8.name: self._codes, F32.name: self._floats}.get(self.assembly.dtype, self._copies)
        return make([Placed(held, rows, row0) for held, rows in found], row1 - row0)

    def _floats(self, parts: list[Placed], n_out: int) -> Matrix:
        values, matrix = self._empty(n_out, np.dtype(np.float32))
        for placed in parts:
            floats_into(placed.target(values), placed.matrix())
            _apply(placed.held.part, placed.target(values))
        return matrix

    def _codes(self, parts: list[Placed], n_out: int) -> Matrix:
        n_in, size = self.assembly.shape[1], self.assembly.group_size
        assert size is not None
        codes, matrix = self._empty(n_out, np.dtype(np.int8))
        scales = np.empty((n_in // size, n_out), np.float32)
        for placed in parts:
            part = placed.matrix()
            assert isinstance(part, Matrix)
            assert part.scales is not None
            copy_turned(placed.target(codes), array_of(part))
            group = placed.held.part.col0 // size
            scales[group : group + len(part.scales), placed.rows] = part.scales
        return Matrix(
            matrix.data, I8.name, n_out, n_in, matrix.stride_out, matrix.stride_in, scales=scales
        )

    def _copies(self, parts: list[Placed], n_out: int) -> Matrix | Blocks:
        """Copy floats of 16 bits, or blocks, as they are."""
        if not self.assembly.is_blocked:
            values, matrix = self._empty(n_out, np.dtype(np.uint16))
            for placed in parts:
                part = placed.matrix()
                assert isinstance(part, Matrix)
                copy_turned(placed.target(values), array_of(part).view(np.uint16))
            return matrix
        kind, n_in = TYPES[self.assembly.dtype], self.assembly.shape[1]
        blocks = np.empty((n_out, kind.row_bytes(n_in)), np.uint8)
        for placed in parts:
            part = placed.matrix()
            assert isinstance(part, Blocks)
            blocks[placed.rows] = part.data[: part.n_out * blocks.shape[1]].reshape(part.n_out, -1)
        return Blocks(blocks.reshape(-1), kind, n_out, n_in)

    def _empty(self, n_out: int, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Matrix]:
        """Make room for rows: as an array [out, in] to fill, and as the matrix they become."""
        n_in = self.assembly.shape[1]
        if self.assembly.is_along_out:
            turned = np.empty((n_in, n_out), dtype)
            data = turned.reshape(-1)
            return turned.T, Matrix(data, self.assembly.dtype, n_out, n_in, 1, n_out)
        values = np.empty((n_out, n_in), dtype)
        data = values.reshape(-1)
        return values, Matrix(data, self.assembly.dtype, n_out, n_in, n_in, 1)


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows of a part, and their place among the rows from `row0` on of the matrix."""

    held: PartRows
    numbers: range
    row0: int

    def matrix(self) -> Matrix | Blocks:
        return self.held.matrix(self.numbers)

    @property
    def rows(self) -> slice:
        part = self.held.part
        first = part.row0 + self.numbers.start * part.row_step - self.row0
        return slice(first, first + (len(self.numbers) - 1) * part.row_step + 1, part.row_step)

    def target(self, values: NDArray[Any]) -> NDArray[Any]:
        """Find its place in rows [out, in] of the matrix."""
        part = self.held.part
        last = part.col0 + (part.shape[1] - 1) * part.col_step
        return values[self.rows, part.col0 : last + 1 : part.col_step]


def _apply(part: Part, values: NDArray[np.float32]) -> None:
    """Scale and shift values in place, each step rounded by itself."""
    with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
        for scale, shift in part.affine:
            if scale != 1:
                values *= np.float32(scale)
            if shift != 0:
                values += np.float32(shift)


def _is_ready(part: Part, assembly: Assembly) -> bool:
    """Tell whether rows of a part are rows of the matrix as they are."""
    is_whole = part.shape[1] == assembly.shape[1] and part.row_step == 1
    return is_whole and not part.affine and part.dtype == assembly.dtype


def array_of(matrix: Matrix) -> NDArray[Any]:
    """Give a matrix as an array [out, in] of its stored dtype, at its strides, without scales."""
    data = matrix.data.view(DTYPES[matrix.dtype])[matrix.start :]
    strides = [stride * data.itemsize for stride in (matrix.stride_out, matrix.stride_in)]
    return np.lib.stride_tricks.as_strided(data, (matrix.n_out, matrix.n_in), strides)


def floats_into(target: NDArray[np.float32], source: Matrix | Blocks) -> None:
    """Fill float32 [out, in] with values, int8 codes times their scales, finite or not."""
    matrix = source.dequantized() if isinstance(source, Blocks) else source
    values = array_of(matrix)
    with np.errstate(all="ignore"):
        if matrix.scales is None:
            if values.dtype == np.float32:
                copy_turned(target, values)
            else:
                target[...] = values
            return
        size = matrix.n_in // len(matrix.scales)
        for group, scales in enumerate(matrix.scales):
            columns = slice(group * size, (group + 1) * size)
            np.multiply(
                values[:, columns], scales[:, None], out=target[:, columns], dtype=np.float32
            )


def as_float32(source: Matrix | Blocks) -> NDArray[np.float32]:
    """Give values as row-major float32 [out, in], finite or not."""
    values = np.empty((source.n_out, source.n_in), np.float32)
    floats_into(values, source)
    return values


@dataclass(frozen=True, slots=True)
class LoadedFactors:
    """Factors in memory, float32: all of each a, and the rows of each b from `row0` on."""

    a: tuple[NDArray[np.float32], ...]
    b: tuple[NDArray[np.float32], ...]
    row0: int
    factors: Factors
    patches: tuple[Patch, ...]

    def add_to(self, values: NDArray[np.float32], out0: int) -> None:
        """Add the products to rows [out0, out0 + n) of the matrix, in place."""
        for patch in self.patches:
            part = patch.part
            here = part.rows_in(out0, out0 + len(values))
            if not here:
                continue
            first = part.row0 + here.start * part.row_step - out0
            target = values[first :: part.row_step, part.col0 :: part.col_step]
            target = target[: len(here), : part.shape[1]]
            wanted = patch.rows_for(out0, out0 + len(values))
            columns = patch.columns[here.start : here.stop] if patch.is_turned else patch.columns
            for a, b, by in zip(self.a, self.b, self.factors.multipliers, strict=True):
                of_b = b[wanted.start - self.row0 :: wanted.step][: len(wanted)]
                of_a = a[:, columns.start :: columns.step][:, : len(columns)]
                left, right = (of_a.T, of_b.T) if patch.is_turned else (of_b, of_a)
                add_product(target, left, right, by)


def add_product(
    target: NDArray[np.float32],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    multiplier: float,
) -> None:
    """Add multiplier * left [n, rank] @ right [rank, m] to [n, m], in place.

    Not by a library's matrix product, whose rounding depends on the processor and on the shape.
    """
    n_out, n_in = target.shape
    with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
        for row0 in range(0, n_out, _TILE_ROWS):
            of_rows = np.ascontiguousarray(left[row0 : row0 + _TILE_ROWS].T)[:, :, None]
            for col0 in range(0, n_in, _TILE_COLUMNS):
                of_columns = right[:, col0 : col0 + _TILE_COLUMNS]
                total = of_rows[0] * of_columns[0]
                product = np.empty_like(total)
                for rank in range(1, len(of_columns)):
                    np.multiply(of_rows[rank], of_columns[rank], out=product)
                    total += product
                total *= np.float32(multiplier)
                target[row0 : row0 + _TILE_ROWS, col0 : col0 + _TILE_COLUMNS] += total
