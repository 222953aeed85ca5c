"""Library use: quantize arrays that are already in memory, of this machine or of a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import Matrix, SourceValueError, dequantize_bytes, quantize_matrix
from weightcast.quant.cpu.metrics import measure_moments
from weightcast.quant.cuda import arrays as cuda_arrays
from weightcast.quant.metrics import MOMENTS, Errors, check_rows, of_moments
from weightcast.quant.types import TYPES, QuantType

if TYPE_CHECKING:
    import torch

_DTYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


def type_named(name: str) -> QuantType:
    """Look a type up by name, in any case. Raises LayoutError that lists the known ones."""
    try:
        return TYPES[str(name).upper()]
    except KeyError:
        raise LayoutError(f"unknown type {name!r}; known: {', '.join(sorted(TYPES))}") from None


def _as_numpy(x: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise LayoutError("cannot quantize a masked array: fill it first")
    if isinstance(x, np.ndarray):
        return x
    if not hasattr(x, "detach"):
        raise LayoutError(f"cannot quantize {type(x).__name__}: use a numpy array or torch tensor")
    tensor = x.detach()
    try:
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            # numpy has no bfloat16 of its own, so it passes as bits; neither step copies.
            bits: NDArray[np.int16] = tensor.view(torch.int16).numpy()
            return bits.view(ml_dtypes.bfloat16)
        array: NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError):  # NotImplementedError is a RuntimeError
        raise LayoutError(
            f"cannot quantize a tensor of {tensor.dtype} on {tensor.device}: use a dense CPU "
            "tensor of float32, float16 or bfloat16"
        ) from None
    return array


def _as_source(x: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    """Bring weights [..., in] of this machine's memory to numpy, without a copy if it can be."""
    array = _as_numpy(x)
    if array.dtype not in _DTYPES:
        raise LayoutError(f"cannot quantize {array.dtype}: use float32, float16 or bfloat16")
    if array.ndim == 0:
        raise LayoutError("cannot quantize a scalar: the last axis must be `in`")
    return array if array.flags.aligned else array.copy()


