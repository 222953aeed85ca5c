"""Estimate how long a conversion will take, from what this machine does in half a second.

A few rows of each kind of work are made of random weights, and some megabytes of the source are
read that the cache was made to forget. Reading, computing and writing overlap, so the longest of
them counts; on one disk reading and writing take turns. Nothing is written, so a disk that outputs
have to themselves is taken to write as fast as the source is read.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from weightcast.converters.files import forget_read
from weightcast.converters.plan.plan import Destination, Plan, WorkItem
from weightcast.converters.plan.tiling import keeps_bytes
from weightcast.converters.plan.workers import Workers
from weightcast.errors import CheckpointError
from weightcast.quant.backend import CpuBackend
from weightcast.quant.cpu.feedback import factor_hessian
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.devices import Devices
from weightcast.quant.types import F32, I8

# Read at this many places of the source, so much at each: the system reads ahead.
_PLACES: Final = 8
_PLACE_BYTES: Final = 32 << 20
_READ_BYTES: Final = 8 << 20
# The most that is spent on the disk, and so much work of each kind is enough.
_DISK_SECONDS: Final = 0.4
_WORK_SECONDS: Final = 0.005
# Multiples of all groups and squares.
_MOST_IN: Final = 4096
_ROWS: Final = (128, 1024)
# The size of a matrix that is factored to see how fast that is.
_FACTORED: Final = 768
# Bytes a second that the system itself copies out of and into its cache, on one core, where it has
# to find new pages and where it has used ones: rough, of the right size for the CPU time of
# conversions to Q8_0.
_COPIES: Final = {"new": (4e9, 1.5e9), "used": (8e9, 4e9)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that reading, computing and writing take by themselves, and all of it together.

    `disk_bytes_per_s` is what was measured; None if the source is too small, or all in memory.
    """

    read_s: float
    compute_s: float
    write_s: float
    total_s: float
    disk_bytes_per_s: float | None

    def describe(self) -> dict[str, Any]:
        return {
            name: None if value is None else round(value, 3) for name, value in asdict(self).items()
        }


def estimate(plan: Plan, workers: Workers) -> Estimate:
    """Estimate the time of a plan on this machine, which is measured for half a second or so."""
    rate = disk_rate([file.path for file in plan.inputs.files])
    read_s = write_s = 0.0
    if rate is not None:
        read_s, write_s = plan.read_bytes / rate, plan.write_bytes / rate
    cores = min(workers.count + 1, len(os.sched_getaffinity(0)))
    out_of, into = _COPIES["used" if plan.outgrows_cache else "new"]
    copying = plan.read_bytes / out_of + plan.write_bytes / into
    compute_s = _kernel_seconds(plan, workers.devices) + copying / cores
    compute_s += _feedback_seconds(plan, min(workers.count, cores))
    on_disks = read_s + write_s if _is_one_disk(plan) else max(read_s, write_s)
    return Estimate(read_s, compute_s, write_s, max(on_disks, compute_s), rate)


def _is_one_disk(plan: Plan) -> bool:
    sources = {file.path.stat().st_dev for file in plan.inputs.files}
    return any(output.request.path.parent.stat().st_dev in sources for output in plan.outputs)


def disk_rate(paths: Sequence[Path]) -> float | None:
    """Bytes a second that the source can be read at, without what is in the cache already."""
    done, start = 0, time.perf_counter()
    with suppress(OSError), closing(_reads(paths)) as reads:
        for count in reads:
            done += count
            if time.perf_counter() - start > _DISK_SECONDS:
                break
    seconds = time.perf_counter() - start
    return done / seconds if done >= _READ_BYTES else None


def _reads(paths: Sequence[Path]) -> Generator[int]:
    """Read at places that the cache was made to forget; gives the bytes of each read."""
    chance, buffer = random.Random(0), bytearray(_READ_BYTES)
    for path in chance.choices([p for p in paths if p.stat().st_size > 0], k=_PLACES):
        place = chance.randint(0, max(path.stat().st_size - _PLACE_BYTES, 0))
        forget_read(path, place, _PLACE_BYTES)
        try:
            with path.open("rb", buffering=0) as file:
                if _is_cached(file.fileno(), place + _READ_BYTES):
                    continue  # not to be forgotten: in memory, or not on the disk yet
                for position in range(place, place + _PLACE_BYTES, _READ_BYTES):
                    yield os.preadv(file.fileno(), [buffer], position)
        finally:
            forget_read(path, place, _PLACE_BYTES)


