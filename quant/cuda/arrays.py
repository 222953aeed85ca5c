"""Library use on a device: quantize arrays that are in its memory already, without a copy.

torch tensors are read on the caller's current stream and give torch tensors. Everything else that
speaks DLPack or the CUDA array interface (cupy, jax, numba) gives views that speak DLPack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import SourceValueError, no_importance, uses_importance
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.device import Gpu, Stream, open_gpu
from weightcast.quant.cuda.jobs import (
    FOUND_BYTES,
    DeviceMatrix,
    Job,
    enqueue,
    enqueue_dequantize,
    enqueue_measure,
    moments_bytes,
    report,
    scratch_bytes,
)
from weightcast.quant.metrics import MOMENTS, Errors, check_bytes, check_rows, of_moments
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

if TYPE_CHECKING:
    import torch


_DTYPES: Final = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.uint8): "U8",
}
_TORCH_DTYPES: Final = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.uint8": "U8",
}
_ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
# Device types of DLPack: CUDA memory, and CUDA managed memory.
_DLPACK_CUDA: Final = (2, 13)


def is_on_device(x: object) -> bool:
    """Say whether an array is in the memory of a CUDA device."""
    if isinstance(x, np.ndarray):
        return False
    if hasattr(x, "is_cuda"):  # torch
        return bool(x.is_cuda)
    if hasattr(x, "__dlpack_device__"):
        return x.__dlpack_device__()[0] in _DLPACK_CUDA
    return hasattr(x, "__cuda_array_interface__")


@dataclass(frozen=True, slots=True)
class _Array:
    """An array on a device: address, type, shape, strides in elements.

    `empty` makes an array of a shape and "U8" or "F32" beside it and gives it with its address;
    work is enqueued on `stream`. The memory stays while `owner` does.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    stream: Stream
    empty: Callable[[tuple[int, ...], str], tuple[Any, int]]
    owner: Any

    @property
    def gpu(self) -> Gpu:
        return self.stream.gpu

    @property
    def is_contiguous(self) -> bool:
        """True if the elements follow each other, the last axis fastest."""
        axes = zip(self.shape, self.strides, _contiguous_strides(self.shape), strict=True)
        return prod(self.shape) == 0 or all(n == 1 or own == like for n, own, like in axes)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _open_torch(x: torch.Tensor, do: str) -> _Array:
    import torch

    x = x.detach()
    if x.layout != torch.strided or x.is_conj() or x.is_neg():
        raise LayoutError(f"cannot {do} a tensor of layout {x.layout}: make it dense first")
    index = x.device.index
    stream = open_gpu(index).borrowed_stream(torch.cuda.current_stream(x.device).cuda_stream)

    def empty(shape: tuple[int, ...], dtype: str) -> tuple[torch.Tensor, int]:
        kind = torch.uint8 if dtype == "U8" else torch.float32
        made = torch.empty(shape, dtype=kind, device=x.device)
        return made, made.data_ptr()

    dtype = _TORCH_DTYPES.get(str(x.dtype), str(x.dtype))
    return _Array(x.data_ptr(), dtype, tuple(x.shape), x.stride(), stream, empty, x)


def _open_other(x: Any) -> _Array:
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    index = x.__dlpack_device__()[1] if hasattr(x, "__dlpack_device__") else None
    if index is None:  # the array interface does not tell: what the pointer belongs to does
        with open_gpu(0):  # the driver is asked, which wants some device to be current
            index = StridedMemoryView.from_cuda_array_interface(x, stream_ptr=-1).device_id
    gpu = open_gpu(index)
    stream = gpu.stream()
    with gpu:
        view = StridedMemoryView.from_any_interface(x, stream_ptr=stream.handle)

    def empty(shape: tuple[int, ...], dtype: str) -> tuple[Any, int]:
        kind = np.dtype(np.uint8 if dtype == "U8" else np.float32)
        memory = gpu.allocate(prod(shape) * kind.itemsize)
        with gpu:  # the package finds out whose memory it is
            buffer = Buffer.from_handle(memory.address, memory.nbytes, owner=memory)
            return StridedMemoryView.from_buffer(buffer, shape, dtype=kind), memory.address

    shape = tuple(view.shape)
    strides = view.strides
    if strides is None:
        strides = _contiguous_strides(shape)
    dtype = _DTYPES.get(view.dtype, str(view.dtype))
    return _Array(view.ptr, dtype, shape, tuple(strides), stream, empty, view)


