"""Size the buffers of a conversion, so that memory is bounded whatever the size of the model."""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass

from weightcast.converters.engine.factors import KEPT_FACTORS
from weightcast.converters.engine.panels import panel_bytes
from weightcast.converters.plan import Plan, TaskBytes, Tiling, Workers, largest_task
from weightcast.converters.plan import budget as memory


def slab_buffer(nbytes: int) -> mmap.mmap:
    """Allocate at least `nbytes` of zeroed pages, huge ones where the system has them."""
    buffer = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE))
    # Columns are read at strides of many pages, which huge pages make cheap.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them is only slower
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of the buffers of a conversion, and the tiling that they follow from.

    There are two of `slab`, one of `rows` for each worker, and those of `panels`. `task` has the
    sizes of the largest task, which backends on devices need.
    """

    tiling: Tiling
    slab: int
    rows: int
    panels: tuple[int, ...]
    task: TaskBytes


def buffer_sizes(plan: Plan, workers: Workers) -> BufferSizes:
    """Size the buffers of a plan for so many workers."""
    most, budget = memory.TASK_BYTES, plan.budget.tasks
    if workers.devices.cuda:
        most, budget = memory.DEVICE_TASK_BYTES, plan.budget.device_tasks
    tiling = Tiling(workers.count, min(most, budget // workers.count), plan.budget.staged)
    task = largest_task(plan.items, tiling)
    # What is page-locked is no larger than the largest task.
    rows = task.output if workers.devices.cuda else tiling.task_bytes
    return BufferSizes(tiling, plan.slab_bytes, rows, panel_bytes(plan.items, tiling), task)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of buffers on the host, beside the interpreter's own 100 MB or so, and on each device.

    The `staged` bytes come on top of `host`, and are never page-locked.
    """

    host: int
    device: int
    staged: int = 0


def _factor_bytes(plan: Plan) -> int:
    """Count the bytes of the factors that are kept for error feedback."""
    moments = {d.moments for item in plan.items for d in item.destinations if d.moments is not None}
    return sum(sorted(8 * found.n_in**2 for found in moments)[-KEPT_FACTORS:])


def memory_estimate(plan: Plan, workers: Workers) -> MemoryEstimate:
    """Estimate the memory that buffers take; on devices those of `host` are page-locked."""
    sizes = buffer_sizes(plan, workers)
    host, staged = 2 * sizes.slab + workers.count * sizes.rows, sum(sizes.panels)
    host += _factor_bytes(plan)
    if not workers.devices.cuda:
        return MemoryEstimate(host, 0, staged)
    backends = -(-workers.count // len(workers.devices.cuda))
    task = sizes.task
    return MemoryEstimate(host, backends * (task.source + task.floats + task.output), staged)
