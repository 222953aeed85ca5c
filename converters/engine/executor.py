"""Execution of a plan: one reader, several workers, positioned writes, nothing visible until done.

The main thread reads slabs front to back into two buffers; workers turn pieces of a slab into
output bytes, each through a lane of its own, and write them where the plan says. The bytes depend
neither on the number of workers nor on the device. Memory is two slabs and a few pieces, whatever
the size of the model; on devices it is page-locked, so that several workers read, copy, compute and
write at once.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np

from weightcast.converters.engine.panels import (
    Strips,
    rows_per_strip,
    staging_buffers,
    write_segment,
)
from weightcast.converters.engine.tasks import Loan, Made, Piece, Worker, slab_buffer
from weightcast.converters.files.interrupts import Held, signals_held
from weightcast.converters.graph.read import forget_rows, named, read_slab
from weightcast.converters.output.files import OutputFiles
from weightcast.converters.output.journal import Finished, MatrixRecord, Write
from weightcast.converters.output.resume import remainder, rows_of
from weightcast.converters.plan import budget as memory
from weightcast.converters.plan.plan import Destination, Plan, WorkItem
from weightcast.converters.plan.tiling import (
    Cut,
    PieceBytes,
    is_measured,
    keeps_bytes,
    largest_pieces,
)
from weightcast.converters.report.collector import Measuring
from weightcast.converters.targets.target import Packed
from weightcast.errors import CheckpointError
from weightcast.quant.backend import Lane, ProcessorLane, as_matrix
from weightcast.quant.cpu.groups import InexactScaleError, NotCarriedError
from weightcast.quant.cpu.library import BlockCounts, RangeError, SourceValueError
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.devices import PROCESSOR, Devices
from weightcast.quant.types import BF16, F32, TYPES

# One copies in, one computes, one copies out, one writes.
WORKERS_PER_DEVICE: Final = 4
# More would only wait for each other.
MAX_WORKERS: Final = 512
Counts = dict[tuple[int, str], BlockCounts]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of buffers: here, beside the interpreter's own 100 MB or so, and on each device.

    What is `staged` comes on top of `host`, and is never page-locked.
    """

    host: int
    device: int
    staged: int = 0


def default_workers(devices: Devices = PROCESSOR) -> int:
    """One more than there are cores (one usually waits for its turn to write); 4 for a device."""
    if devices.cuda:
        return min(len(devices.cuda) * WORKERS_PER_DEVICE, MAX_WORKERS)
    return min(len(os.sched_getaffinity(0)) + 1, MAX_WORKERS)


