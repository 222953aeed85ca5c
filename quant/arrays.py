"""Library use: quantize arrays that are already in memory, of this machine or of a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.backend import Backend, CpuBackend
from weightcast.quant.coded import Quantized, quantize_coded
from weightcast.quant.cpu.library import (
    SourceValueError,
    bad_importance,
    dequantize_bytes,
)
from weightcast.quant.cpu.metrics import measure_moments
from weightcast.quant.cuda import arrays as cuda_arrays
from weightcast.quant.feedback import ArrayFactors
from weightcast.quant.host import CODES, as_importance, as_numpy, as_source, like, matrix_of
from weightcast.quant.metrics import MOMENTS, Errors, check_bytes, check_rows, of_moments
from weightcast.quant.names import type_named, weight_type_named
from weightcast.quant.search import Search, parse_search
from weightcast.quant.types import QuantType

# Types with scales apart that type checkers know; others of the kind work alike.
Coded = Literal[
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g256",
    "int4-channel",
    "int8-g32",
    "int8-g64",
    "int8-g128",
    "int8-g256",
    "int8-channel",
    "int4-g32-asym",
    "int4-g64-asym",
    "int4-g128-asym",
    "int4-g256-asym",
    "int4-channel-asym",
    "int8-g32-asym",
    "int8-g64-asym",
    "int8-g128-asym",
    "int8-g256-asym",
    "int8-channel-asym",
    "fp8",
    "fp8-block",
    "fp8-tensor",
]
Rule = Literal["ggml", "least-error"]
Importance = Sequence[Any] | NDArray[Any] | Any  # Any: an array of torch or on a device


@overload
def quantize(
    x: Any,
    type_name: Coded,
    importance: Importance | None = None,
    search: Rule = "ggml",
    effort: int | None = None,
    *,
    hessian: Any | None = None,
) -> Quantized: ...
@overload
def quantize(
    x: NDArray[Any],
    type_name: str,
    importance: Importance | None = None,
    search: Rule = "ggml",
    effort: int | None = None,
    *,
    hessian: Any | None = None,
) -> NDArray[np.uint8]: ...
@overload
def quantize(
    x: Any,
    type_name: str,
    importance: Importance | None = None,
    search: Rule = "ggml",
    effort: int | None = None,
    *,
    hessian: Any | None = None,
) -> Any: ...
def quantize(
    x: Any,
    type_name: str,
    importance: Importance | None = None,
    search: Rule = "ggml",
    effort: int | None = None,
    *,
    hessian: Any | None = None,
) -> Any:
    """Quantize weights [..., out, in] of float32, float16 or bfloat16; [in] is one row.

    GGUF's types ("Q4_K", "Q8_0", "MXFP4", in any case) give the bytes of a file, uint8 [..., out,
    bytes per row]. Types with scales apart ("int4-g128", "int8-channel", "int4-g32-asym", "fp8",
    "fp8-block") give a `Quantized`: codes, scales, maybe zero points.

    Takes arrays of numpy and torch, and what else numpy can read, at any strides, without a copy.
    torch in gives torch out. torch tensors on a CUDA device are quantized there, on the current
    stream; other arrays on a device that speak DLPack give views that do. Devices make GGUF's
    types; the bytes are the same everywhere.

    `importance` weighs the errors of the columns, as llama.cpp's importance matrices do: [in] for
    all matrices, or [..., in] with one row for each, say [experts, in]. Types that do not use it
    ignore its values; IQ2_XXS, IQ2_XS and IQ1_S cannot be made without.

    `search` chooses scales and codes: by "ggml"'s rule, to llama.cpp's bytes, or with "least-error"
    for the least squared error in the same format, weighted if there is an importance, which all
    types use then but plain floats. `effort` is 1, 2 (the default) or 3: more takes longer and
    gains a little.

    `hessian` are the second moments of the matrices' inputs, the sum of x x' over some tokens: [in,
    in] for all matrices, or [..., in, in]. Codes are then chosen with error feedback (GPTQ), which
    makes the errors of the products with such inputs less, never more; its diagonal is the
    importance if no other is given. Matrices for which all of it is 0 are made without, and so are
    plain floats, Q8_0, 8-bit floats, IQ1 to IQ3, ternary types, Q1_0 and Q2_0.

    Raises LayoutError for unknown types, other dtypes, rows that do not fill blocks or groups, NaN,
    infinity and values beyond the type's range with their place, importance that is missing,
    negative or of another shape, and a hessian that is none, or of another shape; RequestError for
    another search or effort; DeviceError if a device cannot be used.

    >>> weights = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    >>> weightcast.quantize(weights, "Q4_K").shape
    (4, 144)
    >>> weightcast.quantize(weights, "Q4_K", search="least-error", effort=3).shape
    (4, 144)
    >>> weightcast.quantize(weights, "int4-g128").scales.shape
    (4, 2)
    """
    weight_type, rule = weight_type_named(type_name), parse_search(search, effort)
    if cuda_arrays.is_on_device(importance):
        importance = cuda_arrays.to_host(importance)
    if cuda_arrays.is_on_device(hessian) or (hessian is not None and cuda_arrays.is_on_device(x)):
        raise LayoutError("error feedback works in this machine's memory: copy the arrays there")
    if not isinstance(weight_type, QuantType):
        if cuda_arrays.is_on_device(x):
            raise LayoutError(f"{type_name} is made in this machine's memory: copy the array there")
        return quantize_coded(x, weight_type, importance, rule, hessian)
    if cuda_arrays.is_on_device(x):
        shape = cuda_arrays.shape_of(x)
        weights = None if importance is None else as_importance(importance, shape)
        return cuda_arrays.quantize(x, weight_type, weights, rule)
    return like(x, _quantized(as_source(x), weight_type, importance, rule, hessian))


def _quantized(
    array: NDArray[Any],
    quant_type: QuantType,
    importance: Importance | None,
    search: Search,
    hessian: Any | None,
) -> NDArray[np.uint8]:
    if array.ndim == 1:
        return _quantized(array[None, :], quant_type, importance, search, hessian).reshape(-1)
    factors = None if importance is None else as_importance(importance, array.shape)
    moments = None if hessian is None else ArrayFactors(hessian, array.shape)
    result = np.empty((*array.shape[:-1], quant_type.row_bytes(array.shape[-1])), np.uint8)
    for index in np.ndindex(array.shape[:-2]):
        weights = None if factors is None else factors[index]
        backend: Backend = CpuBackend()
        if moments is not None:
            backend, weights = moments.backend(index, weights)
        try:
            backend.quantize(matrix_of(array[index]), quant_type, result[index], weights, search)
        except SourceValueError as error:
            raise error.at(index) from None
    return result


@overload
def dequantize(blocks: Quantized, type_name: str | None = None) -> Any: ...
@overload
def dequantize(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]: ...
@overload
def dequantize(blocks: Any, type_name: str) -> Any: ...
def dequantize(blocks: Any, type_name: str | None = None) -> Any:
    """Unpack what `quantize` gave, where it lies: float32 [..., in].

    Takes blocks, uint8 [..., bytes per row], with the name of their type, or a `Quantized`; torch
    in gives torch out. Raises LayoutError for unknown types, other dtypes, and rows of bytes that
    are no whole blocks; DeviceError if a device cannot be used.

    >>> blocks = weightcast.quantize(np.ones((4, 256), np.float32), "Q8_0")
    >>> weightcast.dequantize(blocks, "Q8_0").shape
    (4, 256)
    """
    if isinstance(blocks, Quantized):
        _check_type(blocks, type_name)
        return blocks.dequantize()
    quant_type = _blocks_type(type_name)
    if cuda_arrays.is_on_device(blocks):
        return cuda_arrays.dequantize(blocks, quant_type)
    rows = as_numpy(blocks, "dequantize", CODES)
    check_bytes(rows.dtype == np.uint8, rows.dtype, rows.shape, quant_type)
    row_elements = quant_type.row_elements(rows.shape[-1])
    n_elements = row_elements * int(np.prod(rows.shape[:-1], dtype=np.int64))
    flat = dequantize_bytes(quant_type, np.ascontiguousarray(rows).reshape(-1), n_elements)
    return like(blocks, flat.reshape(*rows.shape[:-1], row_elements))


def _blocks_type(type_name: str | None) -> QuantType:
    if type_name is None:
        raise LayoutError("name the type of the blocks, such as 'Q4_K'")
    return type_named(type_name)


def _check_type(quantized: Quantized, type_name: str | None) -> None:
    """Raise LayoutError if a type is named that is not the weights' own."""
    if type_name is not None:
        label = weight_type_named(type_name).label.lower()
        if label != quantized.type:
            raise LayoutError(f"these weights are {quantized.type}, not {label}")


