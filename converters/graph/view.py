"""Strided windows on stored arrays: what their rows are in memory, and which bytes hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.quant.types import SOURCE_TYPES, TYPES

# A gap of fewer bytes is read along with what lies around it: a page, and less than a call costs.
GAP_BYTES: Final = 4096

# Columns are gathered run by run: a cache line of int8 rows at least.
_LEAST_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class View:
    """A strided window [out, in] on a stored array: its first element, strides in elements.

    `scales` is the window on the scales of an int8 matrix: [out, groups] beside [out, in].
    """

    array: StoredArray
    start: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    scales: View | None = None

    @property
    def dtype(self) -> str:
        """The dtype, or type of blocks, that the rows have in memory."""
        packed = self.array.packed
        return self.array.dtype if packed is None else packed.memory_dtype

    @property
    def item_bytes(self) -> int:
        """Bytes of a value in memory, where it is not part of a block."""
        return ITEM_BYTES[self.dtype]

    @property
    def is_blocked(self) -> bool:
        """Whether the rows are quantized blocks in memory."""
        return self.dtype not in ITEM_BYTES

    @property
    def is_packed(self) -> bool:
        """Whether the matrix is stored in several parts, as layouts for serving do."""
        return self.array.packed is not None

    @property
    def is_encoded(self) -> bool:
        """Whether the rows become float32 on the way to what is made of them."""
        return self.is_blocked or (self.is_packed and self.dtype != "I8")

    @property
    def is_readable(self) -> bool:
        """Whether kernels can read the rows: floats, blocks, int8 with scales."""
        dtype = self.dtype
        is_codes = dtype in SOURCE_TYPES and self.scales is not None
        return self.is_packed or dtype in TYPES or is_codes

    @property
    def group_size(self) -> int | None:
        """Neighbours along `in` that share a scale, if the rows are int8 codes with scales."""
        return None if self.scales is None else self.shape[1] // self.scales.shape[1]

    @property
    def row_multiple(self) -> int:
        """Rows that share words or scales: reads start at multiples."""
        packed = self.array.packed
        return 1 if packed is None else packed.row_multiple

    @property
    def views(self) -> tuple[View, ...]:
        """The windows that the matrix is made of: this one."""
        return (self,)

    @property
    def single(self) -> View | None:
        """This window, for those who need one array; None for an assembly."""
        return self

    @property
    def path(self) -> Path:
        """The file to name in messages."""
        return self.array.path

    @property
    def order(self) -> tuple[Path, int, int]:
        """A key to sort by, so that files are read from front to back."""
        return self.array.path, self.array.offset, self.start

    def slab_bytes(self, out0: int, out1: int) -> int:
        """Bytes of the buffer that rows [out0, out1) are read into."""
        rows, packed = out1 - out0, self.array.packed
        if packed is not None:
            return rows * packed.row_bytes
        if self.is_blocked:
            return rows * TYPES[self.dtype].row_bytes(self.shape[1])
        return runs_of(self, out0, out1).nbytes

    def rows_per_slab(self, limit_bytes: int) -> int:
        """How many rows fit a slab; all of them if the whole matrix does."""
        n_out, n_in = self.shape
        packed = self.array.packed
        if packed is not None:
            return max(1, min(n_out, limit_bytes // (packed.row_bytes + packed.working_bytes)))
        if self.is_blocked:
            return max(1, min(n_out, limit_bytes // TYPES[self.dtype].row_bytes(n_in)))
        if self.slab_bytes(0, n_out) <= limit_bytes:
            return n_out
        stride_out, stride_in = self.strides
        elements = limit_bytes // self.item_bytes
        if stride_out < stride_in:
            return min(n_out, max(_LEAST_ROWS, elements // (n_in * stride_out)))
        two = runs_of(self, 0, min(2, n_out))
        pitch = stride_out if two.count == 1 else two.length
        return max(1, (elements - (n_in - 1) * stride_in - 1) // pitch + 1)

    def bytes_to_read(self, out0: int, out1: int) -> int:
        """Bytes to read for rows [out0, out1): those in memory, unless the matrix is packed."""
        if not self.is_packed:
            return self.slab_bytes(out0, out1)
        n_out, nbytes = self.shape[0], self.array.nbytes
        return nbytes * out1 // n_out - nbytes * out0 // n_out

    def piece_bytes(self, rows: int) -> int:
        """Bytes that `rows` rows of plain elements span in memory."""
        # Where neither axis is contiguous, what lies between the values comes along.
        return rows * self.shape[1] * self.item_bytes * max(1, min(self.strides))


@dataclass(frozen=True, slots=True)
class Runs:
    """Elements of an array that are read together: `count` runs of `length`, `step` apart."""

    array: StoredArray
    first: int
    length: int
    count: int = 1
    step: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory, where run follows on run."""
        return self.count * self.length * ITEM_BYTES[self.array.dtype]

    def strides_of(self, view: View) -> tuple[int, int]:
        """Strides, in elements, of the rows of a window in the memory that was read into."""
        out, in_ = view.strides
        if self.count == 1:
            return out, in_
        return (out, self.length) if out < in_ else (self.length, in_)


def runs_of(view: View, out0: int, out1: int) -> Runs:
    """Find the elements to read for rows [out0, out1) of a window on plain elements.

    They are one run from the first to the last, or a run for each column (or row) where much that
    is not asked for lies between.
    """
    (stride_out, stride_in), (n_out, n_in) = view.strides, view.shape
    rows, first = out1 - out0, view.start + out0 * view.strides[0]
    is_along_out = stride_out < stride_in
    if is_along_out:
        length, count, step = (rows - 1) * stride_out + 1, n_in, stride_in
    else:
        length, count, step = (n_in - 1) * stride_in + 1, rows, stride_out
    gap_bytes = (step - length) * ITEM_BYTES[view.array.dtype]
    if count > 1 and (gap_bytes >= GAP_BYTES or (is_along_out and rows < n_out)):
        return Runs(view.array, first, length, count, step)
    return Runs(view.array, first, (rows - 1) * stride_out + (n_in - 1) * stride_in + 1)
