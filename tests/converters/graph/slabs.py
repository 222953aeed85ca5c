"""Slabs of matrices beside the values that they ought to have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import StoredMatrix
from weightcast.converters.graph.read import read_slab
from weightcast.quant.backend import as_matrix
from weightcast.quant.cpu.library import Matrix, quantize_matrix
from weightcast.quant.types import F32, STORED_TYPES


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def check_slabs(view: StoredMatrix, expected: NDArray[np.float32], rows: int, step: int) -> None:
    """Read a matrix in slabs of `rows` rows or a few more, and use these in pieces of `step`."""
    n_out, multiple = view.shape[0], view.row_multiple
    rows = -(-rows // multiple) * multiple
    for out0 in range(0, n_out, rows):
        out1 = min(out0 + rows, n_out)
        _check_slab(view, out0, out1, step, expected[out0:out1])


def _check_slab(
    view: StoredMatrix, out0: int, out1: int, step: int, expected: NDArray[np.float32]
) -> None:
    nbytes = view.slab_bytes(out0, out1)
    if not view.is_packed:
        assert view.bytes_to_read(out0, out1) <= nbytes
    buffer = memoryview(bytearray(nbytes + 8))
    buffer[nbytes:] = b"guarded!"
    slab = read_slab(view, out0, out1, buffer)
    assert bytes(buffer[nbytes:]) == b"guarded!"
    assert slab.rows == out1 - out0
    for row0 in range(0, slab.rows, step):
        row1 = min(row0 + step, slab.rows)
        matrix = as_matrix(slab.matrix(row0, row1))
        is_decoded = view.single is not None and view.is_encoded
        assert matrix.dtype == ("F32" if is_decoded or view.is_blocked else view.dtype)
        values = np.empty((row1 - row0, view.shape[1]), np.float32)
        quantize_matrix(matrix, F32, values.reshape(-1).view(np.uint8))
        np.testing.assert_array_equal(bits(values), bits(expected[row0:row1]))
        if view.single is None:
            row_bytes = STORED_TYPES[view.dtype].row_bytes(view.shape[1])
            assert slab.stored_rows(row0, row1).nbytes == (row1 - row0) * row_bytes
            assert _device_bytes(matrix) <= view.piece_bytes(row1 - row0)


def _device_bytes(matrix: Matrix) -> int:
    """What lanes of devices copy: runs, or all from the first to the last element."""
    n_out, n_in, item = matrix.n_out, matrix.n_in, matrix.data.itemsize
    if 1 in (matrix.stride_in, matrix.stride_out):
        return n_out * n_in * item
    return ((n_out - 1) * matrix.stride_out + (n_in - 1) * matrix.stride_in + 1) * item
