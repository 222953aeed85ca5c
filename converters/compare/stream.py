"""Stream the same rows of paired matrices through workers: a slab of each side at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from weightcast.converters.compare.rows import PairedRows, read_rows
from weightcast.converters.engine import Stream, slab_buffer
from weightcast.converters.files import page_cache
from weightcast.converters.graph.read import Slab
from weightcast.converters.plan import Tiling
from weightcast.converters.plan import budget as memory


@dataclass(frozen=True, slots=True)
class PairedBuffers:
    """Buffers for a slab of each side."""

    source: mmap.mmap
    output: mmap.mmap

    @classmethod
    def fitting(cls, work: Sequence[PairedRows]) -> PairedBuffers:
        """Make buffers that fit every one of these rows."""
        source = max((rows.source.slab_bytes(rows.out0, rows.out1) for rows in work), default=0)
        output = max((rows.output.slab_bytes(rows.out0, rows.out1) for rows in work), default=0)
        return cls(slab_buffer(source), slab_buffer(output))

    def read_source(self, rows: PairedRows) -> Slab:
        """Read the rows of the source. Raises CheckpointError."""
        return read_rows(rows.source, rows.out0, rows.out1, memoryview(self.source))

    def read_output(self, rows: PairedRows) -> Slab:
        """Read the rows of what is held against it. Raises CheckpointError."""
        return read_rows(rows.output, rows.out0, rows.out1, memoryview(self.output))


@dataclass(frozen=True, slots=True)
class PairedTask:
    """Rows [row0, row1) of a slab of each side, for one worker."""

    rows: PairedRows
    source: Slab
    output: Slab
    row0: int
    row1: int

    @property
    def start(self) -> int:
        """Return the number of the first row in the matrix."""
        return self.rows.out0 + self.row0

    @property
    def position(self) -> int:
        """Return the number of the first row among those that are chosen."""
        return self.rows.row0 + self.row0

    @property
    def read_bytes(self) -> int:
        """Return the share of the bytes read that counts for this task."""
        count, total = self.source.rows, self.rows.read_bytes
        return total * self.row1 // count - total * self.row0 // count


def tiling_of(jobs: int) -> Tiling:
    """Cut slabs into tasks for so many workers."""
    return Tiling(jobs, min(memory.TASK_BYTES, memory.MAX_TASKS_BYTES // jobs))


def cut_tasks(rows: PairedRows, source: Slab, output: Slab, step: int) -> Iterator[PairedTask]:
    """Cut slabs into tasks of `step` rows."""
    for row0 in range(0, source.rows, step):
        yield PairedTask(rows, source, output, row0, min(row0 + step, source.rows))


def stream_rows(
    work: Sequence[PairedRows],
    read: Callable[[PairedRows, PairedBuffers], Iterable[PairedTask]],
    use: Callable[[PairedTask], None],
    jobs: int,
    on_progress: Callable[[int], None],
) -> None:
    """Read rows of both sides, and let `jobs` workers use them; holds two slabs of each side.

    `on_progress` gets bytes of both sides that were finished, from any thread. Raises what `read`
    and `use` raise.
    """

    def use_and_tell(task: PairedTask) -> None:
        use(task)
        on_progress(task.read_bytes)

    forgets = page_cache.outgrows(sum(rows.read_bytes for rows in work))
    buffers = [PairedBuffers.fitting(work) for _ in range(2)]
    Stream[PairedBuffers, PairedTask, None](buffers).run(
        work,
        read,
        [use_and_tell] * jobs,
        # Only then: workers may read packed rows again.
        finish=PairedRows.forget if forgets else lambda rows: None,
    )
