"""Execution of a plan: one reader, several workers, positioned writes, nothing visible until done.

The main thread reads slabs front to back into two buffers; workers turn pieces of a slab into
output bytes and write them where the plan says. The bytes do not depend on the number of workers.
Memory is two slabs and a few pieces, whatever the size of the model.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import numpy as np

from weightcast.converters.output_files import OutputFiles
from weightcast.converters.plan import Destination, Plan, WorkItem
from weightcast.converters.slabs import Slab, named, read_slab
from weightcast.quant.errors import CheckpointError
from weightcast.quant.library import (
    BlockCounts,
    RangeError,
    SourceValueError,
    quantize_matrix,
)
from weightcast.quant.types import BF16, F32

PIECE_BYTES: Final = 8 << 20
# Pieces of all workers together, so that memory does not grow with the number of cores.
MAX_PIECES_BYTES: Final = 64 << 20
# More would only wait for each other.
MAX_WORKERS: Final = 512
# The kernels work on 64 columns of a source at a time: one cache line of int8.
_ROW_STEP: Final = 64

Counts = dict[tuple[int, str], BlockCounts]


@dataclass(slots=True)
class _Loan:
    """A slab buffer on loan to the pieces of one item; the last one gives it back."""

    buffer: mmap.mmap
    owner: SimpleQueue[mmap.mmap]
    pieces: int
    lock: threading.Lock

    def finish(self) -> None:
        with self.lock:
            self.pieces -= 1
            last = self.pieces == 0
        if last:
            self.owner.put(self.buffer)


def _buffer(nbytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE))
    # Columns are read at strides of many pages, which huge pages make cheap.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them is only slower
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def default_workers() -> int:
    """One more than there are cores: one is usually waiting for its turn to write."""
    return min(len(os.sched_getaffinity(0)) + 1, MAX_WORKERS)


def memory_estimate(plan: Plan, workers: int) -> int:
    """Bytes that buffers will take, beside the interpreter's own 100 MB or so."""
    return 2 * plan.slab_bytes + workers * _piece_bytes(workers)


