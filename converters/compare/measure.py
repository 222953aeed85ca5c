"""Measure the errors of paired tensors, streaming the same rows of both through workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare.pair import Pair
from weightcast.converters.compare.rows import (
    Key,
    PairedRows,
    Sample,
    Views,
    chosen_rows,
    cut_rows,
    floats,
    measure_rows,
    read_rows,
    row_multiple,
)
from weightcast.converters.compare.stream import (
    PairedBuffers,
    PairedTask,
    cut_tasks,
    stream_rows,
    tiling_of,
)
from weightcast.converters.engine import slab_buffer
from weightcast.converters.graph import StoredMatrix, matrices
from weightcast.converters.plan import Tiling
from weightcast.converters.plan import budget as memory
from weightcast.converters.recipes import is_quantized
from weightcast.converters.report.collector import Collector, MatrixErrors
from weightcast.formats.array import StoredArray, read_into
from weightcast.quant.metrics import Baseline


def has_same_bytes(one: StoredArray, other: StoredArray) -> bool:
    """Compare numbers that no kernel reads as they are stored."""
    if one.dtype != other.dtype or one.nbytes != other.nbytes:
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        for start in range(0, one.nbytes, memory.TASK_BYTES):
            nbytes = min(memory.TASK_BYTES, one.nbytes - start)
            chunks = [bytearray(nbytes) for _ in range(2)]
            for file, array, chunk in zip((a, b), (one, other), chunks, strict=True):
                read_into(file.fileno(), array.path, array.offset + start, memoryview(chunk))
            if chunks[0] != chunks[1]:
                return False
    return True


def bytes_to_read(pairs: Sequence[Pair], sample: Sample = None) -> int:
    """Return how much `measure_pairs` reads, and reports as progress."""
    return sum(rows.read_bytes for rows in cut_rows(map(_views, pairs), sample))


def _views(pair: Pair) -> Iterator[Views]:
    return zip(matrices(pair.source), matrices(pair.output), strict=True)


def _baseline_of(pair: Pair, baseline: Baseline) -> Baseline:
    """Return the baseline of a pair: nobody rounds norms and routers before they are stored."""
    return baseline if is_quantized(pair.gguf, pair.source.shape) else Baseline.STORED


def measure_pairs(
    pairs: Sequence[Pair],
    baseline: Baseline,
    *,
    jobs: int,
    sample: Sample = None,
    importance: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[Pair, tuple[MatrixErrors, ...]]:
    """Measure the errors of B against A: of each pair those of its matrices, experts in order.

    The numbers are the same for any number of workers (`jobs`). `sample` is `chosen_rows`'s; rows
    are numbered as in the whole matrix all the same. `importance`, float32 [matrices, in] by GGUF
    name, weighs the errors of columns. `on_progress` gets bytes of both that were finished, from
    any thread. Holds two slabs of each side. Raises CheckpointError.
    """
    work = list(cut_rows(map(_views, pairs), sample))
    measurement = _Measurement(pairs, baseline, importance, tiling_of(jobs))
    stream_rows(work, measurement.read, measurement.measure, jobs, on_progress)
    found = measurement.collector.finished()
    return {
        pair: tuple(
            _in_matrix(found[number, matrix], views, sample)
            for matrix, views in enumerate(_views(pair))
        )
        for number, pair in enumerate(pairs)
    }


@dataclass(frozen=True, slots=True)
class _Measurement:
    """Read rows of pairs, and collect their errors."""

    pairs: Sequence[Pair]
    baseline: Baseline
    importance: Mapping[str, NDArray[np.float32]]
    tiling: Tiling
    collector: Collector[Key] = field(default_factory=Collector)

    def read(self, rows: PairedRows, buffers: PairedBuffers) -> Iterator[PairedTask]:
        """Read rows of both, and cut them into tasks."""
        source, output = buffers.read_source(rows), buffers.read_output(rows)
        step = self.tiling.rows_per_task(source.rows, 4 * source.view.shape[1])  # as float32
        return cut_tasks(rows, source, output, step)

    def measure(self, task: PairedTask) -> None:
        """Measure the rows of a task."""
        number, matrix = key = task.rows.key
        pair = self.pairs[number]
        weights = self.importance.get(pair.gguf)
        errors = measure_rows(
            task.source,
            task.output,
            task.row0,
            task.row1,
            _baseline_of(pair, self.baseline),
            None if weights is None else weights[matrix],
        )
        self.collector.add(key, task.position, errors)


def _in_matrix(errors: MatrixErrors, views: Views, sample: Sample) -> MatrixErrors:
    """Turn row numbers that count through a sample into those of the matrix."""
    if sample is None:
        return errors
    runs = chosen_rows(views[0].shape[0], sample, row_multiple(*views))
    rows = np.concatenate([np.arange(*run) for run in runs])
    total = errors.total
    if total.largest_square > 0:
        total = replace(total, largest_row=rows[total.largest_row])
    return MatrixErrors(total, tuple((int(rows[row]), size) for row, size in errors.worst))


def rows_float32(view: StoredMatrix, out0: int, out1: int) -> NDArray[np.float32]:
    """Read rows [out0, out1) of a matrix as float32 [rows, in], finite or not.

    Of a packed matrix `out0` is a multiple of the rows that are packed together.
    """
    buffer = memoryview(slab_buffer(view.slab_bytes(out0, out1)))
    return floats(read_rows(view, out0, out1, buffer), 0, out1 - out0)
