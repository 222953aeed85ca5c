"""Codes in bytes: their bit order, and where the bytes of rows go in a part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.packed.layout import Segment
from weightcast.quant.cpu.transpose import copy_turned


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack [rows, n] codes along rows into bytes, low nibble first; an odd one alone in a byte.

    Four bytes make a little-endian word, so this is also the order of words, lowest bits first.
    """
    if bits == 8:
        return np.ascontiguousarray(codes)
    low, high = codes[:, 0::2], codes[:, 1::2]
    packed = low.copy()
    packed[:, : high.shape[1]] |= high << 4
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[np.uint8]:
    """Undo `pack_codes`: the first n codes of each row; what follows them is padding."""
    if bits == 8:
        return np.ascontiguousarray(packed[:, :n])
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return np.ascontiguousarray(codes[:, :n])


def padded(array: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Add columns of zeros on the right, up to `columns`."""
    missing = columns - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing))) if missing else array


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """View a matrix as bytes, uint8 [rows, row bytes]; copies it only if it is not contiguous."""
    if array.flags.c_contiguous or array.strides[0] >= array.strides[1]:
        return np.ascontiguousarray(array).view(np.uint8)
    turned = np.empty(array.shape, array.dtype)
    copy_turned(turned, array)
    return turned.view(np.uint8)


def rows_of(suffix: str, array: NDArray[Any], row0: int) -> Segment:
    """Place rows of a part from its row `row0` on: one run."""
    data = as_bytes(array)
    return Segment(suffix, data.reshape(1, -1), row0 * data.shape[1], data.size)


def columns_of(suffix: str, array: NDArray[Any], offset: int, stride: int) -> Segment:
    """Place columns of a part: a run of each of its rows, which are `stride` bytes long."""
    return Segment(suffix, as_bytes(array), offset, stride)
