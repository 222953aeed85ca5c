"""Choose how many workers a run has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from weightcast.errors import RequestError
from weightcast.quant.devices import PROCESSOR, Devices

# One copies in, one computes, one copies out, one writes.
WORKERS_PER_DEVICE: Final = 4
# More would only wait for each other.
MAX_WORKERS: Final = 512


@dataclass(frozen=True, slots=True)
class Workers:
    """The number of threads, and the devices on which they quantize (none: on the processor)."""

    count: int
    devices: Devices = PROCESSOR


def choose_workers(jobs: int | None = None, devices: Devices = PROCESSOR) -> Workers:
    """Return `jobs` workers: by default 4 for each device, or one more than there are cores.

    One more, because one usually waits for its turn to write. Raises RequestError.
    """
    if jobs is None:
        usual = WORKERS_PER_DEVICE * len(devices.cuda) or len(os.sched_getaffinity(0)) + 1
        return Workers(min(usual, MAX_WORKERS), devices)
    if type(jobs) is not int or not 1 <= jobs <= MAX_WORKERS:
        raise RequestError(f"{jobs!r} jobs; 1 to {MAX_WORKERS} are possible")
    return Workers(jobs, devices)
