"""Shards of a JAX checkpoint: one pickle a file, an array or an int8 array with its scales.

A file holds a numpy array, a pickled `jax.Array`, or an object of class QuantizedWeight8bit whose
state is {"weight": int8, "scales": bfloat16}. The reader finds where the payloads lie and what
shape they have; nothing that the pickle names is imported or called (see pickle_machine.py).
Sources: ndarray.__reduce__ and __setstate__ in numpy (1.26 and 2.4), ArrayImpl.__reduce__ in
jax (0.4 to 0.10), checkpoint.py in xai-org/grok-1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from weightcast.errors import FormatError
from weightcast.formats.array import ITEM_BYTES, StoredArray, dense_strides
from weightcast.formats.jax.unpickler import Bytes, Global, Machine, Text, by_name

_RECONSTRUCT = {
    Global("numpy.core.multiarray", "_reconstruct"),
    Global("numpy._core.multiarray", "_reconstruct"),
}
_FROMBUFFER = {
    Global("numpy.core.numeric", "_frombuffer"),
    Global("numpy._core.numeric", "_frombuffer"),
}
_NDARRAY = Global("numpy", "ndarray")
_DTYPE = Global("numpy", "dtype")
_ENCODE = Global("_codecs", "encode")
_EMPTY_BYTES = {Global("__builtin__", "bytes"), Global("builtins", "bytes")}
_JAX_ARRAY = Global("jax._src.array", "_reconstruct_array")
# The released files say __main__; code that imports xai-org/grok-1's model.py writes `model`.
_QUANTIZED = {Global("__main__", "QuantizedWeight8bit"), Global("model", "QuantizedWeight8bit")}
_ML_DTYPES: Final = {
    Global("ml_dtypes", "bfloat16"): "BF16",
    Global("ml_dtypes", "float8_e4m3fn"): "F8_E4M3",
    Global("ml_dtypes", "float8_e5m2"): "F8_E5M2",
}
_NUMPY_DTYPES: Final = {
    "b1": "BOOL",
    "i1": "I8",
    "u1": "U8",
    "i2": "I16",
    "u2": "U16",
    "f2": "F16",
    "i4": "I32",
    "u4": "U32",
    "f4": "F32",
    "i8": "I64",
    "u8": "U64",
    "f8": "F64",
}
_ALLOWED: Final = by_name(
    *_RECONSTRUCT,
    *_FROMBUFFER,
    *_EMPTY_BYTES,
    *_QUANTIZED,
    *_ML_DTYPES,
    _NDARRAY,
    _DTYPE,
    _ENCODE,
    _JAX_ARRAY,
)
# numpy itself allows 64 axes; shapes of weights have at most a handful.
_MAX_AXES = 64


@dataclass(frozen=True)
class QuantizedArray:
    """int8 weight [..., in, out] and scales [..., groups, out] of one file."""

    weight: StoredArray
    scales: StoredArray


@dataclass(slots=True)
class _Dtype:
    name: str
    is_complete: bool = False


@dataclass(slots=True)
class _Array:
    """An array as the pickle describes it; `strides` only if not row-major."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    strides: tuple[int, ...] | None = None
    payload: Bytes | None = None


@dataclass(slots=True)
class _Quantized:
    weight: _Array | None = None
    scales: _Array | None = None


