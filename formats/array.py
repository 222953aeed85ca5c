"""Say where the bytes of a tensor lie in a file, and read them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weightcast.errors import FormatError
from weightcast.formats.jax.latin1 import Latin1Text

if TYPE_CHECKING:
    from weightcast.formats.packed.rows import PackedSource


# Bytes of one element, for dtypes stored element by element. Names as in safetensors.
ITEM_BYTES: Final = {
    "BOOL": 1,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: dtype, shape, first byte and length of its dense storage.

    `axis_strides` (elements) is set where neighbours do not lie in row-major order. `text` is set
    for protocol 2 pickles, whose bytes are stored as Latin-1 characters in UTF-8. `packed` is set
    for a matrix in several parts: the place is that of its codes, and `nbytes` counts all parts.
    """

    path: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    axis_strides: tuple[int, ...] | None = None
    text: Latin1Text | None = None
    packed: PackedSource | None = field(default=None, compare=False, repr=False)

    @property
    def is_blocked(self) -> bool:
        """Whether elements share blocks, so that single ones have no address."""
        return self.dtype not in ITEM_BYTES

    @property
    def strides(self) -> tuple[int, ...]:
        """Distance between neighbours along each axis, in elements."""
        return dense_strides(self.shape) if self.axis_strides is None else self.axis_strides


def dense_strides(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    """Strides, in elements, of an array without gaps: row-major, or column-major if `fortran`."""
    strides = []
    step = 1
    for size in shape if fortran else reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides if fortran else reversed(strides))


def read_into(fd: int, path: Path, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from a file position. Raises FormatError if the file ends before it."""
    done = 0
    while done < len(buffer):
        # One call moves at most 2 GiB on Linux, and may move less.
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            raise FormatError(
                path, offset + done, f"the file ends {len(buffer) - done} bytes too early"
            )
        done += count


def read_stored(fd: int, array: StoredArray, start: int, buffer: memoryview) -> None:
    """Fill `buffer` with the bytes of `array` from its byte `start` on."""
    assert start >= 0
    assert start + len(buffer) <= array.nbytes
    if array.text is None:
        read_into(fd, array.path, array.offset + start, buffer)
    else:
        array.text.read(fd, array.path, start, buffer)


@dataclass(frozen=True, slots=True)
class Layout:
    """One file to be written: its header and where each tensor's data starts in the file."""

    header: bytes
    offsets: dict[str, int]
    size: int