def _open(x: Any, do: str) -> _Array:
    """Open an array to `do` something with it, which messages name."""
    array = _open_torch(x, do) if hasattr(x, "is_cuda") else _open_other(x)
    if len(array.shape) == 0:
        raise LayoutError(f"cannot {do} a scalar: the last axis must be `in`")
    return array


def to_host(x: Any) -> NDArray[Any]:
    """Copy a small array of a device to numpy: importance, say."""
    if hasattr(x, "is_cuda"):
        host: NDArray[Any] = x.detach().float().cpu().numpy()
        return host
    array = _open_other(x)
    if array.dtype != "F32" or not array.is_contiguous:
        raise LayoutError(f"importance on a device must be contiguous float32, not {array.dtype}")
    made = np.empty(array.shape, np.float32)
    array.stream.copy_out(made, array.address)
    array.stream.synchronize()
    return made


def shape_of(x: Any) -> tuple[int, ...]:
    """Shape of any array."""
    return tuple(x.shape) if hasattr(x, "shape") else _open(x, "quantize").shape


def quantize(
    x: Any, quant_type: QuantType, importance: NDArray[np.float32] | None, search: Search = GGML
) -> Any:
    """Pack [..., out, in] on a device into uint8 [..., out, bytes per row] on the same.

    `importance` is float32 [..., in] in host memory, a row for each matrix; `search` is the rule by
    which scales and codes are chosen. Waits for the result, so that what cannot be quantized is
    refused. Raises LayoutError, DeviceError.
    """
    array = _open(x, "quantize")
    if array.dtype not in ("F32", "F16", "BF16"):
        raise LayoutError(f"cannot quantize {array.dtype}: use float32, float16 or bfloat16")
    if array.address % _ITEM_BYTES[array.dtype]:
        raise LayoutError(f"cannot read {array.dtype} at an odd address: copy the array first")
    if importance is None and quant_type.importance == "required":
        raise no_importance(quant_type)
    if not uses_importance(quant_type, search):
        importance = None
    n_in = array.shape[-1]
    row_bytes = quant_type.row_bytes(n_in)
    made, address = array.empty((*array.shape[:-1], row_bytes), "U8")
    if prod(array.shape) == 0:
        return made
    planes, n_out = array.shape[:-2], array.shape[-2] if len(array.shape) > 1 else 1
    each = scratch_bytes(quant_type, n_out, weighed=importance is not None)
    _scratch, scratch = array.empty((prod(planes) * each,), "U8")
    _factors, factors = _factors_beside(array, importance)
    weighed = importance is not None
    kernels = cuda_kernels.quantizer(array.gpu, quant_type, weighed, array.dtype, search)
    jobs = []
    for number, index in enumerate(np.ndindex(planes)):
        job = Job(
            _plane(array, index, n_out),
            quant_type,
            address + number * n_out * row_bytes,
            row_bytes,
            scratch + number * each,
            factors + 4 * n_in * number if factors else 0,
            search.effort,
        )
        enqueue(array.stream, kernels, job)
        jobs.append((index, job))
    _report(array, jobs)
    return made


def _factors_beside(array: _Array, importance: NDArray[np.float32] | None) -> tuple[Any, int]:
    """Copy importance to the device of an array: what keeps it there, and its address, 0 for none.

    The copy is a part of the array's stream.
    """
    if importance is None:
        return None, 0
    importance = np.ascontiguousarray(importance, np.float32)
    made, address = array.empty(importance.shape, "F32")
    array.stream.copy_in(address, importance)
    return made, address


