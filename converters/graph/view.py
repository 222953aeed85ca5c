"""Strided windows on stored arrays: what their rows are in memory, and which bytes hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.quant.types import SOURCE_TYPES, TYPES

# A gap of fewer bytes is read along with what lies around it, which a call of its own costs too;
# but not more than is wanted, so that slabs stay small.
_GAP_BYTES: Final = 4096

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
        """Name the dtype, or the type of blocks, that rows have in memory."""
        packed = self.array.packed
        return self.array.dtype if packed is None else packed.memory_dtype

    @property
    def item_bytes(self) -> int:
        """Count the bytes of a value in memory; KeyError for blocks."""
        return ITEM_BYTES[self.dtype]

    @property
    def is_blocked(self) -> bool:
        """Tell whether rows are quantized blocks in memory."""
        return self.dtype not in ITEM_BYTES

    @property
    def is_packed(self) -> bool:
        """Tell whether codes and scales are separate tensors, as in serving layouts."""
        return self.array.packed is not None

    @property
    def is_encoded(self) -> bool:
        """Tell whether rows are decoded to float32 before use."""
        return self.is_blocked or (self.is_packed and self.dtype != "I8")

    @property
    def is_readable(self) -> bool:
        """Tell whether kernels can read the rows: floats, blocks, or int8 with scales."""
        dtype = self.dtype
        is_codes = dtype in SOURCE_TYPES and self.scales is not None
        return self.is_packed or dtype in TYPES or is_codes

    @property
    def group_size(self) -> int | None:
        """Count the int8 codes along `in` that share a scale; None if rows are no such codes."""
        return None if self.scales is None else self.shape[1] // self.scales.shape[1]

    @property
    def row_multiple(self) -> int:
        """Count the rows that share words or scales: reads must start at a multiple."""
        packed = self.array.packed
        return 1 if packed is None else packed.row_multiple

    @property
    def views(self) -> tuple[View, ...]:
        """List the windows that the matrix is made of: this one."""
        return (self,)

    @property
    def single(self) -> View | None:
        """Give the window itself, for code that needs one array; an assembly gives None."""
        return self

    @property
    def path(self) -> Path:
        """Name the file for messages."""
        return self.array.path

    @property
    def order(self) -> tuple[Path, int, int]:
        """Give a sort key: matrices in this order are read front to back."""
        return self.array.path, self.array.offset, self.start

    def run_of_rows(self, out0: int, out1: int) -> tuple[int, int] | None:
        """Find rows [out0, out1) as one run of a file's bytes: offset, length.

        None if they do not lie there as they are, row after row.
        """
        n_in = self.shape[1]
        if self.array.packed is not None or self.array.text is not None:
            return None
        if self.is_blocked:
            row_bytes = TYPES[self.dtype].row_bytes(n_in)
            start = self.start // n_in * row_bytes
        elif self.strides == (n_in, 1):
            row_bytes = n_in * self.item_bytes
            start = self.start * self.item_bytes
        else:
            return None
        return self.array.offset + start + out0 * row_bytes, (out1 - out0) * row_bytes

    def slab_bytes(self, out0: int, out1: int) -> int:
        """Count the bytes of the buffer that rows [out0, out1) are read into."""
        rows, packed = out1 - out0, self.array.packed
        if packed is not None:
            return rows * packed.row_bytes
        if self.is_blocked:
            return rows * TYPES[self.dtype].row_bytes(self.shape[1])
        return runs_of(self, out0, out1).nbytes

    def rows_per_slab(self, limit_bytes: int) -> int:
        """Count the rows that fit a slab of `limit_bytes`, at least one."""
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
        """Count the bytes to read for rows [out0, out1).

        As many as in memory, unless the matrix is packed.
        """
        if not self.is_packed:
            return self.slab_bytes(out0, out1)
        n_out, nbytes = self.shape[0], self.array.nbytes
        return nbytes * out1 // n_out - nbytes * out0 // n_out

    @property
    def decoded_row_bytes(self) -> int:
        """Count the bytes that a row takes while it is decoded; 0 if it is used as it lies."""
        return 4 * self.shape[1] if self.is_encoded else 0

    def piece_bytes(self, rows: int) -> int:
        """Count the bytes that `rows` rows of plain elements span in memory."""
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
        """Count the bytes in memory, where run follows run."""
        return self.count * self.length * ITEM_BYTES[self.array.dtype]

    def strides_of(self, view: View) -> tuple[int, int]:
        """Give the strides (out, in), in elements, that a window has in the memory read into."""
        out, in_ = view.strides
        if self.count == 1:
            return out, in_
        return (out, self.length) if out < in_ else (self.length, in_)


def is_near(array: StoredArray, gap: int, length: int) -> bool:
    """Tell whether to read across `gap` unwanted elements between runs of `length` wanted ones."""
    return gap * ITEM_BYTES[array.dtype] < _GAP_BYTES and gap <= length


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
    is_apart = (is_along_out and rows < n_out) or not is_near(view.array, step - length, length)
    if count > 1 and is_apart:
        return Runs(view.array, first, length, count, step)
    return Runs(view.array, first, (rows - 1) * stride_out + (n_in - 1) * stride_in + 1)
