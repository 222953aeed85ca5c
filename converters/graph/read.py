"""Read rows of stored matrices into memory, in the order in which they lie in their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.files import forget_read
from weightcast.converters.graph.assembly import Assembly, Region
from weightcast.converters.graph.gather import (
    AssembledRows,
    EncodedRows,
    LoadedFactors,
    PartRows,
    PlainRows,
    array_of,
    as_float32,
    floats_into,
)
from weightcast.converters.graph.resolve import matrices
from weightcast.converters.graph.sums import StoredMatrix, Sum
from weightcast.converters.graph.tensor import Tensor
from weightcast.converters.graph.view import Runs, View, runs_of
from weightcast.errors import CheckpointError, LayoutError
from weightcast.formats.array import ITEM_BYTES, Decode, read_into, read_stored
from weightcast.formats.packed.layout import NUMPY_DTYPES
from weightcast.quant.cpu.library import Blocks, Matrix, SourceValueError, quantize_matrix
from weightcast.quant.types import F32, STORED_TYPES, TYPES, QuantType


@dataclass(frozen=True, slots=True)
class Slab:
    """Output rows of one matrix in memory, as they are stored.

    Pieces lie in `data` at strides, in elements; what has to be decoded or put together first is
    what `make` gives for rows [row0, row1) of the slab.
    """

    view: StoredMatrix
    rows: int
    data: NDArray[np.generic]
    stride_in: int
    scales: NDArray[np.float32] | None
    make: Callable[[int, int], Matrix | Blocks] | None = None
    stride_out: int | None = None  # None: that of the view

    def matrix(self, row0: int, row1: int) -> Matrix | Blocks:
        """Give rows [row0, row1) to the kernels, where they lie if possible."""
        if self.make is not None:
            return self.make(row0, row1)
        view, n_in = self.view.single, self.view.shape[1]
        assert view is not None
        if view.is_blocked:
            return Blocks(self._bytes(row0, row1), TYPES[view.dtype], row1 - row0, n_in)
        stride_out = view.strides[0] if self.stride_out is None else self.stride_out
        return Matrix(
            self.data,
            view.dtype,
            row1 - row0,
            n_in,
            stride_out,
            self.stride_in,
            start=row0 * stride_out,
            scales=None if self.scales is None else self.scales[:, row0:row1],
        )

    @property
    def row_type(self) -> QuantType | None:
        """Name the type of `stored_rows`; None if rows do not lie one after another in memory."""
        view = self.view.single
        if view is None or self.make is not None or self.scales is not None:
            return None
        return TYPES[view.dtype] if self._lies_in_rows else None

    @property
    def _lies_in_rows(self) -> bool:
        view = self.view.single
        return view is None or view.is_blocked or view.strides == (view.shape[1], 1)

    def stored_rows(self, row0: int, row1: int) -> NDArray[np.uint8]:
        """Give the stored bytes of rows [row0, row1), row after row; scales are no part of them."""
        if self.make is None and self._lies_in_rows:
            return self._bytes(row0, row1)
        piece = self.matrix(row0, row1) if self.make is None else self.make(row0, row1)
        if isinstance(piece, Blocks):
            return piece.data
        return np.ascontiguousarray(array_of(piece)).reshape(-1).view(np.uint8)

    def _bytes(self, row0: int, row1: int) -> NDArray[np.uint8]:
        row_bytes = STORED_TYPES[self.view.dtype].row_bytes(self.view.shape[1])
        return self.data.view(np.uint8)[row0 * row_bytes : row1 * row_bytes]


def read_slab(view: StoredMatrix, out0: int, out1: int, buffer: memoryview) -> Slab:
    """Read output rows [out0, out1) of a matrix into `buffer`, front to back in each file.

    `view.slab_bytes` says how much of the buffer they take. Raises OSError and CheckpointError.
    """
    if isinstance(view, Assembly):
        return _read_assembly(view, out0, out1, buffer)
    if isinstance(view, Sum):
        return _read_sum(view, out0, out1, buffer)
    used = buffer[: view.slab_bytes(out0, out1)]
    rows, array = out1 - out0, view.array
    if array.packed is not None:
        held = array.packed.read(out0, out1, used)
        make = None if held.decode is None else partial(_decoded, held.decode)
        return Slab(view, rows, np.frombuffer(used, np.uint8), 1, held.scales, make)
    with opened(array.path) as fd:
        if view.is_blocked:
            row_bytes = TYPES[view.dtype].row_bytes(view.shape[1])
            read_stored(fd, array, (view.start // view.shape[1] + out0) * row_bytes, used)
            return Slab(view, rows, np.frombuffer(used, np.uint8), 1, None)
        runs = runs_of(view, out0, out1)
        data = _read_runs(fd, runs, used)
        scales = None if view.scales is None else read_scales(view.scales)[:, out0:out1]
    stride_out, stride_in = runs.strides_of(view)
    return Slab(view, rows, data, stride_in, scales, stride_out=stride_out)


def _decoded(decode: Decode, row0: int, row1: int) -> Matrix:
    values = decode(row0, row1)
    n_out, n_in = values.shape
    return Matrix(values.reshape(-1), F32.name, n_out, n_in, n_in, 1)


def _read_assembly(assembly: Assembly, out0: int, out1: int, buffer: memoryview) -> Slab:
    """Read the parts of rows as they are stored; pieces of rows are put together later."""
    parts: list[PartRows] = []
    at = 0
    for region in assembly.regions(out0, out1):
        used = buffer[at : at + region.nbytes]
        at += region.aligned_bytes
        try:
            parts += _read_region(region, used)
        except OSError as problem:
            raise CheckpointError(
                f"{region.view.path}: cannot be read: {problem.strerror}"
            ) from None
    rows = AssembledRows(assembly, out0, tuple(parts))
    return Slab(assembly, out1 - out0, np.frombuffer(buffer[:at], np.uint8), 1, None, rows.matrix)


def _read_sum(view: Sum, out0: int, out1: int, buffer: memoryview) -> Slab:
    """Read rows as they are stored, and the factors of what workers add to them."""
    base = read_slab(view.base, out0, out1, buffer)
    at = view.base_bytes(out0, out1)
    loaded: list[LoadedFactors] = []
    for factors, patches, rows in view.needed(out0, out1):
        held = []
        for matrix, wanted in (
            *((a, range(a.shape[0])) for a in factors.a),
            *((b, rows) for b in factors.b),
        ):
            nbytes = ITEM_BYTES[F32.name] * len(wanted) * matrix.shape[1]
            held.append(_read_floats(matrix, wanted, buffer[at : at + nbytes]))
            at += nbytes
        n_terms = len(factors.a)
        a, b = tuple(held[:n_terms]), tuple(held[n_terms:])
        loaded.append(LoadedFactors(a, b, rows.start, factors, patches))

    def make(row0: int, row1: int) -> Matrix:
        values = as_float32(base.matrix(row0, row1))
        for factors in loaded:
            factors.add_to(values, out0 + row0)
        n_out, n_in = values.shape
        return Matrix(values.reshape(-1), F32.name, n_out, n_in, n_in, 1)

    return Slab(view, out1 - out0, np.frombuffer(buffer[:at], np.uint8), 1, None, make)


def _read_floats(view: StoredMatrix, rows: range, buffer: memoryview) -> NDArray[np.float32]:
    """Read rows of a small matrix as float32 [rows, in] into `buffer`."""
    values = np.frombuffer(buffer, np.float32).reshape(len(rows), view.shape[1])
    stored = memoryview(bytearray(view.slab_bytes(rows.start, rows.stop)))
    try:
        slab = read_slab(view, rows.start, rows.stop, stored)
    except OSError as problem:
        raise CheckpointError(f"{view.path}: cannot be read: {problem.strerror}") from None
    floats_into(values, slab.matrix(0, len(rows)))
    return values


def _read_region(region: Region, used: memoryview) -> Iterator[PartRows]:
    if region.runs is None:
        first = region.rows.start
        slab = read_slab(region.view, first, region.rows.stop, used)
        yield from (EncodedRows(part, rows, first, slab) for part, rows in region.members)
        return
    with opened(region.view.path) as fd:
        data = _read_runs(fd, region.runs, used)
    for part, rows in region.members:
        view = part.view
        start = view.start + rows.start * view.strides[0] - region.runs.first
        scales = None
        if view.scales is not None:
            scales = read_scales(view.scales)[:, rows.start : rows.stop]
        yield PlainRows(part, rows, data, start, region.runs.strides_of(view), scales)


def _read_runs(fd: int, runs: Runs, used: memoryview) -> NDArray[np.generic]:
    """Read runs one after another into `used`; gives unsigned integers of the item's size."""
    item = ITEM_BYTES[runs.array.dtype]
    run_bytes, step_bytes = runs.length * item, runs.step * item
    for number in range(runs.count):
        run = used[number * run_bytes : (number + 1) * run_bytes]
        read_stored(fd, runs.array, runs.first * item + number * step_bytes, run)
    return np.frombuffer(used, np.dtype(f"u{item}"))


