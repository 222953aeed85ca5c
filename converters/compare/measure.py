"""Measure the errors of paired tensors, streaming the same rows of both through workers."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare.pair import Pair
from weightcast.converters.compare.rows import (
    RUN_ROWS,
    PairedRows,
    Sample,
    chosen_rows,
    cut_rows,
    floats,
    measure_rows,
    read_rows,
    row_multiple,
)
from weightcast.converters.engine.executor import MAX_WORKERS
from weightcast.converters.engine.tasks import slab_buffer
from weightcast.converters.files import page_cache
from weightcast.converters.graph import Slab, StoredMatrix, first_array, matrices
from weightcast.converters.plan.budget import MAX_PIECES_BYTES, PIECE_BYTES
from weightcast.converters.plan.plan import whole
from weightcast.converters.recipes.decide import is_quantized
from weightcast.converters.report.collector import Collector, MatrixErrors
from weightcast.errors import CheckpointError, RequestError
from weightcast.formats.array import read_into
from weightcast.quant.metrics import Baseline


def has_same_bytes(pair: Pair) -> bool:
    """Compare the stored bytes of numbers that no kernel reads."""
    one, other = first_array(pair.source), first_array(pair.output)
    if one.nbytes != other.nbytes:
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        for start in range(0, one.nbytes, PIECE_BYTES):
            pieces = [bytearray(min(PIECE_BYTES, one.nbytes - start)) for _ in range(2)]
            for file, array, piece in zip((a, b), (one, other), pieces, strict=True):
                read_into(file.fileno(), array.path, array.offset + start, memoryview(piece))
            if pieces[0] != pieces[1]:
                return False
    return True


# Measuring.

_Key = tuple[int, int]  # a pair, and a matrix of it


def _paired_rows(pairs: Sequence[Pair], sample: Sample = None) -> Iterator[tuple[_Key, PairedRows]]:
    for number, pair in enumerate(pairs):
        views = zip(matrices(pair.source), matrices(pair.output), strict=True)
        for expert, (source, output) in enumerate(views):
            for rows in cut_rows(source, output, sample):
                yield (number, expert), rows


def bytes_to_read(pairs: Sequence[Pair], sample: Sample = None) -> int:
    """How much `measure_pairs` reads, and tells of as progress."""
    return sum(rows.read_bytes for _, rows in _paired_rows(pairs, sample))


def _baseline_of(pair: Pair, baseline: Baseline) -> Baseline:
    """Norms and routers are not rounded by anybody: they are measured as they are stored."""
    return baseline if is_quantized(pair.gguf, pair.source.shape, "") else Baseline.STORED


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

    The numbers are the same for any number of workers (`jobs`). `sample` is `chosen_rows`'s;
    places are those in the whole matrix all the same. `importance`, float32 [matrices, in] by GGUF
    name, weighs the errors of columns. `on_progress` gets bytes of both that were
    finished, from any thread. Holds two slabs of each side. Raises CheckpointError.
    """
    if type(jobs) is not int or not 1 <= jobs <= MAX_WORKERS:
        raise RequestError(f"{jobs} jobs; 1 to {MAX_WORKERS} are possible")
    work = list(_paired_rows(pairs, sample))
    is_large = page_cache.outgrows(sum(rows.read_bytes for _, rows in work))
    slots = [_Slot.of([rows for _, rows in work]) for _ in range(2)]
    with ThreadPoolExecutor(jobs) as pool:
        baselines = [_baseline_of(pair, baseline) for pair in pairs]
        weights = [importance.get(pair.gguf) for pair in pairs]
        measurement = _Measurement(baselines, weights, jobs, pool, on_progress)
        try:
            for number, (key, rows) in enumerate(work):
                slot = slots[number % 2]
                slot.wait()
                slot.pieces += measurement.hand_out(key, rows, slot)
                if is_large:
                    rows.forget()
            for slot in slots:
                slot.wait()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = measurement.collector.finished()
    return {
        pair: tuple(
            _in_place(found[number, expert], source, output, sample)
            for expert, (source, output) in enumerate(
                zip(matrices(pair.source), matrices(pair.output), strict=True)
            )
        )
        for number, pair in enumerate(pairs)
    }


@dataclass(slots=True)
class _Slot:
    """Buffers for the rows of both, and the pieces that are still measured of them."""

    source: mmap.mmap
    output: mmap.mmap
    pieces: list[Future[None]] = field(default_factory=list)

    @classmethod
    def of(cls, work: Sequence[PairedRows]) -> _Slot:
        """Make buffers that fit all work."""
        source = max((w.source.slab_bytes(w.out0, w.out1) for w in work), default=0)
        output = max((w.output.slab_bytes(w.out0, w.out1) for w in work), default=0)
        return cls(slab_buffer(source), slab_buffer(output))

    def wait(self) -> None:
        """Wait for the pieces. Raises what went wrong with one."""
        for piece in self.pieces:
            piece.result()
        self.pieces.clear()


@dataclass(frozen=True, slots=True)
class _Measurement:
    baselines: Sequence[Baseline]  # of the pairs
    importance: Sequence[NDArray[np.float32] | None]  # of the pairs
    jobs: int
    pool: ThreadPoolExecutor
    on_progress: Callable[[int], None]
    collector: Collector[_Key] = field(default_factory=Collector)

    def hand_out(self, key: _Key, rows: PairedRows, slot: _Slot) -> Iterator[Future[None]]:
        """Read rows of both and give them to the workers in pieces."""
        source = read_rows(rows.source, rows.out0, rows.out1, memoryview(slot.source))
        output = read_rows(rows.output, rows.out0, rows.out1, memoryview(slot.output))

        (pair, matrix), of_pair = key, self.importance[key[0]]
        weights = None if of_pair is None else of_pair[matrix]

        def measure(row0: int, row1: int, nbytes: int) -> None:
            errors = measure_rows(source, output, row0, row1, self.baselines[pair], weights)
            self.collector.add(key, rows.row0 + row0, errors)
            self.on_progress(nbytes)

        count, step = source.rows, self._rows_per_piece(source)
        for row0 in range(0, count, step):
            row1 = min(row0 + step, count)
            share = rows.read_bytes * row1 // count - rows.read_bytes * row0 // count
            try:
                yield self.pool.submit(measure, row0, row1, share)
            except RuntimeError as problem:  # a limit of the system on threads
                raise CheckpointError(
                    f"cannot start {self.jobs} workers ({problem}); use fewer --jobs"
                ) from None

    def _rows_per_piece(self, slab: Slab) -> int:
        """As many as fit a piece as float32; enough pieces of a small slab for all workers."""
        limit = min(PIECE_BYTES, MAX_PIECES_BYTES // self.jobs) // (4 * slab.view.shape[1])
        rows = min(max(1, limit), max(-(-slab.rows // self.jobs), RUN_ROWS))
        return rows if rows < RUN_ROWS else whole(rows, RUN_ROWS)


def _in_place(
    errors: MatrixErrors, source: StoredMatrix, output: StoredMatrix, sample: Sample
) -> MatrixErrors:
    """Turn rows counted through a sample into rows of the matrix."""
    if sample is None:
        return errors
    runs = chosen_rows(source.shape[0], sample, row_multiple(source, output))
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
