"""What CPython's own pickle machine makes of a pickle that the reader accepted.

It runs with stand-ins for the few globals that are allowed, so that nothing of numpy is fed with a
stranger's state. The machine is the one in Python: its memo is a dictionary, so that no index in
the file becomes an allocation.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightcast.formats.array import StoredArray, dense_strides, read_stored
from weightcast.formats.jax.arrays import QuantizedArray

_ML_DTYPES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_KINDS = {"b1": "BOOL", "i1": "I8", "u1": "U8", "f2": "F16", "f4": "F32", "f8": "F64"}
_KINDS |= {f"{kind}{n}": f"{kind.upper()}{8 * n}" for kind in "iu" for n in (2, 4, 8)}


class _Dtype:
    def __init__(self, kind: Any, align: Any, copy: Any) -> None:
        self.name = _KINDS[kind] if isinstance(kind, str) else kind.dtype
        assert (align, copy) == (False, True)

    def __setstate__(self, state: Any) -> None:
        assert state[0] == 3
        assert state[1] in ("<", "|", "=")


class _Array:
    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, is_fortran, self.data = state
        self.strides = dense_strides(self.shape, fortran=is_fortran)


class _Quantized:
    weight: _Array
    scales: _Array


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    if axes is not None:
        array.shape = tuple(shape[axis] for axis in axes)
        array.strides = tuple(dense_strides(shape)[axis] for axis in axes)
    return array


def _jax_array(function: Any, args: Any, state: Any, aval: Any) -> _Array:
    array = function(*args)
    array.__setstate__(state)
    return array


@dataclass(frozen=True)
class _ScalarType:
    dtype: str


_GLOBALS: dict[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): lambda *args: _Array()
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{("ml_dtypes", name): _ScalarType(dtype) for name, dtype in _ML_DTYPES.items()},
    **{(module, "QuantizedWeight8bit"): _Quantized for module in ("__main__", "model")},
    **{(module, "bytes"): bytes for module in ("builtins", "__builtin__")},
    ("numpy", "ndarray"): object,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    ("jax._src.array", "_reconstruct_array"): _jax_array,
}


class _Unpickler(pickle._Unpickler):  # type: ignore[misc,name-defined]
    def find_class(self, module: str, name: str) -> Any:
        return _GLOBALS[module, name]


def compare(path: Path, found: StoredArray | QuantizedArray) -> None:
    """Fail unless CPython's machine, and pickletools, see in the file what the reader saw."""
    raw = path.read_bytes()
    *_, last = pickletools.genops(raw)
    assert last[0].name == "STOP"
    assert last[2] == len(raw) - 1
    value = _Unpickler(io.BytesIO(raw)).load()
    if isinstance(found, QuantizedArray):
        assert type(value) is _Quantized
        _compare_array(value.weight, found.weight)
        _compare_array(value.scales, found.scales)
    else:
        _compare_array(value, found)


def _compare_array(expected: Any, found: StoredArray) -> None:
    assert type(expected) is _Array
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype.name
    assert found.strides == expected.strides
    buffer = bytearray(found.nbytes)
    with found.path.open("rb") as file:
        read_stored(file.fileno(), found, 0, memoryview(buffer))
    assert buffer == expected.data