def read_run(path: Path, offset: int, nbytes: int, buffer: memoryview) -> Iterator[memoryview]:
    """Read a run of a file's bytes, as much at a time as fits `buffer`. Raises CheckpointError."""
    try:
        with opened(path) as fd:
            for start in range(0, nbytes, len(buffer)):
                chunk = buffer[: nbytes - start]
                read_into(fd, path, offset + start, chunk)
                yield chunk
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def read_scales(scales: View) -> NDArray[np.float32]:
    """Read scales [out, groups] as float32 [groups, out], contiguous along `out`."""
    item = scales.item_bytes
    span = sum((n - 1) * s for n, s in zip(scales.shape, scales.strides, strict=True)) + 1
    raw = bytearray(span * item)
    with opened(scales.path) as fd:
        read_stored(fd, scales.array, scales.start * item, memoryview(raw))
    flat = np.frombuffer(raw, NUMPY_DTYPES[scales.array.dtype])
    strided = np.lib.stride_tricks.as_strided(
        flat, scales.shape[::-1], [s * item for s in scales.strides[::-1]]
    )
    return np.ascontiguousarray(strided, np.float32)


def forget_rows(view: StoredMatrix, out0: int, out1: int) -> None:
    """Let the system's page cache forget output rows that were read.

    Where others lie between them, all are forgotten with the last.
    """
    if isinstance(view, Sum):
        view = view.base
    if isinstance(view, View):
        _forget(view, out0, out1)
        return
    for part, rows in view.parts_in(out0, out1):
        if part.window is None:
            _forget(part.view, rows.start, rows.stop)
        elif rows.stop == part.shape[0]:
            stored = part.stored_rows(range(rows.stop))
            _forget(part.view, stored.start, stored.stop)


