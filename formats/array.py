"""Say where the bytes of a tensor lie in a file, and read them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import copysign, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from weightcast.errors import FormatError
from weightcast.quant.types import WeightType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
Decode = Callable[[int, int], "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """Companions of the bytes of rows in a buffer.

    `scales`, float32 [groups, rows], belong to int8 codes; `decode` turns rows [row0, row1) of
    these into float32 [row1 - row0, in].
    """

    scales: NDArray[np.float32] | None = None
    decode: Decode | None = None


class ByteReader(Protocol):
    """Reads an array whose bytes are stored in another form, so that they have no address."""

    def read(self, fd: int, path: Path, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes from position `start` on. Raises FormatError."""
        ...


class RowReader(Protocol):
    """Reads rows of a matrix that is stored in several parts."""

    @property
    def type(self) -> WeightType: ...

    @property
    def layout(self) -> str:
        """Name the layout of the directory, a key of formats.packed.LAYOUTS."""
        ...

    @property
    def stored_as(self) -> Any:
        """Give the way that the matrix is stored, a formats.packed.layout.MatrixLayout."""
        ...

    @property
    def parts(self) -> Mapping[str, StoredArray]:
        """Map the suffixes of the parts' names to the parts."""
        ...

    @property
    def memory_dtype(self) -> str:
        """Name what rows are in memory: I8 (with scales), GGUF blocks of a type, or ENCODED."""
        ...

    @property
    def scales(self) -> tuple[StoredArray, tuple[int, int]] | None:
        """Give the scales of int8 codes and their strides as [out, groups]."""
        ...

    @property
    def row_multiple(self) -> int:
        """Count the rows that share words or scales: reads start at multiples."""
        ...

    @property
    def row_bytes(self) -> int:
        """Count the bytes of a row in memory."""
        ...

    @property
    def working_bytes(self) -> int:
        """Count the bytes that reading a row takes beside these."""
        ...

    def read(self, row0: int, row1: int, buffer: memoryview) -> LoadedRows:
        """Read rows [row0, row1) into `buffer`, `row_bytes` each. Raises CheckpointError."""
        ...


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: dtype, shape, first byte and length of its dense storage.

    `axis_strides` (elements) is set where neighbours do not lie in row-major order. `text` reads
    the bytes of protocol 2 pickles, which are stored as Latin-1 characters in UTF-8. `packed` reads
    a matrix in several parts: path and offset are those of its codes, `nbytes` counts all parts.
    """

    path: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    axis_strides: tuple[int, ...] | None = None
    text: ByteReader | None = None
    packed: RowReader | None = field(default=None, compare=False, repr=False)

    @property
    def is_blocked(self) -> bool:
        """Tell whether elements share blocks, so that single ones have no address."""
        return self.dtype not in ITEM_BYTES

    @property
    def strides(self) -> tuple[int, ...]:
        """Give the distance between neighbours along each axis, in elements."""
        return dense_strides(self.shape) if self.axis_strides is None else self.axis_strides


def dense_strides(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    """Compute strides, in elements, of an array without gaps: row-major, or column-major."""
    strides = []
    step = 1
    for size in shape if fortran else reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides if fortran else reversed(strides))


def rounded_float32(value: float) -> float:
    """Round to float32, to nearest even; what is beyond becomes infinite."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return copysign(inf, value)
    return float(rounded)


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
class FileLayout:
    """One file to be written: its header and where each tensor's data starts in the file."""

    header: bytes
    offsets: dict[str, int]
    size: int
