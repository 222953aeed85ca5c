"""Compare what tensors hold with what a conversion of the source would write, and measure errors.

Quantization is deterministic: rows are made again from the source and compared byte by byte. Other
tools start from rounded weights, so rows made from those are tried too. Rows that are like none of
these are measured, and so is what this type makes of the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare import (
    Key,
    PairedBuffers,
    PairedRows,
    PairedTask,
    Sample,
    cut_rows,
    cut_tasks,
    measure_rows,
    row_multiple,
    stream_rows,
    tiling_of,
)
from weightcast.converters.engine import FactorCache
from weightcast.converters.graph.read import Slab
from weightcast.converters.plan import Tiling
from weightcast.converters.report.collector import Collector, MatrixErrors
from weightcast.converters.verify.match import TensorMatch
from weightcast.converters.verify.rows import RowComparison, compare, packing_of
from weightcast.errors import CheckpointError
from weightcast.formats.hessians import StoredMoments
from weightcast.quant.backend import CpuBackend
from weightcast.quant.metrics import MOMENTS, Baseline, Errors, of_moments
from weightcast.quant.search import GGML, Search

# Rows that are this much worse than those that their type makes are reported.
_OUTLIER: Final = 4.0


def _no_errors() -> MatrixErrors:
    return MatrixErrors(of_moments(np.zeros(0, MOMENTS), 0).total())


@dataclass
class MatrixCheck:
    """Findings about one matrix.

    `origins` counts rows by what they were made from, None for rows like nothing that was tried;
    `different` bytes of those differ from the likest; `first` is the file offset of the first.
    """

    nbytes: int = 0
    different: int = 0
    first: int | None = None
    origins: Counter[str | None] = field(default_factory=Counter)
    outliers: list[int] = field(default_factory=list)
    failure: str | None = None
    made: MatrixErrors = field(default_factory=_no_errors)
    expected: MatrixErrors = field(default_factory=_no_errors)

    @property
    def is_explained(self) -> bool:
        """Return whether all rows are, byte for byte, what some conversion makes."""
        return self.failure is None and not self.origins[None]

    def add(self, task: PairedTask, comparison: RowComparison, outliers: Iterable[int]) -> None:
        """Add the findings about the rows of a task."""
        self.nbytes += comparison.nbytes
        self.origins[comparison.origin] += task.row1 - task.row0
        if comparison.origin is None:
            self.different += comparison.different
            self.outliers += [task.start + int(row) for row in outliers]
            if comparison.first is not None:
                self.first = min(self.first or comparison.first, comparison.first)


def read_bytes(tensors: Sequence[TensorMatch], sample: Sample) -> int:
    """Return how much `check_content` reads, and reports as progress."""
    return sum(rows.read_bytes for rows in _work(tensors, sample))


def _work(tensors: Sequence[TensorMatch], sample: Sample) -> Iterator[PairedRows]:
    return cut_rows((tensor.views for tensor in tensors), sample)


def check_content(
    tensors: Sequence[TensorMatch],
    importance: Mapping[str, NDArray[np.float32]],
    moments: Mapping[str, tuple[StoredMoments | None, ...]],
    *,
    jobs: int,
    sample: Sample = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    search: Search = GGML,
) -> dict[Key, MatrixCheck]:
    """Compare tensors with what they ought to hold.

    `importance`, [matrices, in], and `moments`, one for each matrix, are by name.
    `sample` is `chosen_rows`'s. Holds two slabs of each side and a few tasks. Raises
    CheckpointError if the source cannot be read or converted.
    """
    check = _ContentCheck(tensors, importance, moments, tiling_of(jobs), search)
    work = list(_work(tensors, sample))
    stream_rows(work, check.read, check.compare, jobs, on_progress)
    return check.finished()


class _ContentCheck:
    """Read rows of both sides, compare them, and collect the findings by matrix."""

    def __init__(
        self,
        tensors: Sequence[TensorMatch],
        importance: Mapping[str, NDArray[np.float32]],
        moments: Mapping[str, tuple[StoredMoments | None, ...]],
        tiling: Tiling,
        search: Search,
    ) -> None:
        self._tensors = tensors
        self._importance = importance
        self._moments = moments
        self._factors = FactorCache()
        self._tiling = tiling
        self._search = search
        self._lock = Lock()
        self._matrices: dict[Key, MatrixCheck] = {}
        self._made: Collector[Key] = Collector()
        self._expected: Collector[Key] = Collector()

    def read(self, rows: PairedRows, buffers: PairedBuffers) -> Iterator[PairedTask]:
        """Read rows of both and cut them into tasks; none if the artifact cannot be read."""
        matrix = self._matrices.setdefault(rows.key, MatrixCheck())
        source = buffers.read_source(rows)
        try:
            output = buffers.read_output(rows)
        except CheckpointError as problem:
            matrix.failure = str(problem)
            return iter(())
        return cut_tasks(rows, source, output, self._rows_per_task(source, output))

    def _rows_per_task(self, source: Slab, output: Slab) -> int:
        packing = packing_of(output.view.views[0].array)
        multiple = 1 if packing is None else lcm(packing.row_multiple(), row_multiple(output.view))
        return self._tiling.rows_per_task(source.rows, 4 * source.view.shape[1], multiple, step=1)

    def compare(self, task: PairedTask) -> None:
        """Compare rows with what they can have been made from, and measure them."""
        key = task.rows.key
        backend = self._factors.backend(CpuBackend(), self._moments_of(key))
        comparison = compare(task, self._weights(key), backend, self._search)
        made = measure_rows(task.source, task.output, task.row0, task.row1, Baseline.STORED)
        factor = self._tensors[key[0]].factor_of(key[1])
        made = made.times(factor)
        expected = comparison.expected
        expected = made if expected is None else expected.times(factor)
        self._made.add(key, task.position, made)
        self._expected.add(key, task.position, expected)
        outliers = _outliers(made, expected) if comparison.origin is None else ()
        with self._lock:
            self._matrices[key].add(task, comparison, outliers)

    def _weights(self, key: Key) -> NDArray[np.float32] | None:
        """Find the importance of a matrix; all experts of a tensor can share one row."""
        rows = self._importance.get(self._tensors[key[0]].name)
        return None if rows is None else rows[min(key[1], len(rows) - 1)]

    def _moments_of(self, key: Key) -> StoredMoments | None:
        """Find the second moments of the inputs of a matrix, if it was made with such."""
        found = self._moments.get(self._tensors[key[0]].name, ())
        return found[min(key[1], len(found) - 1)] if found else None

    def finished(self) -> dict[Key, MatrixCheck]:
        """Return the findings about all matrices."""
        made, expected = self._made.finished(), self._expected.finished()
        for key, matrix in self._matrices.items():
            matrix.outliers.sort()
            if matrix.failure is None:
                matrix.made, matrix.expected = made[key], expected[key]
        return self._matrices


def _outliers(made: Errors, expected: Errors) -> NDArray[np.int64]:
    """Find rows whose error is out of all proportion to that of their type."""
    with np.errstate(all="ignore"):
        usual = np.maximum(expected.relative_rms, np.median(expected.relative_rms))
        found = made.relative_rms > np.maximum(_OUTLIER * usual, 1e-6)
    return np.flatnonzero(found | ~np.isfinite(made.relative_rms))