def measure(
    x: Any, blocks: Any, quant_type: QuantType, importance: NDArray[np.float32] | None = None
) -> Errors:
    """Compare [..., out, in] with blocks [..., out, bytes per row] on the same device.

    `importance` is float32 [..., in] in host memory, a row for each matrix.
    """
    if not (is_on_device(x) and is_on_device(blocks)):
        raise LayoutError("weights and blocks must be in the memory of the same device")
    if hasattr(blocks, "is_cuda"):
        blocks = blocks.contiguous()
    array, rows = _open(x, "measure"), _open(blocks, "measure")
    if array.dtype not in ("F32", "F16", "BF16"):
        raise LayoutError(f"cannot measure {array.dtype}: use float32, float16 or bfloat16")
    check_bytes(rows.dtype == "U8", rows.dtype, rows.shape, quant_type)
    if array.gpu is not rows.gpu:
        raise LayoutError("weights and blocks must be in the memory of the same device")
    check_rows(array.shape, rows.shape, quant_type)
    if not rows.is_contiguous:
        raise LayoutError("expected rows that follow each other in memory")
    moments = np.zeros(array.shape[:-1], MOMENTS)
    n_in = array.shape[-1]
    if moments.size and n_in:
        _enqueue_measures(array, rows, quant_type, moments, importance)
    return of_moments(moments, n_in, is_weighted=importance is not None)


def _enqueue_measures(
    array: _Array,
    rows: _Array,
    quant_type: QuantType,
    moments: NDArray[np.void],
    importance: NDArray[np.float32] | None,
) -> None:
    """Fill moments [..., out], one matrix after another, and wait."""
    n_in, row_bytes = array.shape[-1], rows.shape[-1]
    planes, n_out = array.shape[:-2], array.shape[-2] if len(array.shape) > 1 else 1
    each = moments_bytes(n_out, n_in)
    _parts, parts = array.empty((prod(planes) * each,), "U8")
    _factors, factors = _factors_beside(array, importance)
    kernels = cuda_kernels.measurer(array.gpu, quant_type, array.dtype)
    array.stream.wait(rows.stream.record())
    by_plane = moments.reshape(-1, n_out)
    for number, index in enumerate(np.ndindex(planes)):
        blocks = rows.address + number * n_out * row_bytes
        weights = factors + 4 * n_in * number if factors else 0
        plane = _plane(array, index, n_out)
        job = Job(plane, quant_type, blocks, row_bytes, scratch=0, importance=weights)
        enqueue_measure(array.stream, kernels, job, parts + number * each)
        array.stream.copy_out(by_plane[number].view(np.uint8), parts + number * each)
    array.stream.synchronize()


def _plane(array: _Array, index: tuple[int, ...], n_out: int) -> DeviceMatrix:
    """One matrix of an array [..., out, in]; a 1-D array is one row."""
    strides = array.strides if len(array.shape) > 1 else (0, *array.strides)
    start = sum(i * stride for i, stride in zip(index, strides, strict=False))
    address = array.address + start * _ITEM_BYTES[array.dtype]
    if strides[-1] == 0 and array.shape[-1] == 1:
        strides = (*strides[:-1], 1)
    return DeviceMatrix(address, array.dtype, n_out, array.shape[-1], strides[-2], strides[-1])


def _report(array: _Array, jobs: list[tuple[tuple[int, ...], Job]]) -> None:
    """Wait, and raise what was found first."""
    found = np.zeros((len(jobs), FOUND_BYTES // 8), np.uint64)
    for row, (_, job) in zip(found, jobs, strict=True):
        array.stream.copy_out(row, job.found)
    array.stream.synchronize()
    for row, (index, job) in zip(found, jobs, strict=True):
        try:
            report(job, row)
        except SourceValueError as error:
            raise error.at(index) from None


def dequantize(blocks: Any, quant_type: QuantType) -> Any:
    """Unpack uint8 [..., bytes per row] on a device to float32 [..., in] on the same."""
    if hasattr(blocks, "is_cuda"):
        blocks = blocks.contiguous()
    array = _open(blocks, "dequantize")
    check_bytes(array.dtype == "U8", array.dtype, array.shape, quant_type)
    row_elements = quant_type.row_elements(array.shape[-1])
    if not array.is_contiguous:
        raise LayoutError("expected rows that follow each other in memory")
    made, address = array.empty((*array.shape[:-1], row_elements), "F32")
    kernel = cuda_kernels.dequantizer(array.gpu, quant_type)
    n_blocks = prod(array.shape) // quant_type.block_bytes
    enqueue_dequantize(array.stream, kernel, quant_type, array.address, n_blocks, address)
    array.stream.synchronize()
    return made
