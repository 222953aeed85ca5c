"""Matrices turned around by the library's kernel, which numpy copies several times more slowly."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu import library


def copy_turned(dst: NDArray[Any], src: NDArray[Any]) -> None:
    """Copy a matrix [n, m] into another of its dtype: what `dst[...] = src` does.

    It is fast where the columns of `src` and the rows of `dst` are contiguous. They must not share
    memory.
    """
    item = src.itemsize
    assert dst.shape == src.shape
    assert dst.dtype == src.dtype
    if not _is_turned(src, dst) or item not in (1, 2, 4):
        np.copyto(dst, src)
        return
    assert dst.flags.writeable
    assert src.flags.aligned
    assert dst.flags.aligned
    columns, rows = src.shape
    status = _load().weightcast_transpose(
        src.ctypes.data,
        src.strides[1] // item,
        rows,
        columns,
        item,
        dst.ctypes.data,
        dst.strides[0] // item,
    )
    assert status == library.OK, status


def _is_turned(src: NDArray[Any], dst: NDArray[Any]) -> bool:
    item = src.itemsize
    if src.ndim != 2 or src.size == 0:
        return False
    lines = src.strides[1], dst.strides[0]
    is_contiguous = src.strides[0] == item and dst.strides[1] == item
    return is_contiguous and all(stride > 0 and stride % item == 0 for stride in lines)


def _load() -> ctypes.CDLL:
    """Load the library, with the types of what is called here."""
    loaded = library.load()
    argtypes: object = loaded.weightcast_transpose.argtypes
    if argtypes is None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        loaded.weightcast_transpose.argtypes = [
            pointer,
            number,
            number,
            number,
            ctypes.c_int32,
            pointer,
            number,
        ]
    return loaded
