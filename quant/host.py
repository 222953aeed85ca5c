"""Arrays of this machine's memory, of numpy and torch, as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import Matrix

if TYPE_CHECKING:
    import torch

_DTYPES: Final = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
# Dtypes of torch that numpy has not: integers of their size, and what ml_dtypes calls them.
_AS_BITS: Final = {
    "torch.bfloat16": ("int16", np.dtype(ml_dtypes.bfloat16)),
    "torch.float8_e4m3fn": ("uint8", np.dtype(ml_dtypes.float8_e4m3fn)),
}


FLOATS: Final = "use float32, float16 or bfloat16"
CODES: Final = "give what quantize made"


def as_numpy(x: Any, do: str = "quantize", dtypes: str = FLOATS) -> NDArray[Any]:
    """Bring an array to numpy without a copy: torch's, or what speaks `__array__`.

    Raises LayoutError for what is no dense array in this machine's memory; the message says what
    cannot be done with it, and for a dtype that numpy has not, which `dtypes` can be used.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise LayoutError(f"cannot {do} a masked array: fill it first")
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "detach"):
        return _from_torch(x.detach(), do, dtypes)
    if not hasattr(x, "__array__"):
        raise LayoutError(f"cannot {do} {type(x).__name__}: use a numpy array or torch tensor")
    return np.asarray(x)


def _from_torch(tensor: torch.Tensor, do: str, dtypes: str) -> NDArray[Any]:
    import torch

    try:
        if str(tensor.dtype) in _AS_BITS:
            # numpy has no such dtypes of its own, so they pass as bits; neither step copies.
            bits_name, dtype = _AS_BITS[str(tensor.dtype)]
            bits: NDArray[Any] = tensor.view(getattr(torch, bits_name)).numpy()
            return bits.view(dtype)
        array: NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError):  # NotImplementedError is a RuntimeError
        raise LayoutError(f"cannot {do} {_why_not_numpy(tensor, dtypes)}") from None
    return array


def _why_not_numpy(tensor: torch.Tensor, dtypes: str) -> str:
    """Say why numpy cannot read a tensor, and what to do: by its dtype, or by where it lies."""
    import torch

    try:
        if str(tensor.dtype) not in _AS_BITS:
            torch.empty(0, dtype=tensor.dtype).numpy()
    except (TypeError, RuntimeError):
        return f"a tensor of {tensor.dtype}: {dtypes}"
    layout = "" if tensor.layout == torch.strided else f"of layout {tensor.layout} "
    return f"a tensor {layout}on {tensor.device}: use a dense tensor in this machine's memory"


def like(x: object, array: NDArray[Any]) -> Any:
    """Give an array as what `x` is, a tensor of torch or an array of numpy, without a copy."""
    if not hasattr(x, "detach"):
        return array
    import torch

    for torch_name, (bits_name, dtype) in _AS_BITS.items():
        if array.dtype == dtype:
            bits = torch.from_numpy(array.view(bits_name))
            return bits.view(getattr(torch, torch_name.removeprefix("torch.")))
    return torch.from_numpy(array)


def as_source(x: Any, do: str = "quantize") -> NDArray[Any]:
    """Bring weights [..., in] of this machine's memory to numpy, without a copy if it can be."""
    array = as_numpy(x, do)
    if array.dtype not in _DTYPES:
        raise LayoutError(f"cannot {do} {array.dtype}: {FLOATS}")
    if array.ndim == 0:
        raise LayoutError(f"cannot {do} a scalar: the last axis must be `in`")
    return array if array.flags.aligned else array.copy()


def matrix_of(plane: NDArray[Any]) -> Matrix:
    """Describe weights [out, in] at any strides; those that go backwards are copied."""
    if any(stride < 0 or stride % plane.itemsize for stride in plane.strides):
        plane = np.ascontiguousarray(plane)
    n_out, n_in = plane.shape
    stride_out, stride_in = (s // plane.itemsize for s in plane.strides)
    span = 1 + (n_out - 1) * stride_out + (n_in - 1) * stride_in if plane.size else 0
    flat = np.lib.stride_tricks.as_strided(plane, (span,), (plane.itemsize,))
    return Matrix(flat, _DTYPES[plane.dtype], n_out, n_in, stride_out, stride_in)


def as_importance(importance: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bring importance for an array of this shape to float32 [..., in], one row a matrix."""
    given = importance if isinstance(importance, Sequence) else as_numpy(importance)
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
