"""Execute a plan: one reader, several workers, positioned writes, nothing visible until done.

The main thread reads slabs front to back into two buffers. Workers turn tasks, which are rows of a
slab, into output bytes, each through a backend of its own, and write them where the plan says. The
bytes depend neither on the number of workers nor on the device. Memory is two slabs and a few
tasks, whatever the size of the model; on devices it is page-locked, so that several workers read,
copy, compute and write at once.
"""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from weightcast.converters.engine.buffers import BufferSizes, buffer_sizes, slab_buffer
from weightcast.converters.engine.panels import PanelPool, rows_per_panel
from weightcast.converters.engine.progress import Meter
from weightcast.converters.engine.rows import RowConverter
from weightcast.converters.engine.stream import Stream
from weightcast.converters.engine.tasks import ItemResult, Task, TaskResult, Worker
from weightcast.converters.files import ReleaseStack
from weightcast.converters.graph.read import Slab, forget_rows, read_slab
from weightcast.converters.output import FinishedRows, MatrixRecord, OutputFiles, remainder, rows_of
from weightcast.converters.plan import (
    Plan,
    Tiling,
    Workers,
    WorkItem,
    is_measured,
    is_straight_copy,
)
from weightcast.converters.report.collector import Measuring
from weightcast.errors import CheckpointError
from weightcast.quant.backend import Backend, CpuBackend
from weightcast.quant.cpu.library import BlockCounts

Counts = dict[tuple[int, str], BlockCounts]


def run(
    plan: Plan,
    workers: Workers,
    meter: Meter,
    measuring: Measuring | None = None,
    *,
    resume: bool = True,
    on_complete: Callable[[], Mapping[int, Mapping[Path, Path]]] = dict,
) -> Counts:
    """Write all outputs of a plan; `meter` counts bytes of kept work, of the source, of outputs.

    `on_complete` is called when all files are complete and on the disk, before they get their
    names. If it raises, they are left to another run. Where it says that files wait, by their
    names, beside outputs by number, these get their names too.

    With `measuring`, what is written is compared with its source at once. What an interrupted run
    of the same plan had finished is kept, unless `resume` is off.

    Returns how Q8_0 blocks and int8 groups came about, per output and tensor. Raises
    CheckpointError; then no output appears and an earlier one under the same name stays as it was,
    unless the renaming of several outputs failed at the last step: the error names those that were
    complete before. Finished work is kept for a later run unless the source itself is invalid.
    """
    with OutputFiles(plan, resume=resume) as files:
        left = remainder(plan, files, measuring, partial(meter.start, "check"))
        files.forget_earlier()
        on_progress = meter.start("convert", plan.read_bytes, left.read_bytes)
        counts: Counts = defaultdict(BlockCounts, left.counts)
        rows = RowConverter(replace(plan, items=left.items), files, measuring)
        for key, made in _execute(rows, workers, on_progress).items():
            counts[key] += made
        plan.inputs.check()
        flushed = sum(file.size for output in plan.outputs for file in output.files)
        files.flush(meter.start("flush", flushed))
        files.commit(on_complete())
    return dict(counts)


def _execute(rows: RowConverter, workers: Workers, on_progress: Callable[[int], None]) -> Counts:
    """Stream the slabs of a plan through workers. Returns the origins of blocks, as `run` does."""
    plan = rows.plan
    sizes = buffer_sizes(plan, workers)
    with ReleaseStack() as releases:
        slabs = [_open_buffer(sizes.slab, workers, releases) for _ in range(2)]
        panels = PanelPool(sizes.tiling, rows.files, [slab_buffer(n) for n in sizes.panels])
        crew = _open_workers(sizes, workers, releases)
        stream = Stream[mmap.mmap, Task, None](slabs)
        reader = _Reader(
            sizes.tiling, panels, plan.outgrows_cache, copies_straight=rows.measuring is None
        )
        work = _Work(stream, rows, on_progress)
        stream.run(
            plan.items,
            reader.read,
            [partial(work.convert, worker) for worker in crew],
            skip=work.skip,
        )
    return work.counts


def _open_workers(sizes: BufferSizes, workers: Workers, releases: ReleaseStack) -> list[Worker]:
    """Make the workers' buffers and open their backends, on the devices in turn."""
    buffers = [_open_buffer(sizes.rows, workers, releases) for _ in range(workers.count)]
    opened = []
    for number, buffer in enumerate(buffers):
        opened.append(Worker(_open_backend(number, sizes, workers), buffer))
        releases.add(opened[-1].close)
    return opened