def _forget(view: View, out0: int, out1: int) -> None:
    array, (n_out, n_in) = view.array, view.shape
    is_scattered = view.is_packed or (not view.is_blocked and runs_of(view, out0, out1).count > 1)
    first, last = (0, n_out) if is_scattered else (out0, out1)
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
        (stride_out, stride_in), item = view.strides, view.item_bytes
        span = (last - first - 1) * stride_out + (n_in - 1) * stride_in + 1
        start = array.offset + (view.start + first * stride_out) * item
        forget_read(array.path, start, span * item)


def named(
    error: SourceValueError, tensor: str, view: StoredMatrix, out0: int, remedy: str = ""
) -> LayoutError:
    """Say which tensor of which file a bad value is in, where, and what helps."""
    out = error.out + out0
    place = f"[{out}, {error.in_}] (out, in)"
    if isinstance(view, Sum):
        view = view.base
    if isinstance(view, Assembly):
        path = view.part_at(out, error.in_).view.path
        return LayoutError(f"{path}: {tensor}: {error.problem} at {place}{remedy}")
    array = view.array
    is_whole = view.strides == (view.shape[1], 1) and prod(view.shape) == prod(array.shape)
    if is_whole and view.shape != array.shape[-2:]:
        # An array as a matrix with rows of another length: the place in the array itself.
        index = np.unravel_index(out * view.shape[1] + error.in_, array.shape)
        place = str([int(i) for i in index])
    return LayoutError(f"{array.path}: {tensor}: {error.problem} at {place}{remedy}")


def load_float32(tensor: Tensor) -> NDArray[np.float32]:
    """Load a whole tensor as float32 [..., out, in]: exactly int8 x scale for int8 tensors.

    Raises LayoutError for values that are not finite.
    """
    views = matrices(tensor)
    result = np.empty((len(views), *views[0].shape), np.float32)
    for view, plane in zip(views, result, strict=True):
        n_out = view.shape[0]
        buffer = memoryview(bytearray(view.slab_bytes(0, n_out)))
        piece = read_slab(view, 0, n_out, buffer).matrix(0, n_out)
        decode_into(plane, piece, tensor, view, 0)
    return result.reshape(tensor.shape)


def decode_into(
    values: NDArray[np.float32],
    piece: Matrix | Blocks,
    tensor: Tensor,
    view: StoredMatrix,
    row0: int,
) -> None:
    """Decode rows of a tensor's matrix from `row0` on into `values`, float32 [rows, in].

    Raises LayoutError for values that are not finite.
    """
    matrix = piece.dequantized() if isinstance(piece, Blocks) else piece
    try:
        quantize_matrix(matrix, F32, values.reshape(-1).view(np.uint8))
    except SourceValueError as error:
        raise named(error, tensor.name, view, row0) from None
