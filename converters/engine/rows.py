"""Convert the rows of a task for one destination, and write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.engine.factors import FactorCache
from weightcast.converters.engine.panels import write_segment
from weightcast.converters.engine.tasks import Task, TaskResult, Worker
from weightcast.converters.graph.read import Slab, named, read_run
from weightcast.converters.output import OutputFiles
from weightcast.converters.plan import Destination, Plan, WorkItem, is_measured, keeps_bytes
from weightcast.converters.report.collector import Measuring
from weightcast.converters.targets.target import Packed
from weightcast.errors import CheckpointError
from weightcast.quant.backend import as_matrix
from weightcast.quant.cpu.groups import InexactScaleError, NotCarriedError
from weightcast.quant.cpu.library import BlockCounts, RangeError, SourceValueError
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.types import BF16, F32, TYPES
from weightcast.text import option

# Copied at once: larger pieces leave the caches of a core between reading and writing.
_CHUNK_BYTES: Final = 1 << 20
_LEAST_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class RowConverter:
    """Convert rows and write them; with `measuring`, compare what is written with its source."""

    plan: Plan
    files: OutputFiles
    measuring: Measuring | None
    factors: FactorCache = field(default_factory=FactorCache)

    def convert(self, worker: Worker, task: Task, destination: Destination) -> TaskResult:
        """Make the rows of a task for a destination, and write them, but for what goes to a panel.

        Raises OutputError, DeviceError, and CheckpointError that names the tensor and the place of
        a value that cannot be converted.
        """
        try:
            if destination.packed is not None:
                return self._pack(worker, task, destination, destination.packed)
            if keeps_bytes(task.item, destination):
                if task.slab is None:
                    return self._copy_straight(worker, task, destination)
                return self._copy(task, task.slab, destination)
            return self._quantize(worker, task, destination)
        except SourceValueError as error:
            raise self._explained(error, task, destination) from None

    def _copy_straight(self, worker: Worker, task: Task, destination: Destination) -> TaskResult:
        """Copy stored bytes from file to file, some at a time, which stay in the core's cache."""
        view = task.item.view.single
        run = None if view is None else view.run_of_rows(task.out0, task.out1)
        assert run is not None
        # A worker that only copies may have no buffer of a size, if its rows were for a device.
        room = worker.buffer if len(worker.buffer) >= _LEAST_CHUNK else bytearray(_LEAST_CHUNK)
        chunks = read_run(task.item.view.path, *run, memoryview(room)[:_CHUNK_BYTES])
        output, file = destination.output, destination.file
        write = self.files.write_chunks(output, file, chunks, _offset(task, destination))
        return TaskResult(BlockCounts(), [write])

    def _copy(self, task: Task, slab: Slab, destination: Destination) -> TaskResult:
        """Write the stored bytes as they are."""
        stored = slab.stored_rows(task.row0, task.row1)
        write = self.files.write(destination, stored.data, _offset(task, destination))
        if self.measuring is not None and is_measured(task.item, destination):
            errors = measure_matrix(
                as_matrix(task.matrix),
                TYPES[task.item.view.dtype],
                stored,
                destination.importance,
                self.measuring.baseline_of(destination),
            )
            self.measuring.add(destination, task.out0, errors)
        return TaskResult(BlockCounts(), [write])

    def _quantize(self, worker: Worker, task: Task, destination: Destination) -> TaskResult:
        """Make the rows in the worker's buffer, and write them."""
        row_bytes = destination.type.row_bytes(task.item.view.shape[1])
        nbytes = (task.row1 - task.row0) * row_bytes
        # One row can be longer than a task; buffers for devices are made for the longest.
        target = worker.buffer if nbytes <= len(worker.buffer) else bytearray(nbytes)
        rows = np.frombuffer(target, np.uint8, nbytes)
        source, importance = task.matrix, destination.importance
        backend = self.factors.backend(worker.backend, destination.moments)
        baseline = Baseline.STORED
        if self.measuring is None:
            counts = backend.quantize(
                source, destination.type, rows, importance, destination.search
            )
        else:
            baseline = self.measuring.baseline_of(destination)
            counts, errors = backend.quantize_and_measure(
                source, destination.type, rows, importance, baseline, destination.search
            )
            self.measuring.add(destination, task.out0, errors)
        write = self.files.write(destination, rows.data, _offset(task, destination))
        if self.measuring is not None and self.measuring.compares(destination):
            errors = _errors_by_ggml(worker, task, destination, rows, baseline)
            self.measuring.add_ggmls(destination, task.out0, errors)
        return TaskResult(counts, [write])

    def _pack(
        self, worker: Worker, task: Task, destination: Destination, packed: Packed
    ) -> TaskResult:
        """Make rows of a packed matrix, and write each part's bytes where they belong."""
        measuring, slot = self.measuring, task.panel.slot(destination)
        made = packed.packing.pack(
            task.matrix,
            task.item.view.shape[0],
            task.out0,
            destination.importance,
            self.factors.backend(worker.backend, destination.moments),
            slot.place,
            None if measuring is None else measuring.baseline_of(destination),
        )
        writes = [
            write_segment(self.files, destination, segment)
            for segment in made.segments
            if not slot.holds(segment.suffix)  # else written with all of its panel
        ]
        if measuring is not None and made.errors is not None:
            measuring.add(destination, task.out0, made.errors)
        if measuring is not None and measuring.compares(destination):
            by_ggml = packed.packing.errors_by_ggml(
                task.matrix,
                destination.importance,
                worker.backend,
                measuring.baseline_of(destination),
            )
            if by_ggml is not None:
                measuring.add_ggmls(destination, task.out0, by_ggml)
        return TaskResult(made.counts, writes)

    def _explained(
        self, error: SourceValueError, task: Task, destination: Destination
    ) -> CheckpointError:
        """Name the tensor, the place of the value in it, and a remedy."""
        name = destination.tensor
        if destination.expert is not None:
            name += f", expert {destination.expert}"
        if isinstance(error, InexactScaleError):
            anew = option("allow_requantize", True)
            remedy = f"; f32 keeps it exact, {anew} quantizes what cannot be carried, with a loss"
        elif isinstance(error, NotCarriedError):
            remedy = "; the memory of this machine may be faulty: convert again"
        else:
            remedy = self._remedy(task.item, destination, is_range=isinstance(error, RangeError))
        found = named(error, name, task.item.view, task.out0, remedy)
        # Not the source's fault: what is finished is kept.
        return CheckpointError(str(found)) if isinstance(error, NotCarriedError) else found

    def _remedy(self, item: WorkItem, destination: Destination, *, is_range: bool) -> str:
        """Suggest to keep a tensor as it is stored, or else a type that holds its large values."""
        target = self.plan.outputs[destination.output].request.target
        stored = TYPES.get(item.view.dtype)
        if self.plan.graph.metadata is not None and stored is not None:
            return target.remedy(destination.tensor, stored, "keeps it as it is stored")
        if not is_range:
            return ""
        wider = F32 if destination.type == BF16 else BF16
        return target.remedy(destination.tensor, wider, "gives it a wider range")


def _errors_by_ggml(
    worker: Worker,
    task: Task,
    destination: Destination,
    rows: NDArray[np.uint8],
    baseline: Baseline,
) -> Errors:
    """Measure what ggml's rule makes of rows that were searched and written, in the same room."""
    source, importance, made = task.matrix, destination.importance, destination.type
    try:
        return worker.backend.quantize_and_measure(source, made, rows, importance, baseline)[1]
    except RangeError:  # by ggml's rule a scale is infinite; the blocks are there all the same
        return measure_matrix(as_matrix(source), made, rows, importance, baseline)


def _offset(task: Task, destination: Destination) -> int:
    """Return the file offset of a task's first row."""
    row_bytes = destination.type.row_bytes(task.item.view.shape[1])
    return destination.offset + task.out0 * row_bytes
