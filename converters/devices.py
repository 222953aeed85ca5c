"""Where a conversion quantizes: on the processor, or on CUDA devices.

Both are reached through lanes: what turns pieces of matrices into output bytes for one thread.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.words import count, some
from weightcast.quant.error import Baseline, Errors
from weightcast.quant.error_library import measure_matrix
from weightcast.quant.errors import DeviceError, RequestError
from weightcast.quant.groups import (
    Groups,
    GroupType,
    quantize_and_measure_groups,
    quantize_groups,
)
from weightcast.quant.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.types import QuantType

if TYPE_CHECKING:
    from weightcast.quant.cuda_device import Gpu

_CHOICES: Final = re.compile(r"cpu|auto|cuda(?::([0-9]{1,6}))?")


class Lane(Protocol):
    """What quantizes for one worker, one piece at a time."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> BlockCounts:
        """Write the rows of a matrix into dst: what `library.quantize_matrix` does.

        Source and dst are done with at the return. Raises SourceValueError, LayoutError and, on a
        device, DeviceError.
        """

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[BlockCounts, Errors]:
        """Do as `quantize` does, and compare the rows with the matrix; the importance weighs."""

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
    ) -> Groups:
        """Make groups of a matrix: what `groups.quantize_groups` does; raises as `quantize`."""

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[Groups, Errors]:
        """Do as `quantize_groups` does, and compare the groups with the matrix."""

    def close(self) -> None:
        """Give back what the lane holds."""


class ProcessorLane:
    """The processor's kernels, which need no preparation."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> BlockCounts:
        return quantize_matrix(as_matrix(source), quant_type, dst, importance)

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[BlockCounts, Errors]:
        matrix = as_matrix(source)
        counts = quantize_matrix(matrix, quant_type, dst, importance)
        return counts, measure_matrix(matrix, quant_type, dst, importance, baseline)

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
    ) -> Groups:
        return quantize_groups(as_matrix(source), group_type, importance)

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[Groups, Errors]:
        return quantize_and_measure_groups(as_matrix(source), group_type, importance, baseline)

    def close(self) -> None:
        """Nothing is held."""


def as_matrix(source: Matrix | Blocks) -> Matrix:
    """Values as they are stored, those of blocks as float32."""
    return source.dequantized() if isinstance(source, Blocks) else source


class Pinned(Protocol):
    """A page-locked buffer, which devices read and write by themselves."""

    def unpin(self) -> None: ...


class Device(Protocol):
    """A device that lanes can be opened on."""

    @property
    def id(self) -> str:
        """What `--device` calls it: cuda:0."""

    @property
    def name(self) -> str:
        """What its maker calls it."""

    def lane(self, source_bytes: int, blocks_bytes: int) -> Lane:
        """Open a lane for pieces of that size. Raises DeviceError."""

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

    def lane(self, source_bytes: int, blocks_bytes: int) -> Lane:
        from weightcast.quant.cuda import Lane as CudaLane

        return CudaLane(self.gpu.index, source_bytes, blocks_bytes)

    def pin(self, buffer: mmap.mmap) -> Pinned:
        return self.gpu.pin(buffer)


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a run, or none for the processor; `note` says why not those asked for."""

    cuda: tuple[Device, ...] = ()
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        ids = [device.id for device in self.cuda]
        return {"devices": ids or ["cpu"], "device_note": self.note or None}

    @property
    def text(self) -> str:
        """The devices by id and name."""
        return some([f"{device.id} ({device.name})" for device in self.cuda]) or "the processor"


PROCESSOR: Final = Devices()


def choose_devices(wanted: str) -> Devices:
    """Open the devices that are asked for: cpu, auto, cuda (all of them) or cuda:N.

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
    """The CUDA devices that can be opened; what is wrong with the others becomes a note."""
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
    from weightcast.quant.cuda_device import device_count

    return device_count()


def open_device(index: int) -> Device:
    """Open a CUDA device. Raises DeviceError."""
    from weightcast.quant.cuda_device import open_gpu

    return CudaDevice(open_gpu(index))