def _piece_bytes(workers: int) -> int:
    return min(PIECE_BYTES, MAX_PIECES_BYTES // workers)


def run(
    plan: Plan, workers: int, on_progress: Callable[[int], None] = lambda nbytes: None
) -> Counts:
    """Write all outputs of a plan; `on_progress` gets the source bytes that were finished.

    Returns how Q8_0 blocks came about, per output and tensor. Raises CheckpointError; no output
    appears then and an earlier one under the same name stays as it was, unless the renaming of
    several outputs failed at the last step: the error names those that were complete before.
    """
    with OutputFiles(plan.outputs) as files:
        counts = _Run(plan, workers, files, on_progress).run()
        files.commit()
    return counts


class _Run:
    def __init__(
        self, plan: Plan, workers: int, files: OutputFiles, on_progress: Callable[[int], None]
    ) -> None:
        self._plan = plan
        self._workers = workers
        self._files = files
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._slabs: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._pieces: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._piece_bytes = _piece_bytes(workers)

    def run(self) -> Counts:
        for _ in range(2):
            self._slabs.put(_buffer(self._plan.slab_bytes))
        for _ in range(self._workers):
            self._pieces.put(_buffer(self._piece_bytes))
        counts: Counts = defaultdict(BlockCounts)
        futures: list[Future[Counts]] = []
        pool = ThreadPoolExecutor(self._workers)
        try:
            for item in self._plan.items:
                futures += self._start(item, pool)
                if self._stop.is_set():
                    break
                futures = self._collect(futures, counts, wait=False)
            self._collect(futures, counts, wait=True)
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return dict(counts)

    def _collect(
        self, futures: list[Future[Counts]], counts: Counts, *, wait: bool
    ) -> list[Future[Counts]]:
        pending = []
        for future in futures:
            if not wait and not future.done():
                pending.append(future)
                continue
            for key, value in future.result().items():
                counts[key] += value
        return pending

    def _start(self, item: WorkItem, pool: ThreadPoolExecutor) -> list[Future[Counts]]:
        """Read a slab and hand its pieces to the workers."""
        buffer = self._slabs.get()
        try:
            slab = read_slab(item.view, item.out0, item.out1, memoryview(buffer))
        except OSError as problem:
            raise CheckpointError(
                f"{item.view.array.path}: cannot be read: {problem.strerror}"
            ) from None
        step = self._rows_per_piece(item)
        starts = range(0, slab.rows, step)
        loan = _Loan(buffer, self._slabs, len(starts), threading.Lock())
        share = item.nbytes // len(starts)
        rest = item.nbytes - share * (len(starts) - 1)
        futures = []
        for row0 in starts:
            row1 = min(row0 + step, slab.rows)
            nbytes = share if row0 else rest
            try:
                futures.append(pool.submit(self._piece, item, slab, row0, row1, loan, nbytes))
            except RuntimeError as problem:  # a limit of the system on threads
                raise CheckpointError(
                    f"cannot start {self._workers} workers ({problem}); use fewer --jobs"
                ) from None
        return futures

    def _rows_per_piece(self, item: WorkItem) -> int:
        n_in = item.view.shape[1]
        row_bytes = max(d.type.row_bytes(n_in) for d in item.destinations)
        if item.view.array.is_blocked:
            row_bytes = max(row_bytes, 4 * n_in)  # dequantized to float32 on the way
        # A small slab is shared out too: only two are in memory.
        share = -(-(item.out1 - item.out0) // self._workers)
        rows = min(max(1, self._piece_bytes // row_bytes), max(share, _ROW_STEP))
        return rows if rows < _ROW_STEP else rows // _ROW_STEP * _ROW_STEP

    def _piece(
        self, item: WorkItem, slab: Slab, row0: int, row1: int, loan: _Loan, nbytes: int
    ) -> Counts:
        try:
            counts: Counts = {}
            for destination in item.destinations:
                if self._stop.is_set():
                    return {}
                counts[destination.output, destination.tensor] = self._convert(
                    item, slab, row0, row1, destination
                )
            self._on_progress(nbytes)
            return counts
        except BaseException:
            self._stop.set()
            raise
        finally:
            loan.finish()

    def _convert(
        self, item: WorkItem, slab: Slab, row0: int, row1: int, destination: Destination
    ) -> BlockCounts:
        quant_type = destination.type
        row_bytes = quant_type.row_bytes(item.view.shape[1])
        offset = destination.offset + (item.out0 + row0) * row_bytes
        same_blocks = item.view.array.is_blocked and item.view.array.dtype == quant_type.name
        if destination.is_copied or same_blocks:
            self._files.write(destination, slab.stored_rows(row0, row1).data, offset)
            return BlockCounts()
        nbytes = (row1 - row0) * row_bytes
        buffer = self._pieces.get()
        try:
            # One row can be longer than a piece.
            target = buffer if nbytes <= len(buffer) else bytearray(nbytes)
            rows = np.frombuffer(target, np.uint8, nbytes)
            counts = quantize_matrix(
                slab.matrix(row0, row1), quant_type, rows, destination.importance
            )
            self._files.write(destination, rows.data, offset)
            return counts
        except SourceValueError as error:
            name = destination.tensor
            if destination.expert is not None:
                name += f", expert {destination.expert}"
            remedy = self._remedy(destination) if isinstance(error, RangeError) else ""
            raise named(error, name, item.view, item.out0 + row0, remedy) from None
        finally:
            self._pieces.put(buffer)

    def _remedy(self, destination: Destination) -> str:
        """What to do about values that are too large for a type."""
        wider = F32 if destination.type == BF16 else BF16
        if self._plan.outputs[destination.output].request.kind == "gguf":
            return f"; --tensor-type '{destination.tensor}={wider.name}' gives it a wider range"
        return f"; write a directory in {wider.name.lower()}"
