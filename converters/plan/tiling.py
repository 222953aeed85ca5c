"""Cut slabs into tasks, each for one worker, and size the memory that a task takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from weightcast.converters.plan.plan import Destination, WorkItem, whole
from weightcast.quant.types import TYPES

# The kernels work on 64 columns of a source at a time: one cache line of int8.
ROW_STEP: Final = 64


@dataclass(frozen=True, slots=True)
class Tiling:
    """Cut slabs into tasks of at most `task_bytes` each, enough of them for all workers.

    Panels that are put together from tasks take `staged_bytes` at most.
    """

    workers: int
    task_bytes: int
    staged_bytes: int = 0

    def rows_per_task(
        self, rows: int, row_bytes: int, multiple: int = 1, step: int = ROW_STEP
    ) -> int:
        """Choose how many of a slab's `rows`, of `row_bytes` each, one task takes.

        Tasks start at multiples of `multiple`, the rows that are packed together, and of `step` if
        they have that many rows. One row, or one `multiple`, can take more than `task_bytes`.
        """
        # A small slab is shared out too: only two are in memory.
        share = -(-rows // self.workers)
        most = min(max(1, self.task_bytes // row_bytes), max(share, ROW_STEP))
        return whole(most, multiple if most < step else max(multiple, step))

    def rows_of(self, item: WorkItem) -> int:
        """Choose how many rows of a work item one task takes."""
        n_in = item.view.shape[1]
        row_bytes = max(d.row_bytes(n_in) for d in item.destinations)
        row_bytes = max(row_bytes, item.view.decoded_row_bytes)
        multiple = max(d.row_multiple for d in item.destinations)
        return self.rows_per_task(item.out1 - item.out0, row_bytes, multiple)


@dataclass(frozen=True, slots=True)
class TaskBytes:
    """Bytes of the largest tasks: as stored, as float32 on the way, as output."""

    source: int = 0
    floats: int = 0
    output: int = 0


def keeps_bytes(item: WorkItem, destination: Destination) -> bool:
    """Return whether the stored bytes go to a destination as they are."""
    view = item.view
    if destination.packed is not None:
        return False
    return destination.is_copied or (view.is_blocked and view.dtype == destination.type.name)


def is_straight_copy(item: WorkItem) -> bool:
    """Return whether rows go from one run of a file's bytes to others, and nowhere else."""
    view = item.view.single
    if view is None or view.run_of_rows(item.out0, item.out1) is None:
        return False
    return all(keeps_bytes(item, destination) for destination in item.destinations)


def is_measured(item: WorkItem, destination: Destination) -> bool:
    """Return whether a destination gets weights, which have errors, and not other numbers."""
    return not keeps_bytes(item, destination) or item.view.dtype in TYPES


def largest_task(items: Iterable[WorkItem], tiling: Tiling) -> TaskBytes:
    """Size the buffers that hold every task that is converted."""
    source = floats = output = 0
    for item in items:
        view, n_in = item.view, item.view.shape[1]
        made = [d.row_bytes(n_in) for d in item.destinations if not keeps_bytes(item, d)]
        if not made:
            continue
        rows = min(tiling.rows_of(item), item.out1 - item.out0)
        output = max(output, rows * max(made))
        if view.is_blocked:
            floats = max(floats, rows * n_in * 4)
            source = max(source, item.nbytes // (item.out1 - item.out0) * rows)
        elif view.is_encoded:
            source = max(source, rows * n_in * 4)
        else:
            source = max(source, view.piece_bytes(rows))
    return TaskBytes(source, floats, output)
