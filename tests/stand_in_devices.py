"""CUDA devices that are none: the processor's kernels behind the rules of a device.

What goes in and out must lie in page-locked buffers, a backend belongs to one thread and to the
sizes it was opened for, and everything is given back once, after the work. A broken rule is an
AssertionError where it happens.
"""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from weightcast.errors import DeviceError
from weightcast.quant import devices
from weightcast.quant.backend import as_matrix
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.groups import Groups, measure_groups, quantize_groups
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, USUAL_EFFORT, Search
from weightcast.quant.types import GroupType, QuantType


def address_range(array: NDArray[np.generic]) -> range:
    start = array.__array_interface__["data"][0]
    return range(start, start + array.nbytes)


@dataclass
class Machine:
    """A computer with some devices; remembers what is done to them."""

    n_devices: int = 1
    pins: list[Pin] = field(default_factory=list)
    backends: list[Backend] = field(default_factory=list)
    # Called with the backend in the middle of its work.
    during: Callable[[Backend], None] = lambda backend: None
    refuse_pin: int = -1
    refuse_backend: int = -1
    fail_to_close: bool = False
    # Whether sources, and rows, may lie in memory that is not page-locked.
    takes_pageable: bool = False
    makes_pageable: bool = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Machine:
        monkeypatch.setattr(devices, "count_devices", self.count)
        monkeypatch.setattr(devices, "open_device", lambda index: Device(self, index))
        return self

    def count(self) -> int:
        if self.n_devices == 0:
            raise DeviceError("no CUDA driver on this machine: libcuda.so.1 is missing")
        return self.n_devices

    @property
    def chosen(self) -> devices.Devices:
        return devices.Devices(tuple(Device(self, n) for n in range(self.n_devices)))

    @property
    def tasks(self) -> Counter[str]:
        """Count the tasks that each device did."""
        made: Counter[str] = Counter()
        for backend in self.backends:
            made[backend.device.id] += backend.tasks
        return made

    @property
    def is_pinned(self) -> bool:
        return any(pin.is_held for pin in self.pins)

    def assert_given_back(self) -> None:
        assert not self.is_pinned
        assert all(backend.is_closed for backend in self.backends)

    def assert_pinned(self, array: NDArray[np.generic]) -> None:
        wanted = address_range(array)
        held = [address_range(pin.bytes) for pin in self.pins if pin.is_held]
        assert any(wanted.start in area and wanted[-1] in area for area in held)


class Pin:
    def __init__(self, machine: Machine, buffer: mmap.mmap) -> None:
        self.machine = machine
        self.bytes = np.frombuffer(buffer, np.uint8)
        self.is_held = True

    def unpin(self) -> None:
        assert self.is_held
        assert not any(backend.is_busy for backend in self.machine.backends)
        self.is_held = False


@dataclass(frozen=True)
class Device:
    machine: Machine
    index: int

    @property
    def id(self) -> str:
        return f"cuda:{self.index}"

    @property
    def name(self) -> str:
        return "Stand-in"

    def open_backend(self, source_bytes: int, blocks_bytes: int) -> Backend:
        if len(self.machine.backends) == self.machine.refuse_backend:
            raise DeviceError(f"{self.id}: out of device memory")
        backend = Backend(self, source_bytes, blocks_bytes)
        self.machine.backends.append(backend)
        return backend

    def pin(self, buffer: mmap.mmap) -> Pin:
        if len(self.machine.pins) == self.machine.refuse_pin:
            raise DeviceError(f"{self.id}: {len(buffer):,} bytes cannot be page-locked")
        pin = Pin(self.machine, buffer)
        self.machine.pins.append(pin)
        return pin


class Backend:
    def __init__(self, device: Device, source_bytes: int, blocks_bytes: int) -> None:
        self.device = device
        self.machine = device.machine
        self.source_bytes, self.blocks_bytes = source_bytes, blocks_bytes
        self.threads: set[int] = set()
        self.types: Counter[str] = Counter()
        self.tasks = 0
        self.is_busy = self.is_closed = False

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        self._check_rows(dst)
        dst[:] = 0xA5
        with self._at_work(source, quant_type.name) as matrix:
            on_device = np.full(dst.shape, 0x5A, np.uint8)
            counts = quantize_matrix(matrix, quant_type, on_device, importance, search)
            self._check_rows(dst)  # still
            dst[:] = on_device
            return counts

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        *,
        effort: int = USUAL_EFFORT,
    ) -> Groups:
        with self._at_work(source, f"int{group_type.bits}") as matrix:
            groups = quantize_groups(matrix, group_type, importance, effort=effort)
            made = (groups.codes, groups.scales, groups.zero_points)
            nbytes = sum(part.nbytes for part in made if part is not None)
            assert nbytes <= self.blocks_bytes
            return groups

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        *,
        effort: int = USUAL_EFFORT,
    ) -> tuple[Groups, Errors]:
        groups = self.quantize_groups(source, group_type, importance, effort=effort)
        matrix = as_matrix(source)
        return groups, measure_groups(matrix, groups, group_type, importance, baseline)

    @contextmanager
    def _at_work(self, source: Matrix | Blocks, made: str) -> Iterator[Matrix]:
        """Do one task, of a source as floats or codes."""
        assert not self.is_closed
        assert not self.is_busy
        self.is_busy = True
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1
        try:
            self._check_source(source)
            self.machine.during(self)
            self.tasks += 1
            self.types[made] += 1
            yield source.dequantized() if isinstance(source, Blocks) else source
        finally:
            self.is_busy = False

    def _check_rows(self, dst: NDArray[np.uint8]) -> None:
        if not self.machine.makes_pageable:
            self.machine.assert_pinned(dst)
        assert dst.nbytes <= self.blocks_bytes

    def _check_source(self, source: Matrix | Blocks) -> None:
        if not self.machine.takes_pageable:
            self.machine.assert_pinned(source.data)
        if isinstance(source, Blocks):
            assert source.data.nbytes == source.n_out * source.type.row_bytes(source.n_in)
            assert source.data.nbytes <= self.source_bytes
        else:
            step = max(1, min(source.stride_out, source.stride_in))
            nbytes = source.n_out * source.n_in * source.data.itemsize
            assert nbytes * step <= self.source_bytes

    def close(self) -> None:
        assert not self.is_busy
        assert not self.is_closed
        self.is_closed = True
        if self.machine.fail_to_close:
            raise DeviceError(f"{self.device.id}: a launch failed")