def memory_estimate(plan: Plan, workers: int, devices: Devices = PROCESSOR) -> Memory:
    """What buffers will take; on devices those of `host` are page-locked."""
    cut = _cut(plan, workers, devices)
    host = 2 * plan.slab_bytes + workers * _buffer_bytes(plan, cut, devices)
    staged = sum(staging_buffers(plan.items, cut))
    if not devices.cuda:
        return Memory(host, 0, staged)
    sizes = largest_pieces(plan.items, cut)
    lanes = -(-workers // len(devices.cuda))
    return Memory(host, lanes * (sizes.source + sizes.floats + sizes.output), staged)


def _cut(plan: Plan, workers: int, devices: Devices) -> Cut:
    most, budget = memory.PIECE_BYTES, plan.budget.pieces
    if devices.cuda:
        most, budget = memory.DEVICE_PIECE_BYTES, plan.budget.device_pieces
    return Cut(workers, min(most, budget // workers), plan.budget.staged)


def _buffer_bytes(plan: Plan, cut: Cut, devices: Devices) -> int:
    """Size of a worker's buffer: what is page-locked is no larger than the largest piece."""
    return largest_pieces(plan.items, cut).output if devices.cuda else cut.limit_bytes


def run(
    plan: Plan,
    workers: int,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    devices: Devices = PROCESSOR,
    measuring: Measuring | None = None,
    *,
    resume: bool = True,
    on_complete: Callable[[], Mapping[int, Mapping[Path, Path]]] = dict,
) -> Counts:
    """Write all outputs of a plan; `on_progress` gets the source bytes that were finished.

    `on_complete` is called when all files are complete and on the disk, before they get their
    names; what it raises leaves them to another run, and what it gives gets names with them:
    where files wait, by their names, beside outputs by number.

    With `measuring`, what is written is compared with its source at once. What an interrupted run
    of the same plan had finished is kept, unless `resume` is off.

    Returns how Q8_0 blocks and int8 groups came about, per output and tensor. Raises
    CheckpointError; no output appears then and an earlier one under the same name stays as it was,
    unless the renaming of several outputs failed at the last step: the error names those that were
    complete before. What is finished is kept for another run, unless it is the source that is
    wrong.
    """
    with OutputFiles(plan, resume=resume) as files:
        left = remainder(plan, files, measuring)
        files.forget_earlier()
        on_progress(left.read_bytes)
        rest = replace(plan, items=left.items)
        counts = _finish_rest(rest, workers, devices, files, on_progress, measuring, left.counts)
        plan.inputs.check()
        files.flush()
        files.commit(on_complete())
    return counts


def _finish_rest(
    plan: Plan,
    workers: int,
    devices: Devices,
    files: OutputFiles,
    on_progress: Callable[[int], None],
    measuring: Measuring | None,
    counts: Mapping[tuple[int, str], BlockCounts],
) -> Counts:
    """Do the work of a plan, and give its memory back; adds to what was counted before."""
    with Held() as held:
        run = _Run(plan, workers, devices, files, held, on_progress, measuring)
        run.counts.update(counts)
        run.run()
    return dict(run.counts)


class _Run:
    def __init__(
        self,
        plan: Plan,
        workers: int,
        devices: Devices,
        files: OutputFiles,
        held: Held,
        on_progress: Callable[[int], None],
        measuring: Measuring | None,
    ) -> None:
        self._plan = plan
        self._measuring = measuring
        self._devices = devices
        self._files = files
        self._held = held
        self._on_progress = on_progress
        self._cut = _cut(plan, workers, devices)
        self._strips = Strips(self._cut, files)
        self.counts: Counts = defaultdict(BlockCounts)
        self._counts_lock = threading.Lock()
        self._errors: list[tuple[int, BaseException]] = []
        self._stop = threading.Event()
        self._slabs: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._finished: SimpleQueue[int] = SimpleQueue()

    def run(self) -> None:
        # Between the main thread and the others there are only simple queues: an interrupt in the
        # middle of a pool's own locks could leave them locked.
        threads = [threading.Thread(target=self._work, args=(w,)) for w in self._prepare()]
        try:
            self._start(threads)
            n_pieces = 0
            for item in self._plan.items:
                n_pieces += self._hand_out(item, n_pieces)
                if self._stop.is_set():
                    break
            for _ in range(n_pieces):
                self._finished.get()
        finally:
            self._stop.set()
            with signals_held():  # files, lanes and buffers are in use until then
                for _ in threads:
                    self._pieces.put(None)
                for thread in threads:
                    if thread.is_alive():
                        thread.join()
        if self._errors:
            raise min(self._errors, key=lambda numbered: numbered[0])[1]

    def _start(self, threads: Sequence[threading.Thread]) -> None:
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as problem:  # a limit of the system on threads
            raise CheckpointError(
                f"cannot start {len(threads)} workers ({problem}); use fewer --jobs"
            ) from None

    def _prepare(self) -> list[Worker]:
        """Make the buffers and open the lanes, of the devices in turn."""
        for _ in range(2):
            self._slabs.put(self._pinned(self._plan.slab_bytes))
        for nbytes in staging_buffers(self._plan.items, self._cut):
            self._strips.add(slab_buffer(nbytes))
        buffer_bytes = _buffer_bytes(self._plan, self._cut, self._devices)
        buffers = [self._pinned(buffer_bytes) for _ in range(self._cut.workers)]
        sizes = largest_pieces(self._plan.items, self._cut)
        workers = []
        for number, buffer in enumerate(buffers):
            workers.append(Worker(self._open_lane(number, sizes), buffer))
            self._held.add(workers[-1].close)
        return workers

    def _pinned(self, nbytes: int) -> mmap.mmap:
        """Make a buffer, page-locked if a device is to read or write it."""
        buffer = slab_buffer(nbytes)
        if self._devices.cuda:
            self._held.add(self._devices.cuda[0].pin(buffer).unpin)
        return buffer

    def _open_lane(self, number: int, sizes: PieceBytes) -> Lane:
        if not self._devices.cuda:
            return ProcessorLane()
        device = self._devices.cuda[number % len(self._devices.cuda)]
        return device.lane(sizes.source, sizes.output)

    def _hand_out(self, item: WorkItem, number: int) -> int:
        """Read a slab and give it to the workers, in pieces from `number` on; returns how many."""
        buffer = self._slabs.get()
        try:
            slab = read_slab(item.view, item.out0, item.out1, memoryview(buffer))
        except OSError as problem:
            raise CheckpointError(
                f"{item.view.array.path}: cannot be read: {problem.strerror}"
            ) from None
        if self._plan.outgrows_cache:
            forget_rows(item.view, item.out0, item.out1)
        step, strip_rows = self._cut.rows_per_piece(item), rows_per_strip(self._cut, item)
        starts = range(0, slab.rows, step)
        loan = Loan(buffer, self._slabs, len(starts), Made(len(starts)))
        share = item.read_bytes // len(starts)
        rest = item.read_bytes - share * (len(starts) - 1)
        for index, row0 in enumerate(starts):
            row1 = min(row0 + step, slab.rows)
            if row0 % strip_rows == 0:
                end = min(row0 + strip_rows, slab.rows)
                pieces = len(range(row0, end, step))
                strip = self._strips.open(item, item.out0 + row0, item.out0 + end, pieces)
            nbytes = share if row0 else rest
            self._pieces.put(Piece(number + index, item, slab, row0, row1, nbytes, loan, strip))
        return len(starts)

    def _work(self, worker: Worker) -> None:
        """Make pieces until there are no more."""
        while (piece := self._pieces.get()) is not None:
            try:
                with worker.busy:
                    self._make(worker, piece)
            except BaseException as error:
                self._errors.append((piece.number, error))
                self._stop.set()
            finally:
                piece.loan.finish()
                self._finished.put(piece.number)

    def _make(self, worker: Worker, piece: Piece) -> None:
        made: list[tuple[BlockCounts, list[Write]]] = []
        with piece.strip:
            for destination in piece.item.destinations:
                if self._stop.is_set():
                    piece.strip.give_up()
                    return
                counts, writes = self._convert(worker, piece, destination)
                with self._counts_lock:
                    self.counts[destination.output, destination.tensor] += counts
                made.append((counts, writes))
        for number, write in piece.strip.take_writes():
            made[number][1].append(write)
        if piece.loan.made.add(made):
            self._note(piece.item, piece.loan.made)
        self._on_progress(piece.nbytes)

    def _note(self, item: WorkItem, made: Made) -> None:
        """Note in the journals that an item is finished."""
        for number, destination in enumerate(item.destinations):
            rows = rows_of(item, destination)
            done = Finished(rows, made.counts[number], tuple(made.writes[number]))
            self._files.note_rows(destination.output, done)
            if self._measuring is None or not is_measured(item, destination):
                continue
            errors = self._measuring.matrix(destination, item.view.shape[0])
            if errors is not None:
                baseline = self._measuring.baseline_of(destination).name
                record = MatrixRecord(rows.tensor, rows.expert, baseline, errors.values())
                self._files.note_errors(destination.output, record)

    def _convert(
        self, worker: Worker, piece: Piece, destination: Destination
    ) -> tuple[BlockCounts, list[Write]]:
        item, slab, row0, row1 = piece.item, piece.slab, piece.row0, piece.row1
        if destination.packed is not None:
            return self._pack(worker, piece, destination, destination.packed)
        quant_type = destination.type
        row_bytes = quant_type.row_bytes(item.view.shape[1])
        offset = destination.offset + (item.out0 + row0) * row_bytes
        if keeps_bytes(item, destination):
            stored = slab.stored_rows(row0, row1)
            write = self._files.write(destination, stored.data, offset)
            if self._measuring is not None and is_measured(item, destination):
                found = measure_matrix(
                    as_matrix(slab.piece(row0, row1)),
                    TYPES[item.view.dtype],
                    stored,
                    destination.importance,
                    self._measuring.baseline_of(destination),
                )
                self._measuring.add(destination, item.out0 + row0, found)
            return BlockCounts(), [write]
        nbytes = (row1 - row0) * row_bytes
        # One row can be longer than a piece; buffers for devices are made for the longest.
        target = worker.buffer if nbytes <= len(worker.buffer) else bytearray(nbytes)
        rows = np.frombuffer(target, np.uint8, nbytes)
        what = slab.piece(row0, row1), quant_type, rows, destination.importance
        try:
            if self._measuring is None:
                counts = worker.lane.quantize(*what)
            else:
                baseline = self._measuring.baseline_of(destination)
                counts, found = worker.lane.quantize_and_measure(*what, baseline)
                self._measuring.add(destination, item.out0 + row0, found)
        except SourceValueError as error:
            raise self._explained(error, piece, destination) from None
        return counts, [self._files.write(destination, rows.data, offset)]

    def _pack(
        self, worker: Worker, piece: Piece, destination: Destination, packed: Packed
    ) -> tuple[BlockCounts, list[Write]]:
        """Make rows of a packed matrix, and write each part's bytes where they belong."""
        rows = piece.slab.piece(piece.row0, piece.row1)
        n_out, row0 = piece.item.view.shape[0], piece.item.out0 + piece.row0
        room = piece.strip.room(destination)
        measuring = self._measuring
        baseline = None if measuring is None else measuring.baseline_of(destination)
        what = rows, n_out, row0, destination.importance, worker.lane, room.place, baseline
        writes = []
        try:
            made = packed.packing.pack(*what)
            for segment in made.segments:
                if not room.holds(segment.suffix):  # else written with all of its strip
                    writes.append(write_segment(self._files, destination, segment))
        except SourceValueError as error:
            raise self._explained(error, piece, destination) from None
        if measuring is not None and made.errors is not None:
            measuring.add(destination, row0, made.errors)
        return made.counts, writes

    def _explained(
        self, error: SourceValueError, piece: Piece, destination: Destination
    ) -> CheckpointError:
        """The error with the tensor's name, its place there, and what to do about it."""
        name = destination.tensor
        if destination.expert is not None:
            name += f", expert {destination.expert}"
        remedy = self._remedy(destination) if isinstance(error, RangeError) else ""
        if isinstance(error, InexactScaleError):
            remedy = "; --allow-requantize quantizes what cannot be carried"
        if isinstance(error, NotCarriedError):
            remedy = "; the memory of this machine may be faulty: convert again"
        found = named(error, name, piece.item.view, piece.item.out0 + piece.row0, remedy)
        # Not the source's fault: what is finished is kept.
        return CheckpointError(str(found)) if isinstance(error, NotCarriedError) else found

    def _remedy(self, destination: Destination) -> str:
        """What to do about values that are too large for a type."""
        wider = F32 if destination.type == BF16 else BF16
        if self._plan.outputs[destination.output].request.kind == "gguf":
            return f"; --tensor-type '{destination.tensor}={wider.name}' gives it a wider range"
        return f"; write a directory in {wider.name.lower()}"
