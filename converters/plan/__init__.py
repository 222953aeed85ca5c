"""Plan a conversion: work items in the order of the files, within a budget of memory.

`make_plan` gives each matrix its slabs of rows and their destinations; `tiling` cuts tasks,
`workers` chooses how many threads and which devices, `estimate` foretells the time. Nothing here
starts a thread.
"""

from weightcast.converters.plan.budget import SLAB_BYTES
from weightcast.converters.plan.estimate import Estimate
from weightcast.converters.plan.plan import Destination, Plan, WorkItem, make_plan, whole
from weightcast.converters.plan.tiling import (
    TaskBytes,
    Tiling,
    is_measured,
    is_straight_copy,
    keeps_bytes,
    largest_task,
)
from weightcast.converters.plan.workers import MAX_WORKERS, Workers, choose_workers

__all__ = [
    "MAX_WORKERS",
    "SLAB_BYTES",
    "Destination",
    "Estimate",
    "Plan",
    "TaskBytes",
    "Tiling",
    "WorkItem",
    "Workers",
    "choose_workers",
    "is_measured",
    "is_straight_copy",
    "keeps_bytes",
    "largest_task",
    "make_plan",
    "whole",
]
