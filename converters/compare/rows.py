"""Choose and read the same rows of two matrices, and measure the errors of one's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from math import ceil, lcm
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import StoredMatrix
from weightcast.converters.graph.read import Slab, forget_rows, read_slab
from weightcast.converters.plan import SLAB_BYTES, whole
from weightcast.errors import CheckpointError
from weightcast.formats.packed.layout import NUMPY_DTYPES
from weightcast.quant.backend import as_matrix
from weightcast.quant.cpu.library import Matrix, SourceValueError, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.types import F32, QuantType

Sample = int | float | None
Key = tuple[int, int]  # a tensor, and a matrix of it
Views = tuple[StoredMatrix, StoredMatrix]  # a matrix of the source, and what is held against it
# Rows of a sample come in runs: the cache lines of int8 columns, 64 of them side by side.
RUN_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Rows [out0, out1) of a matrix in both; `row0` is the first among those that are chosen."""

    key: Key
    source: StoredMatrix
    output: StoredMatrix
    out0: int
    out1: int
    row0: int

    @property
    def read_bytes(self) -> int:
        """Bytes to read of both."""
        return sum(v.bytes_to_read(self.out0, self.out1) for v in (self.source, self.output))

    def forget(self) -> None:
        """Let the system's page cache forget both."""
        for view in (self.source, self.output):
            forget_rows(view, self.out0, self.out1)


def chosen_rows(n_out: int, sample: Sample, multiple: int = 1) -> list[tuple[int, int]]:
    """Choose rows of a matrix: all, or about `sample` of them (a float: that share of them).

    A sample is runs [row0, row1) of 64 rows or a few more, the first and the last row among them
    where there are several, evenly spread, the same each time. Runs start at multiples.
    """
    if sample is None:
        return [(0, n_out)]
    wanted = sample if isinstance(sample, int) else ceil(sample * n_out)
    run = lcm(RUN_ROWS, multiple)
    n_runs, n_chosen = -(-n_out // run), max(1, -(-wanted // run))
    if n_chosen >= n_runs:
        return [(0, n_out)]
    if n_chosen == 1:
        chosen = [n_runs // 2]
    else:
        chosen = [n * (n_runs - 1) // (n_chosen - 1) for n in range(n_chosen)]
    return [(n * run, min((n + 1) * run, n_out)) for n in chosen]


def row_multiple(*views: StoredMatrix) -> int:
    """Return how many rows of packed matrices are read together, 1 of others."""
    return lcm(*(view.row_multiple for view in views))


def cut_rows(tensors: Iterable[Iterable[Views]], sample: Sample = None) -> Iterator[PairedRows]:
    """Cut the matrices of tensors into rows that fit slabs of both sides, in order."""
    for number, tensor in enumerate(tensors):
        for matrix, views in enumerate(tensor):
            yield from _cut_matrix((number, matrix), views, sample)


def _cut_matrix(key: Key, views: Views, sample: Sample) -> Iterator[PairedRows]:
    source, output = views
    multiple = row_multiple(source, output)
    most = whole(min(view.rows_per_slab(SLAB_BYTES) for view in views), multiple)
    done = 0
    for row0, row1 in chosen_rows(source.shape[0], sample, multiple):
        # Slabs of one size, so that none is only a few rows.
        share = -(-(row1 - row0) // -(-(row1 - row0) // most))
        step = -(-share // multiple) * multiple
        for out0 in range(row0, row1, step):
            out1 = min(out0 + step, row1)
            yield PairedRows(key, source, output, out0, out1, done)
            done += out1 - out0


def read_rows(view: StoredMatrix, out0: int, out1: int, buffer: memoryview) -> Slab:
    """Read rows [out0, out1) of a matrix. Raises CheckpointError."""
    try:
        return read_slab(view, out0, out1, buffer)
    except OSError as problem:
        raise CheckpointError(f"{view.path}: cannot be read: {problem.strerror}") from None


def measure_rows(
    source: Slab,
    output: Slab,
    row0: int,
    row1: int,
    baseline: Baseline,
    importance: NDArray[np.float32] | None = None,
) -> Errors:
    """Measure the errors of rows [row0, row1) of a slab against the same rows of its source.

    Blocks and row-major floats are measured as they are stored. `importance`, float32 [in], weighs
    columns. The same NaN or infinity in both is no error.
    """
    matrix = as_matrix(source.matrix(row0, row1))
    stored: tuple[QuantType, NDArray[np.uint8]]
    if output.row_type is not None:
        stored = output.row_type, output.stored_rows(row0, row1)
    else:
        stored = F32, floats(output, row0, row1).reshape(-1).view(np.uint8)
    errors = measure_matrix(matrix, *stored, importance, baseline)
    infinite = ~np.isfinite(errors.error_squares)
    if infinite.any():
        x, y = (floats(slab, row0, row1)[infinite] for slab in (source, output))
        same = ~np.isfinite(x) & (x.view(np.uint32) == y.view(np.uint32))
        x[same] = y[same] = 0  # no error, and no size to compare one with
        n_out, n_in = x.shape
        matrix = Matrix(x.reshape(-1), F32.name, n_out, n_in, n_in, 1)
        again = measure_matrix(matrix, F32, y.reshape(-1).view(np.uint8), importance, baseline)
        for part in fields(Errors):
            getattr(errors, part.name)[infinite] = getattr(again, part.name)
    return errors


def floats(slab: Slab, row0: int, row1: int) -> NDArray[np.float32]:
    """Return rows of a slab as float32 [rows, in], finite or not."""
    matrix = as_matrix(slab.matrix(row0, row1))
    values = np.empty((matrix.n_out, matrix.n_in), np.float32)
    try:
        quantize_matrix(matrix, F32, values.reshape(-1).view(np.uint8))
    except SourceValueError:  # NaN and infinity are values too
        return _any_floats(matrix)
    return values


def _any_floats(matrix: Matrix) -> NDArray[np.float32]:
    data = matrix.data.view(NUMPY_DTYPES[matrix.dtype])[matrix.start :]
    strides = [stride * data.itemsize for stride in (matrix.stride_out, matrix.stride_in)]
    shape = (matrix.n_out, matrix.n_in)
    with np.errstate(all="ignore"):
        values = np.lib.stride_tricks.as_strided(data, shape, strides).astype(np.float32)
        if matrix.scales is not None:
            repeats = matrix.n_in // matrix.scales.shape[0]
            values *= np.repeat(matrix.scales.T, repeats, axis=1)
    return values
