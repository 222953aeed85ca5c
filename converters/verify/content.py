"""What tensors hold, beside what a conversion of the source would write, and how far they are off.

Quantization is deterministic: rows are made again of the source and compared byte by byte. Other
tools start from rounded weights, so rows made of those are tried too. What is like none of these is
measured, and so is what this type makes of the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import lcm
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare.rows import (
    RUN_ROWS,
    PairedRows,
    Sample,
    cut_rows,
    measure_rows,
    read_rows,
    row_multiple,
)
from weightcast.converters.engine.tasks import slab_buffer
from weightcast.converters.files import page_cache
from weightcast.converters.graph.read import Slab, slab_bytes
from weightcast.converters.graph.view import View
from weightcast.converters.plan.budget import MAX_PIECES_BYTES, PIECE_BYTES
from weightcast.converters.plan.plan import whole
from weightcast.converters.report.collector import Collector, MatrixErrors
from weightcast.converters.verify.match import Held
from weightcast.converters.verify.rows import Piece, compare, packing_of
from weightcast.errors import CheckpointError
from weightcast.quant.metrics import Baseline, Errors

# Rows that are this much worse than those that their type makes are told.
_OUTLIER: Final = 4.0
Key = tuple[int, int]  # a tensor, and a matrix of it


@dataclass
class Tally:
    """What was found of one matrix.

    `origins` counts rows by what they were made of, None for rows like nothing that was tried;
    `different` bytes of those differ from the likest; `first` is the file offset of the first.
    """

    nbytes: int = 0
    different: int = 0
    first: int | None = None
    origins: Counter[str | None] = field(default_factory=Counter)
    outliers: list[int] = field(default_factory=list)
    failure: str | None = None
    made: MatrixErrors = field(default_factory=lambda: MatrixErrors(_nothing()))
    expected: MatrixErrors = field(default_factory=lambda: MatrixErrors(_nothing()))

    @property
    def is_explained(self) -> bool:
        """Whether all rows are, byte for byte, what some conversion makes."""
        return self.failure is None and not self.origins[None]


def _nothing() -> Errors:
    from weightcast.quant.metrics import MOMENTS, of_moments

    return of_moments(np.zeros(0, MOMENTS), 0).total()


def read_bytes(held: Sequence[Held], sample: Sample) -> int:
    """How much `check_content` reads, and tells of as progress."""
    return sum(rows.read_bytes for _, rows in _work(held, sample))


def _work(held: Sequence[Held], sample: Sample) -> Iterator[tuple[Key, PairedRows]]:
    for number, tensor in enumerate(held):
        for matrix, (source, artifact) in enumerate(tensor.views):
            for rows in cut_rows(source, artifact, sample):
                yield (number, matrix), rows


def check_content(
    held: Sequence[Held],
    importance: Mapping[str, NDArray[np.float32]],
    *,
    jobs: int,
    sample: Sample = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[Key, Tally]:
    """Compare tensors with what they ought to hold; `importance` is by name, [matrices, in].

    `sample` is `chosen_rows`'s. Holds two slabs of each side and a few pieces. Raises
    CheckpointError if the source cannot be read or converted.
    """
    work = list(_work(held, sample))
    is_large = page_cache.outgrows(sum(rows.read_bytes for _, rows in work))

    def finish(number: int) -> None:
        for piece in waiting[number % 2]:
            piece.result()
        if is_large and number >= 0:  # packed rows were read again until now
            work[number][1].forget()

    check = _Check(held, importance, jobs, on_progress)
    sizes = [
        max(
            (slab_bytes(view, w.out1 - w.out0) for _, w in work for view in (getattr(w, side),)),
            default=0,
        )
        for side in ("source", "output")
    ]
    slots = [[slab_buffer(size) for size in sizes] for _ in range(2)]
    waiting: list[list[Future[None]]] = [[], []]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, (key, rows) in enumerate(work):
                finish(number - 2)
                source, artifact = (memoryview(buffer) for buffer in slots[number % 2])
                waiting[number % 2] = check.hand_out(pool, key, rows, source, artifact)
            for number in range(len(work) - 2, len(work)):
                finish(number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return check.finished()


class _Check:
    def __init__(
        self,
        held: Sequence[Held],
        importance: Mapping[str, NDArray[np.float32]],
        jobs: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._held = held
        self._importance = importance
        self._jobs = jobs
        self._on_progress = on_progress
        self._lock = Lock()
        self._tallies: dict[Key, Tally] = {}
        self._made: Collector[Key] = Collector()
        self._expected: Collector[Key] = Collector()

    def hand_out(
        self,
        pool: ThreadPoolExecutor,
        key: Key,
        rows: PairedRows,
        source: memoryview,
        artifact: memoryview,
    ) -> list[Future[None]]:
        """Read rows of both and give them to workers in pieces."""
        tally = self._tallies.setdefault(key, Tally())
        of_source = read_rows(rows.source, rows.out0, rows.out1, source)
        try:
            found = read_rows(rows.output, rows.out0, rows.out1, artifact)
        except CheckpointError as problem:
            tally.failure = str(problem)
            return []
        step = self._rows_per_piece(of_source, rows.output)
        count = of_source.rows
        futures = []
        for row0 in range(0, count, step):
            piece = Piece(rows, of_source, found, row0, min(row0 + step, count))
            try:
                futures.append(pool.submit(self._check, key, piece))
            except RuntimeError as problem:  # a limit of the system on threads
                raise CheckpointError(
                    f"cannot start {self._jobs} workers ({problem}); use fewer --jobs"
                ) from None
        return futures

    def _rows_per_piece(self, slab: Slab, artifact: View) -> int:
        packing = packing_of(artifact.array)
        multiple = 1 if packing is None else lcm(packing.row_multiple(), row_multiple(artifact))
        limit = min(PIECE_BYTES, MAX_PIECES_BYTES // self._jobs) // (4 * slab.view.shape[1])
        rows = min(max(1, limit), max(-(-slab.rows // self._jobs), RUN_ROWS))
        return whole(rows, multiple)

    def _check(self, key: Key, piece: Piece) -> None:
        """Compare a piece with what it can have been made of, and measure it."""
        comparison = compare(piece, self._weights(key))
        made = measure_rows(piece.source, piece.artifact, piece.row0, piece.row1, Baseline.STORED)
        expected = made if comparison.expected is None else comparison.expected
        position = piece.rows.row0 + piece.row0
        self._made.add(key, position, made)
        self._expected.add(key, position, expected)
        with self._lock:
            tally = self._tallies[key]
            tally.nbytes += comparison.nbytes
            tally.origins[comparison.origin] += piece.row1 - piece.row0
            if comparison.origin is None:
                tally.different += comparison.different
                tally.outliers += [piece.start + int(n) for n in _outliers(made, expected)]
                if comparison.first is not None:
                    tally.first = min(tally.first or comparison.first, comparison.first)
        count = piece.source.rows
        total = piece.rows.read_bytes
        self._on_progress(total * piece.row1 // count - total * piece.row0 // count)

    def _weights(self, key: Key) -> NDArray[np.float32] | None:
        held = self._held[key[0]]
        rows = self._importance.get(held.name)
        return None if rows is None else rows[min(key[1], len(rows) - 1)]

    def finished(self) -> dict[Key, Tally]:
        """What was found of all matrices."""
        failed = {key for key, tally in self._tallies.items() if tally.failure is not None}
        made, expected = self._made.finished(), self._expected.finished()
        for key, tally in self._tallies.items():
            tally.outliers.sort()
            if key not in failed:
                tally.made, tally.expected = made[key], expected[key]
        return self._tallies


def _outliers(made: Errors, expected: Errors) -> NDArray[np.int64]:
    """Rows whose error is out of all proportion to that of their type."""
    with np.errstate(all="ignore"):
        usual = np.maximum(expected.relative_rms, np.median(expected.relative_rms))
        found = made.relative_rms > np.maximum(_OUTLIER * usual, 1e-6)
    return np.flatnonzero(found | ~np.isfinite(made.relative_rms))
