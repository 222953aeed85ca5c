"""Arrays in device memory that others can read: DLPack and the CUDA array interface, by hand."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cuda.device import Gpu, Memory, Stream

CUDA_MEMORY = 2  # kDLCUDA
CODES = {"i": 0, "u": 1, "f": 2}
BFLOAT16_CODE = 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


@dataclass
class DeviceArray:
    """An array [shape] in device memory, strides in elements from `start` bytes on."""

    memory: Memory
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    start: int = 0
    producer: Stream | None = None  # what still writes it

    @property
    def gpu(self) -> Gpu:
        return self.memory.gpu

    @classmethod
    def of(cls, gpu: Gpu, x: NDArray[Any], start: int = 0) -> Any:
        """Copy an array at strides that are not negative; what lies between them goes along."""
        strides = tuple(stride // x.itemsize for stride in x.strides)
        last = sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
        span = last + 1 if x.size else 0
        flat = np.lib.stride_tricks.as_strided(x, (span,), (x.itemsize,)) if span else x.reshape(-1)
        memory, stream = gpu.allocate(start + flat.nbytes), gpu.stream()
        stream.copy_in(memory.address + start, flat.view(np.uint8))
        stream.synchronize()
        contiguous = x.flags.c_contiguous
        return cls(memory, x.dtype, x.shape, None if contiguous else strides, start)


@dataclass
class InterfaceArray(DeviceArray):
    """Speaks the CUDA array interface, version 3."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        size = self.dtype.itemsize
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.memory.address + self.start, False),
            "version": 3,
            "strides": self.strides and tuple(stride * size for stride in self.strides),
            "stream": self.producer and self.producer.handle,
        }


@dataclass
class DlpackArray(DeviceArray):
    """Speaks DLPack; its memory may be freed once the consumer has let it go."""

    exports: int = 0
    released: int = 0
    frees: bool = False
    _kept: list[Any] = field(default_factory=list)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA_MEMORY, self.gpu.index

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        if self.producer is not None:
            assert stream not in (None, -1, 0), "the consumer did not say where it will work"
            self.gpu.borrowed_stream(stream).wait(self.producer.record())
        n = len(self.shape)
        strides = self.strides and (ctypes.c_int64 * n)(*self.strides)
        code = BFLOAT16_CODE if self.dtype == BFLOAT16 else CODES[self.dtype.kind]
        tensor = _Tensor(
            data=self.memory.address,
            device_type=CUDA_MEMORY,
            device_id=self.gpu.index,
            ndim=n,
            code=code,
            bits=8 * self.dtype.itemsize,
            lanes=1,
            shape=(ctypes.c_int64 * n)(*self.shape),
            strides=strides or None,
            byte_offset=self.start,
        )
        managed = _Managed(tensor, None, _Deleter(self._release))
        self._kept.append(managed)
        self.exports += 1
        return _new_capsule(ctypes.addressof(managed), b"dltensor", None)

    def _release(self, _: Any) -> None:
        self.released += 1
        if self.frees:
            self.memory.free()


def read(view: Any, gpu: Gpu) -> NDArray[Any]:
    """Read what an array on a device exports by DLPack, which must be contiguous."""
    assert view.__dlpack_device__() == (CUDA_MEMORY, gpu.index)
    capsule = view.__dlpack__(stream=-1)
    tensor = _Managed.from_address(_pointer(capsule, b"dltensor")).tensor
    assert (tensor.device_type, tensor.device_id) == (CUDA_MEMORY, gpu.index)
    assert tensor.lanes == 1
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kind = {code: kind for kind, code in CODES.items()}[tensor.code]
    made = np.empty(shape, f"{kind}{tensor.bits // 8}")
    if tensor.strides and made.size:
        strides = tuple(tensor.strides[axis] * made.itemsize for axis in range(tensor.ndim))
        assert all(n == 1 or a == b for n, a, b in zip(shape, strides, made.strides, strict=True))
    stream = gpu.stream()
    stream.copy_out(made, (tensor.data or 0) + tensor.byte_offset)
    stream.synchronize()
    return made