def read_pickle(path: Path) -> StoredArray | QuantizedArray:
    """Describe the array or quantized array in a pickle file; no payload is loaded.

    Raises FormatError for anything but such a file, UnsafePickleError if it names other globals.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        value = Machine(fd, path, _ALLOWED, _construct, _build).run()
        if isinstance(value, _Array):
            return _located(fd, path, value)
        if isinstance(value, _Quantized) and value.weight and value.scales:
            return QuantizedArray(
                _located(fd, path, value.weight), _located(fd, path, value.scales)
            )
    finally:
        os.close(fd)
    raise FormatError(path, None, "the pickle holds neither an array nor a QuantizedWeight8bit")


def _located(fd: int, path: Path, array: _Array) -> StoredArray:
    payload = array.payload
    if payload is None:
        raise FormatError(path, None, "the pickle describes an array without its data")
    text = None
    nbytes = payload.nbytes
    if payload.is_latin1_text:
        from weightcast.formats.jax.latin1 import scan  # only protocol 2 has such

        text = scan(fd, path, payload.offset, payload.nbytes)
        nbytes = text.nbytes
    expected = ITEM_BYTES[array.dtype] * prod(array.shape)
    if nbytes != expected:
        raise FormatError(
            path,
            payload.offset,
            f"{nbytes} bytes of data for {array.dtype} of shape {list(array.shape)}, "
            f"which takes {expected}",
        )
    return StoredArray(path, payload.offset, nbytes, array.dtype, array.shape, array.strides, text)


def _construct(function: Global, args: tuple[Any, ...]) -> Any:
    """Answer REDUCE and NEWOBJ; ValueError if the arguments are not what the writers write."""
    if function in _RECONSTRUCT:
        _check_empty_array_args(args)
        return _Array()
    if function in _FROMBUFFER:
        return _from_buffer(args)
    if function == _DTYPE:
        return _dtype(args)
    if function == _ENCODE:
        return _encoded(args)
    if function in _EMPTY_BYTES and args == ():
        return Bytes(0, 0)
    if function in _QUANTIZED and args == ():
        return _Quantized()
    if function == _JAX_ARRAY:
        return _jax_array(args)
    raise ValueError(f"{function.module}.{function.name} is called with unexpected arguments")


def _build(target: Any, state: Any) -> None:
    """Answer BUILD; ValueError if the state is not what the writers write."""
    if isinstance(target, _Array):
        _set_array_state(target, state)
    elif isinstance(target, _Dtype):
        _set_dtype_state(target, state)
    elif isinstance(target, _Quantized):
        _set_quantized_state(target, state)
    else:
        raise ValueError("a state is set on something that is not an array or a dtype")


def _check_empty_array_args(args: tuple[Any, ...]) -> None:
    if len(args) != 3 or args[0] != _NDARRAY or args[1] != (0,) or not isinstance(args[2], Bytes):
        raise ValueError("_reconstruct is called with unexpected arguments")


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_AXES:
        raise ValueError("an array's shape is not a short tuple")
    if any(type(size) is not int or size < 0 for size in value):
        raise ValueError("an array's shape holds something else than sizes")
    return value


def _complete_dtype(value: Any) -> str:
    if not isinstance(value, _Dtype) or not value.is_complete:
        raise ValueError("an array's dtype is not a complete dtype")
    return value.name


def _payload(value: Any) -> Bytes:
    if not isinstance(value, Bytes):
        raise ValueError("an array's data is not bytes (object arrays are not read)")
    return value


def _set_array_state(array: _Array, state: Any) -> None:
    if array.payload is not None:
        raise ValueError("an array's state is set twice")
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
        raise ValueError("an array's state is not (1, shape, dtype, is_fortran, data)")
    _, shape, dtype, is_fortran, data = state
    if type(is_fortran) is not bool:
        raise ValueError("an array's order is not a truth value")
    array.shape = _shape(shape)
    array.dtype = _complete_dtype(dtype)
    array.strides = dense_strides(array.shape, fortran=True) if is_fortran else None
    array.payload = _payload(data)


def _from_buffer(args: tuple[Any, ...]) -> _Array:
    if len(args) not in (4, 5) or not isinstance(args[3], Text):
        raise ValueError("_frombuffer is called with unexpected arguments")
    shape = _shape(args[2])
    array = _Array(shape, _complete_dtype(args[1]), None, _payload(args[0]))
    order = args[3].value
    if order == "F" and len(args) == 4:
        array.strides = dense_strides(shape, fortran=True)
    elif order == "K" and len(args) == 5:
        # The shape is that of memory; axis i of the array is axis axes[i] of it.
        axes = args[4]
        if not isinstance(axes, tuple) or any(type(axis) is not int for axis in axes):
            raise ValueError("an axis order is not a tuple of axes")
        if sorted(axes) != list(range(len(shape))):
            raise ValueError("an axis order is not a permutation of the axes")
        memory_strides = dense_strides(shape)
        array.shape = tuple(shape[axis] for axis in axes)
        array.strides = tuple(memory_strides[axis] for axis in axes)
    elif order != "C" or len(args) != 4:
        raise ValueError("an array's order is not C, F or K")
    return array


def _dtype(args: tuple[Any, ...]) -> _Dtype:
    if len(args) != 3 or args[1] is not False or args[2] is not True:
        raise ValueError("dtype is called with unexpected arguments")
    kind = args[0]
    if isinstance(kind, Global) and kind in _ML_DTYPES:
        return _Dtype(_ML_DTYPES[kind])
    if isinstance(kind, Text) and kind.value in _NUMPY_DTYPES:
        return _Dtype(_NUMPY_DTYPES[kind.value])
    name = kind.value if isinstance(kind, Text) else None
    raise ValueError(f"dtype {name!r} is not one that weights have")


def _set_dtype_state(dtype: _Dtype, state: Any) -> None:
    # (version, byte order, subarray, names, fields, item size, alignment, flags); the last three
    # differ between versions of ml_dtypes.
    if not isinstance(state, tuple) or len(state) != 8 or state[0] != 3:
        raise ValueError("a dtype's state is not that of a plain number")
    order, subarray, names, fields = state[1:5]
    if subarray is not None or names is not None or fields is not None:
        raise ValueError("a structured dtype")
    if not isinstance(order, Text) or order.value not in ("<", "|", "="):
        raise ValueError("big-endian data is not read: save the array in native byte order")
    dtype.is_complete = True


def _encoded(args: tuple[Any, ...]) -> Bytes:
    if (
        len(args) != 2
        or not isinstance(args[0], Text)
        or not isinstance(args[1], Text)
        or args[1].value != "latin1"
    ):
        raise ValueError("_codecs.encode is called with unexpected arguments")
    return Bytes(args[0].offset, args[0].nbytes, is_latin1_text=True)


def _jax_array(args: tuple[Any, ...]) -> _Array:
    # (numpy's _reconstruct, its arguments, the array's state, {"weak_type": ...}); jax before
    # 0.4.31 adds "named_shape".
    if len(args) != 4 or not isinstance(args[0], Global) or not isinstance(args[1], tuple):
        raise ValueError("_reconstruct_array is called with unexpected arguments")
    if args[0] not in _RECONSTRUCT:
        raise ValueError("_reconstruct_array is called with unexpected arguments")
    if not isinstance(args[3], dict) or not args[3].keys() <= {"weak_type", "named_shape"}:
        raise ValueError("a jax.Array's state has unexpected keys")
    _check_empty_array_args(args[1])
    array = _Array()
    _set_array_state(array, args[2])
    return array


def _set_quantized_state(quantized: _Quantized, state: Any) -> None:
    if quantized.weight is not None:
        raise ValueError("a QuantizedWeight8bit's state is set twice")
    if not isinstance(state, dict) or state.keys() != {"weight", "scales"}:
        raise ValueError("a QuantizedWeight8bit's state is not {weight, scales}")
    if not all(isinstance(value, _Array) for value in state.values()):
        raise ValueError("a QuantizedWeight8bit's weight and scales are not arrays")
    quantized.weight = state["weight"]
    quantized.scales = state["scales"]
