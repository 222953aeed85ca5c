"""Reading pieces of stored matrices into memory, in the order they lie in the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.files.page_cache import forget_read
from weightcast.converters.graph.tensor import Tensor
from weightcast.converters.graph.view import View, matrices
from weightcast.errors import LayoutError
from weightcast.formats.array import Decode, read_stored
from weightcast.quant.cpu.library import Blocks, Matrix, SourceValueError, quantize_matrix
from weightcast.quant.types import F32, STORED_TYPES, TYPES

_NUMPY_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
}


def rows_per_slab(view: View, limit_bytes: int) -> int:
    """How many output rows of a matrix fit a slab; all of them if the whole matrix does."""
    n_out, n_in = view.shape
    packed = view.array.packed
    if packed is not None:
        return max(1, min(n_out, limit_bytes // (packed.row_bytes + packed.working_bytes)))
    if view.is_blocked:
        return max(1, min(n_out, limit_bytes // TYPES[view.dtype].row_bytes(n_in)))
    stride_out, stride_in = view.strides
    if _span(view, n_out) * view.item_bytes <= limit_bytes:
        return n_out
    elements = limit_bytes // view.item_bytes
    if stride_out >= stride_in:
        return max(1, (elements - (n_in - 1) * stride_in - 1) // stride_out + 1)
    # Columns are gathered row by row: a cache line of them at least.
    return min(n_out, max(64, elements // (n_in * stride_out)))


def slab_bytes(view: View, rows: int) -> int:
    """Buffer that `rows` output rows take."""
    if view.is_blocked:
        return rows * TYPES[view.dtype].row_bytes(view.shape[1])
    if _is_gathered(view, rows):
        return view.shape[1] * ((rows - 1) * view.strides[0] + 1) * view.item_bytes
    return _span(view, rows) * view.item_bytes


def bytes_to_read(view: View, out0: int, out1: int) -> int:
    """Bytes to read for output rows: those in memory, unless the matrix is packed."""
    packed, n_out = view.array.packed, view.shape[0]
    if packed is None:
        return slab_bytes(view, out1 - out0)
    return view.array.nbytes * out1 // n_out - view.array.nbytes * out0 // n_out


def _span(view: View, rows: int) -> int:
    """Elements from the first to the last of `rows` output rows, both included."""
    return (rows - 1) * view.strides[0] + (view.shape[1] - 1) * view.strides[1] + 1


def _is_gathered(view: View, rows: int) -> bool:
    return rows < view.shape[0] and view.strides[0] < view.strides[1]


@dataclass(frozen=True, slots=True)
class Slab:
    """Output rows of one matrix in memory, as they are stored; `decode` makes them float32."""

    view: View
    rows: int
    data: NDArray[np.generic]
    stride_in: int
    scales: NDArray[np.float32] | None
    decode: Decode | None = None

    def piece(self, row0: int, row1: int) -> Matrix | Blocks:
        """Rows [row0, row1) for the kernels, where they lie."""
        n_in = self.view.shape[1]
        if self.decode is not None:
            values = self.decode(row0, row1).reshape(-1)
            return Matrix(values, F32.name, row1 - row0, n_in, n_in, 1)
        if self.view.is_blocked:
            quant_type = TYPES[self.view.dtype]
            return Blocks(self.stored_rows(row0, row1), quant_type, row1 - row0, n_in)
        stride_out = self.view.strides[0]
        return Matrix(
            self.data,
            self.view.dtype,
            row1 - row0,
            n_in,
            stride_out,
            self.stride_in,
            start=row0 * stride_out,
            scales=None if self.scales is None else self.scales[:, row0:row1],
        )

    def stored_rows(self, row0: int, row1: int) -> NDArray[np.uint8]:
        """The stored bytes of row-major rows."""
        row_bytes = STORED_TYPES[self.view.dtype].row_bytes(self.view.shape[1])
        return self.data.view(np.uint8)[row0 * row_bytes : row1 * row_bytes]


def read_slab(view: View, out0: int, out1: int, buffer: memoryview) -> Slab:
    """Read output rows [out0, out1) of a matrix into `buffer`, front to back in the file."""
    rows, n_in = out1 - out0, view.shape[1]
    used = buffer[: slab_bytes(view, rows)]
    if view.array.packed is not None:
        read = view.array.packed.read(out0, out1, used)
        data = np.frombuffer(used, np.uint8)
        return Slab(view, rows, data, 1, read.scales, read.decode)
    fd = os.open(view.array.path, os.O_RDONLY)
    try:
        if view.is_blocked:
            row_bytes = TYPES[view.dtype].row_bytes(n_in)
            read_stored(fd, view.array, (view.start // n_in + out0) * row_bytes, used)
            return Slab(view, rows, np.frombuffer(used, np.uint8), 1, None)
        first = (view.start + out0 * view.strides[0]) * view.item_bytes
        stride_in = view.strides[1]
        if _is_gathered(view, rows):
            segment = len(used) // n_in
            step = view.strides[1] * view.item_bytes
            for row in range(n_in):
                piece = used[row * segment : (row + 1) * segment]
                read_stored(fd, view.array, first + row * step, piece)
            stride_in = segment // view.item_bytes
        else:
            read_stored(fd, view.array, first, used)
        scales = None if view.scales is None else _read_scales(fd, view.scales)[:, out0:out1]
    finally:
        os.close(fd)
    data = np.frombuffer(used, np.dtype(f"u{view.item_bytes}"))
    return Slab(view, rows, data, stride_in, scales)


def forget_rows(view: View, out0: int, out1: int) -> None:
    """Let the system's page cache forget output rows that were read.

    Where others lie between them, all are forgotten with the last.
    """
    array, n_in = view.array, view.shape[1]
    first, last = (out0, out1) if not _is_scattered(view, out1 - out0) else (0, view.shape[0])
    if array.text is not None or out1 < last:
        return
    if array.packed is not None:
        for part in array.packed.parts.values():
            forget_read(part.path, part.offset, part.nbytes)
    elif view.is_blocked:
        row_bytes = TYPES[view.dtype].row_bytes(n_in)
        start = array.offset + (view.start // n_in + first) * row_bytes
        forget_read(array.path, start, (last - first) * row_bytes)
    else:
        start = array.offset + (view.start + first * view.strides[0]) * view.item_bytes
        forget_read(array.path, start, _span(view, last - first) * view.item_bytes)


def _is_scattered(view: View, rows: int) -> bool:
    return view.array.packed is not None or (not view.is_blocked and _is_gathered(view, rows))


def _read_scales(fd: int, scales: View) -> NDArray[np.float32]:
    """Read scales [out, groups] as float32 [groups, out], contiguous along `out`."""
    item = scales.item_bytes
    span = sum((n - 1) * s for n, s in zip(scales.shape, scales.strides, strict=True)) + 1
    raw = bytearray(span * item)
    read_stored(fd, scales.array, scales.start * item, memoryview(raw))
    flat = np.frombuffer(raw, _NUMPY_DTYPES[scales.array.dtype])
    strided = np.lib.stride_tricks.as_strided(
        flat, scales.shape[::-1], [s * item for s in scales.strides[::-1]]
    )
    return np.ascontiguousarray(strided, np.float32)


def named(
    error: SourceValueError, tensor: str, view: View, out0: int, remedy: str = ""
) -> LayoutError:
    """Say which tensor of which file a bad value is in, where, and what helps."""
    array, out = view.array, error.out + out0
    place = f"[{out}, {error.in_}] (out, in)"
    is_whole = view.strides == (view.shape[1], 1) and prod(view.shape) == prod(array.shape)
    if is_whole and view.shape != array.shape[-2:]:
        # An array as a matrix with rows of another length: the place in the array itself.
        index = np.unravel_index(out * view.shape[1] + error.in_, array.shape)
        place = str([int(i) for i in index])
    return LayoutError(f"{array.path}: {tensor}: {error.problem} at {place}{remedy}")


def load_float32(tensor: Tensor) -> NDArray[np.float32]:
    """Load a whole tensor as float32 [..., out, in]: exactly int8 x scale for int8 tensors."""
    views = matrices(tensor)
    result = np.empty((len(views), *views[0].shape), np.float32)
    for view, plane in zip(views, result, strict=True):
        buffer = memoryview(bytearray(slab_bytes(view, view.shape[0])))
        piece = read_slab(view, 0, view.shape[0], buffer).piece(0, view.shape[0])
        matrix = piece.dequantized() if isinstance(piece, Blocks) else piece
        try:
            quantize_matrix(matrix, F32, plane.reshape(-1).view(np.uint8))
        except SourceValueError as error:
            raise named(error, tensor.name, view, 0) from None
    return result.reshape(tensor.shape)
