"""torch tensors on a device: real ones, or a CPU build's over the stand-in's device memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weightcast.quant.cuda.device import Stream, open_gpu

_devices: dict[int, int] = {}  # by address of a storage


class DeviceTensor(torch.Tensor):
    """Calls itself a CUDA tensor. What torch would compute on the device waits for it first."""

    is_cuda = True

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", _devices[self.untyped_storage().data_ptr()])

    def settled(self) -> torch.Tensor:
        open_gpu(self.device.index).call("waiting", "cuCtxSynchronize")
        return self.as_subclass(torch.Tensor)

    def contiguous(self) -> DeviceTensor:
        return self if self.is_contiguous() else put(self.settled(), self.device.index)

    def float(self) -> torch.Tensor:
        return self.settled().float()


def empty(shape: tuple[int, ...], dtype: torch.dtype, index: int) -> DeviceTensor:
    """Allocate device memory, freed with the last tensor that uses it."""
    n = int(np.prod(shape, dtype=np.int64))
    nbytes = max(n, 1) * dtype.itemsize
    memory = open_gpu(index).allocate(nbytes)
    buffer = (ctypes.c_uint8 * nbytes).from_address(memory.address)
    buffer.memory = memory  # type: ignore[attr-defined]
    _devices[memory.address] = index
    return torch.frombuffer(buffer, dtype=dtype)[:n].reshape(shape).as_subclass(DeviceTensor)


def put(x: torch.Tensor, index: int) -> DeviceTensor:
    made = empty(tuple(x.shape), x.dtype, index)
    made.as_subclass(torch.Tensor).copy_(x)
    return made


class StandInTorch:
    """What the tests need of torch, where the stand-in is the driver."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._streams: dict[int, int] = {}
        plain = torch.empty

        def patched(*args: Any, device: Any = None, **options: Any) -> torch.Tensor:
            if device is None or torch.device(device).type != "cuda":
                return plain(*args, device=device, **options)
            (shape,) = args
            return empty(shape, options["dtype"], torch.device(device).index)

        def current_stream(device: torch.device) -> SimpleNamespace:
            return SimpleNamespace(cuda_stream=self._streams.get(device.index, 0))

        patch.setattr(torch, "empty", patched)
        patch.setattr(torch.cuda, "current_stream", current_stream)

    def put(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        """Copy a tensor to a device."""
        return put(x, index)

    def get(self, x: torch.Tensor) -> NDArray[Any]:
        """Read a tensor as it is now, whatever is still under way."""
        return x.as_subclass(torch.Tensor).numpy().copy()

    @contextmanager
    def current(self, stream: Stream) -> Iterator[None]:
        """Make a stream torch's current one on its device."""
        self._streams[stream.gpu.index] = stream.handle
        yield
        del self._streams[stream.gpu.index]


class RealTorch:
    """The same with a build of torch for CUDA."""

    def put(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        return x.to(torch.device("cuda", index))

    def get(self, x: torch.Tensor) -> NDArray[Any]:
        made: NDArray[Any] = x.cpu().numpy()
        return made

    @contextmanager
    def current(self, stream: Stream) -> Iterator[None]:
        external = torch.cuda.ExternalStream(stream.handle, device=stream.gpu.index)
        with torch.cuda.stream(external):
            yield