def _open_backend(number: int, sizes: BufferSizes, workers: Workers) -> Backend:
    devices = workers.devices.cuda
    if not devices:
        return CpuBackend()
    return devices[number % len(devices)].open_backend(sizes.task.source, sizes.task.output)


def _open_buffer(nbytes: int, workers: Workers, releases: ReleaseStack) -> mmap.mmap:
    """Make a buffer, page-locked if a device is to read or write it."""
    buffer = slab_buffer(nbytes)
    if workers.devices.cuda:
        releases.add(workers.devices.cuda[0].pin(buffer).unpin)
    return buffer


@dataclass(frozen=True, slots=True)
class _Reader:
    """Read slabs, and cut them into tasks; `forgets` lets the page cache forget what was read."""

    tiling: Tiling
    panels: PanelPool
    forgets: bool
    copies_straight: bool

    def read(self, item: WorkItem, buffer: mmap.mmap) -> Iterator[Task]:
        """Read a slab into a buffer and yield its tasks; waits for the panels that they share.

        What goes from file to file as it is, workers read.
        """
        slab = None if self.copies_straight and is_straight_copy(item) else self._read(item, buffer)
        rows = item.out1 - item.out0
        step, panel_rows = self.tiling.rows_of(item), rows_per_panel(self.tiling, item)
        starts = range(0, rows, step)
        result = ItemResult(len(starts))
        share = item.read_bytes // len(starts)
        rest = item.read_bytes - share * (len(starts) - 1)
        for row0 in starts:
            if row0 % panel_rows == 0:
                end = min(row0 + panel_rows, rows)
                panel = self.panels.open(item, item.out0 + row0, item.out0 + end)
            row1 = min(row0 + step, rows)
            yield Task(item, slab, row0, row1, share if row0 else rest, panel, result)

    def _read(self, item: WorkItem, buffer: mmap.mmap) -> Slab:
        try:
            slab = read_slab(item.view, item.out0, item.out1, memoryview(buffer))
        except OSError as problem:
            raise CheckpointError(f"{item.view.path}: cannot be read: {problem.strerror}") from None
        if self.forgets:
            forget_rows(item.view, item.out0, item.out1)
        return slab


class _Work:
    """Convert tasks, and note which items are finished; `counts` adds up the origins of blocks."""

    def __init__(
        self,
        stream: Stream[mmap.mmap, Task, None],
        rows: RowConverter,
        on_progress: Callable[[int], None],
    ) -> None:
        self._stream = stream
        self._rows = rows
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self.counts: Counts = defaultdict(BlockCounts)

    def convert(self, worker: Worker, task: Task) -> None:
        """Make the rows of a task for all of its destinations, and write them."""
        with worker.busy:
            results: list[TaskResult] = []
            with task.panel:
                for destination in task.item.destinations:
                    if self._stream.is_stopping:
                        task.panel.give_up()
                        return
                    results.append(self._rows.convert(worker, task, destination))
            if task.slab is None and self._rows.plan.outgrows_cache:
                forget_rows(task.item.view, task.out0, task.out1)
            for number, write in task.panel.take_writes():
                results[number].writes.append(write)
            if task.result.add(results):
                self._finish(task.item, task.result)
            self._on_progress(task.read_bytes)

    def skip(self, task: Task) -> None:
        """Leave a task undone, and so its panel."""
        with task.panel:
            task.panel.give_up()

    def _finish(self, item: WorkItem, result: ItemResult) -> None:
        """Note in the journals that all rows of an item are written."""
        files, measuring = self._rows.files, self._rows.measuring
        for number, destination in enumerate(item.destinations):
            counts = result.counts[number]
            with self._lock:
                self.counts[destination.output, destination.tensor] += counts
            rows = rows_of(item, destination)
            files.note_rows(
                destination.output, FinishedRows(rows, counts, tuple(result.writes[number]))
            )
            if measuring is None or not is_measured(item, destination):
                continue
            errors = measuring.matrix(destination, item.view.shape[0])
            if errors is not None:
                baseline = measuring.baseline_of(destination).name
                record = MatrixRecord(rows.tensor, rows.expert, baseline, errors.values())
                files.note_errors(destination.output, record)