def _matrix(plane: NDArray[Any]) -> Matrix:
    """Describe weights [out, in] at any strides; those that go backwards are copied."""
    if any(stride < 0 or stride % plane.itemsize for stride in plane.strides):
        plane = np.ascontiguousarray(plane)
    n_out, n_in = plane.shape
    stride_out, stride_in = (s // plane.itemsize for s in plane.strides)
    span = 1 + (n_out - 1) * stride_out + (n_in - 1) * stride_in if plane.size else 0
    flat = np.lib.stride_tricks.as_strided(plane, (span,), (plane.itemsize,))
    return Matrix(flat, _DTYPES[plane.dtype], n_out, n_in, stride_out, stride_in)


def _as_importance(
    importance: NDArray[Any] | torch.Tensor | Sequence[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Bring importance for an array of this shape to float32 [..., in], one row a matrix."""
    given = importance if isinstance(importance, Sequence) else _as_numpy(importance)
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused with its place
            factors = np.asarray(given).astype(np.float32, casting="same_kind")
    except (TypeError, ValueError):
        raise LayoutError("importance must be real numbers: one for each value of a row") from None
    if factors.shape not in (shape[-1:], (*shape[:-2], shape[-1])):
        each = "" if len(shape) < 3 else f", or {[*shape[:-2], shape[-1]]}, a row for each matrix"
        raise LayoutError(
            f"importance of shape {list(factors.shape)} for an array of {list(shape)}: "
            f"it must be {[shape[-1]]}{each}"
        )
    return np.broadcast_to(factors, (*shape[:-2], shape[-1]))


Importance = Sequence[Any] | NDArray[Any] | Any  # Any: an array of torch or on a device


@overload
def quantize(
    x: NDArray[Any], type_name: str, importance: Importance | None = None
) -> NDArray[np.uint8]: ...
@overload
def quantize(x: Any, type_name: str, importance: Importance | None = None) -> Any: ...
def quantize(x: Any, type_name: str, importance: Importance | None = None) -> Any:
    """Pack [..., out, in] float32, float16 or bfloat16 into uint8 [..., out, bytes per row].

    Takes numpy arrays and torch tensors, at any strides, without a copy; those in this machine's
    memory give numpy arrays. torch tensors on a CUDA device are quantized there, on the current
    stream, and give tensors there; other arrays on a device that speak DLPack give views that do.
    The bytes are the same everywhere.

    A 1-D array is one row. `importance` weighs the errors of the columns, as llama.cpp's importance
    matrices do: [in] for all matrices, or [..., in] with one row for each, say [experts, in]; types
    that do not use it ignore its values.

    Raises LayoutError for other dtypes, rows that do not fill blocks, NaN and infinity, and
    importance that is missing, negative or of another shape; DeviceError if a device cannot be
    used.
    """
    quant_type = type_named(type_name)
    if cuda_arrays.is_on_device(importance):
        importance = cuda_arrays.to_host(importance)
    if cuda_arrays.is_on_device(x):
        shape = cuda_arrays.shape_of(x)
        weights = None if importance is None else _as_importance(importance, shape)
        return cuda_arrays.quantize(x, quant_type, weights)
    array = _as_source(x)
    if array.ndim == 1:
        return quantize(array[None, :], type_name, importance).reshape(-1)
    n_in = array.shape[-1]
    factors = None if importance is None else _as_importance(importance, array.shape)
    result = np.empty((*array.shape[:-1], quant_type.row_bytes(n_in)), np.uint8)
    for index in np.ndindex(array.shape[:-2]):
        weights = None if factors is None else factors[index]
        try:
            quantize_matrix(_matrix(array[index]), quant_type, result[index], weights)
        except SourceValueError as error:
            if not index:
                raise
            raise error.at(index) from None
    return result


@overload
def dequantize(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]: ...
@overload
def dequantize(blocks: Any, type_name: str) -> Any: ...
def dequantize(blocks: Any, type_name: str) -> Any:
    """Unpack uint8 [..., bytes per row] to float32 [..., in], where they lie."""
    quant_type = type_named(type_name)
    if cuda_arrays.is_on_device(blocks):
        return cuda_arrays.dequantize(blocks, quant_type)
    if not isinstance(blocks, np.ndarray):
        raise LayoutError(f"expected a numpy array of uint8 rows, got {type(blocks).__name__}")
    if blocks.dtype != np.uint8 or blocks.ndim == 0:
        raise LayoutError(f"expected uint8 rows, got {blocks.dtype} of {blocks.ndim} axes")
    row_elements = quant_type.row_elements(blocks.shape[-1])
    n_elements = row_elements * int(np.prod(blocks.shape[:-1], dtype=np.int64))
    flat = dequantize_bytes(quant_type, np.ascontiguousarray(blocks).reshape(-1), n_elements)
    return flat.reshape(*blocks.shape[:-1], row_elements)


def measure(x: Any, blocks: Any, type_name: str) -> Errors:
    """Compare weights [..., out, in] with the uint8 blocks [..., out, bytes per row] made of them.

    Takes what `quantize` takes and gives, both in the same memory; errors are measured there. Gives
    an entry for each row, [..., out], in numpy arrays: `measure(...).total().relative_rms` is of
    all the weights. NaN and infinity are no failure here. Raises LayoutError for other dtypes and
    shapes that do not go together, DeviceError if a device cannot be used.
    """
    quant_type = type_named(type_name)
    if cuda_arrays.is_on_device(x) or cuda_arrays.is_on_device(blocks):
        return cuda_arrays.measure(x, blocks, quant_type)
    array, rows = _as_source(x), _as_numpy(blocks)
    if rows.dtype != np.uint8:
        raise LayoutError(f"expected uint8 rows, got {rows.dtype}")
    check_rows(array.shape, rows.shape, quant_type)
    moments = np.zeros(array.shape[:-1], MOMENTS)
    for index in np.ndindex(array.shape[:-2]):
        matrix = _matrix(np.atleast_2d(array[index]))
        found = measure_moments(matrix, quant_type, np.ascontiguousarray(rows[index]))
        moments[index] = found.reshape(array.shape[len(index) : -1])
    return of_moments(moments, array.shape[-1])