def _is_cached(fd: int, position: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except OSError:  # there it would have to wait, or the file system cannot tell
        return False


def _kernel_seconds(plan: Plan, devices: Devices) -> float:
    """Seconds that all cores together compute; devices, not measured yet, count as none.

    Beside devices they search for the least error alone.
    """
    weights: dict[object, int] = defaultdict(int)
    examples: dict[object, tuple[WorkItem, Destination]] = {}
    for item in plan.items:
        for destination in item.destinations:
            if keeps_bytes(item, destination) or (devices.cuda and not destination.is_least_error):
                continue
            packed = destination.packed
            kind = destination.type.name if packed is None else packed.packing.label
            key = item.view.dtype, kind, destination.importance is None, destination.search
            weights[key] += (item.out1 - item.out0) * item.view.shape[1]
            examples.setdefault(key, (item, destination))
    seconds = sum(n * _seconds_a_weight(*examples[key]) for key, n in weights.items())
    return seconds / len(os.sched_getaffinity(0))


def _feedback_seconds(plan: Plan, cores: int) -> float:
    """Seconds of error feedback: all cores round, one factors each matrix of second moments."""
    rounded, moments = 0, set()
    for item in plan.items:
        for destination in item.destinations:
            if destination.moments is not None:
                # Each weight twice, to compare what codes cost, with half of the columns.
                rounded += (item.out1 - item.out0) * item.view.shape[1] ** 2
                moments.add(destination.moments)
    if not moments:
        return 0.0
    factored = sum(_products(found.n_in) for found in moments)
    start = time.perf_counter()
    factor_hessian(np.eye(_FACTORED))
    a_product = (time.perf_counter() - start) / _products(_FACTORED)
    return (rounded / cores + factored) * a_product


def _products(n: int) -> float:
    """Count the multiplications that factor a matrix [n, n]."""
    return n**3 / 6


def _seconds_a_weight(item: WorkItem, destination: Destination) -> float:
    """Make a few rows as a conversion does; more of them if that takes no time to speak of."""
    n_in = min(item.view.shape[1], _MOST_IN)
    seconds = 0.0
    for rows in _ROWS:
        matrix = _random_matrix(item, rows, n_in)
        start = time.perf_counter()
        _make(matrix, destination)
        seconds = (time.perf_counter() - start) / (rows * n_in)
        if seconds * rows * n_in > _WORK_SECONDS:
            break
    return seconds


def _make(matrix: Matrix, destination: Destination) -> None:
    backend, importance = CpuBackend(), destination.importance
    if importance is not None:
        importance = np.ascontiguousarray(importance[: matrix.n_in])
    # What a few rows cannot be made into is left out: such a matrix cannot be converted either.
    with suppress(CheckpointError):
        if destination.packed is None:
            row_bytes = destination.type.row_bytes(matrix.n_in)
            dst = np.empty(matrix.n_out * row_bytes, np.uint8)
            backend.quantize(matrix, destination.type, dst, importance, destination.search)
            return
        made = destination.packed.packing.pack(matrix, matrix.n_out, 0, importance, backend)
        for _ in made.segments:
            pass


def _random_matrix(item: WorkItem, rows: int, n_in: int) -> Matrix:
    """Weights as they are stored, `out` contiguous; what is not plain numbers counts as float32."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(rows * n_in, np.float32)
    if item.view.dtype != I8.name or item.view.is_packed:
        return Matrix(values, F32.name, rows, n_in, 1, rows)
    codes = np.clip(np.rint(values * 32), -127, 127).astype(np.int8).view(np.uint8)
    return Matrix(
        codes, I8.name, rows, n_in, 1, rows, scales=np.full((1, rows), 1 / 64, np.float32)
    )
