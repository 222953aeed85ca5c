"""Choose where a conversion quantizes: on the processor, or on CUDA devices."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from weightcast.errors import DeviceError, RequestError
from weightcast.quant.backend import Backend
from weightcast.text import count, some

if TYPE_CHECKING:
    from weightcast.quant.cuda.device import Gpu


_CHOICES: Final = re.compile(r"cpu|auto|cuda(?::([0-9]{1,6}))?")


class Pinned(Protocol):
    """A page-locked buffer, which devices read and write by themselves."""

    def unpin(self) -> None: ...


class Device(Protocol):
    """A device on which backends open."""

    @property
    def id(self) -> str:
        """Return the name that `--device` gives it: cuda:0."""

    @property
    def name(self) -> str:
        """Return the name that its maker gives it."""

    def open_backend(self, source_bytes: int, blocks_bytes: int) -> Backend:
        """Open a backend for sources and rows of these sizes. Raises DeviceError."""

    def pin(self, buffer: mmap.mmap) -> Pinned:
        """Page-lock a buffer, for all devices. Raises DeviceError."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A CUDA device through the driver."""

    gpu: Gpu

    @property
    def id(self) -> str:
        return f"cuda:{self.gpu.index}"

    @property
    def name(self) -> str:
        return self.gpu.name

    def open_backend(self, source_bytes: int, blocks_bytes: int) -> Backend:
        from weightcast.quant.cuda.backend import CudaBackend

        return CudaBackend(self.gpu.index, source_bytes, blocks_bytes)

    def pin(self, buffer: mmap.mmap) -> Pinned:
        return self.gpu.pin(buffer)


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of a run, none for the processor; `note` says why the ones asked for are missing."""

    cuda: tuple[Device, ...] = ()
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the devices as JSON values."""
        ids = [device.id for device in self.cuda]
        return {"devices": ids or ["cpu"], "device_note": self.note or None}

    @property
    def text(self) -> str:
        """Name the devices, each with its id."""
        return some([f"{device.id} ({device.name})" for device in self.cuda]) or "the processor"


PROCESSOR: Final = Devices()


def choose_devices(wanted: str) -> Devices:
    """Open the devices asked for: cpu, auto, cuda (all of them) or cuda:N.

    `auto` falls back to the processor. Raises RequestError for other words, DeviceError if a CUDA
    device is asked for and cannot be used.
    """
    choice = _CHOICES.fullmatch(str(wanted))
    if choice is None:
        raise RequestError(
            f"{wanted!r} is no device; possible: cpu, auto, cuda (all CUDA devices), cuda:N"
        )
    if wanted == "cpu":
        return PROCESSOR
    if wanted == "auto":
        return _usable_devices()
    indices = range(count_devices())
    if choice[1] is not None:
        if int(choice[1]) not in indices:
            known = ", ".join(f"cuda:{index}" for index in indices)
            raise DeviceError(
                f"{wanted}: this machine has {count(len(indices), 'CUDA device')} ({known})"
            )
        indices = range(int(choice[1]), int(choice[1]) + 1)
    return Devices(tuple(open_device(index) for index in indices))


def _usable_devices() -> Devices:
    """Open every CUDA device that works; the problems of the others become a note."""
    found: list[Device] = []
    problems: list[str] = []
    try:
        indices: Sequence[int] = range(count_devices())
    except DeviceError as problem:
        return Devices(note=f"quantizing on the processor: {problem}")
    for index in indices:
        try:
            found.append(open_device(index))
        except DeviceError as problem:
            problems.append(str(problem))
    place = "" if found else "quantizing on the processor: "
    return Devices(tuple(found), f"{place}{'; '.join(problems)}" if problems else "")


def count_devices() -> int:
    """Count the CUDA devices, at least 1. Raises DeviceError that says what is missing."""
    from weightcast.quant.cuda.device import device_count

    return device_count()


def open_device(index: int) -> Device:
    """Open a CUDA device. Raises DeviceError."""
    from weightcast.quant.cuda.device import open_gpu

    return CudaDevice(open_gpu(index))