def _checked_importance(importance: Importance, x: Any) -> NDArray[np.float32]:
    """Bring the importance of weights to float32 [..., in]. Raises LayoutError."""
    if cuda_arrays.is_on_device(importance):
        importance = cuda_arrays.to_host(importance)
    shape = cuda_arrays.shape_of(x) if cuda_arrays.is_on_device(x) else as_source(x).shape
    factors = as_importance(importance, shape)
    bad = np.argwhere(~((factors >= 0) & (factors < np.inf)))
    if len(bad):
        raise bad_importance(int(bad[0, -1]))
    return factors


def measure(
    x: Any, blocks: Any, type_name: str | None = None, importance: Importance | None = None
) -> Errors:
    """Compare weights [..., out, in] with what `quantize` made of them.

    `blocks` are uint8 [..., out, bytes per row], with the name of their type, or a `Quantized`.
    Both must be in the same memory, and are measured there. Gives an entry for each row, [...,
    out], in arrays of numpy; `.total()` is of all the weights. NaN and infinity are no failure.

    `importance`, as `quantize` takes it, weighs the squares of `weighted_relative_rms` and
    `weighted_sqnr_db`, which are NaN without, whatever the type makes of it.

    Raises LayoutError for other dtypes, shapes that do not go together, and importance that is
    negative or not finite; DeviceError if a device cannot be used.

    >>> weights = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    >>> errors = weightcast.measure(weights, weightcast.quantize(weights, "Q8_0"), "Q8_0")
    >>> errors.relative_rms.shape
    (4,)
    >>> bool(errors.total().sqnr_db > 40)
    True
    """
    factors = None if importance is None else _checked_importance(importance, x)
    if isinstance(blocks, Quantized):
        _check_type(blocks, type_name)
        shape = tuple(getattr(x, "shape", ()))
        if shape != blocks.shape:
            raise LayoutError(f"codes {list(blocks.shape)} for weights of {list(shape)}")
        values = np.ascontiguousarray(as_numpy(blocks.dequantize()))
        return measure(x, like(x, values.view(np.uint8)), "F32", factors)
    quant_type = _blocks_type(type_name)
    if cuda_arrays.is_on_device(x) or cuda_arrays.is_on_device(blocks):
        return cuda_arrays.measure(x, blocks, quant_type, factors)
    array, rows = as_source(x, "measure"), as_numpy(blocks, "measure", CODES)
    check_bytes(rows.dtype == np.uint8, rows.dtype, rows.shape, quant_type)
    check_rows(array.shape, rows.shape, quant_type)
    moments = np.zeros(array.shape[:-1], MOMENTS)
    for index in np.ndindex(array.shape[:-2]):
        matrix = matrix_of(np.atleast_2d(array[index]))
        weights = None if factors is None else factors[index]
        found = measure_moments(matrix, quant_type, np.ascontiguousarray(rows[index]), weights)
        moments[index] = found.reshape(array.shape[len(index) : -1])
    return of_moments(moments, array.shape[-1], is_weighted=factors is not None)
