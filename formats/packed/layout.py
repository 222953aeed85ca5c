"""What layouts of packed integers have in common: parts, segments, bit order, checks.

A layout stores one matrix [out, in] as several tensors, its parts: codes packed into bytes or
words, scales, maybe zero points. Rows are packed as they come, in any order and number; each
layout says where in its parts their bytes go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import ITEM_BYTES
from weightcast.quant.cpu.transpose import copy_turned
from weightcast.quant.groups import Groups, GroupType
from weightcast.quant.types import QuantType

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in the file: its name is that of the matrix and then `suffix`.

    `rows_each` rows of the matrix lie side by side in an element along `out_axis`; a part without
    that axis belongs to all rows.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    out_axis: int | None = 0
    rows_each: int = 1

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a part: `data` is uint8 [n, run_bytes], n runs of bytes, each contiguous.

    Run i starts at byte `offset + i * stride` of the part. The data may be those of the groups
    that were packed, not a copy.
    """

    suffix: str
    data: NDArray[np.uint8]
    offset: int
    stride: int


@dataclass(frozen=True, slots=True)
class Fp8Type:
    """Floats of 8 bits (e4m3) with a scale a row, or for each square of `block` x `block`."""

    block: int = 0


@dataclass(frozen=True, slots=True)
class Scheme:
    """Modules that share a type: groups, MXFP4, NVFP4 or FP8.

    `targets` are class names ("Linear"), module names, or "re:" and a regular expression that
    matches from a module name's start.
    """

    targets: tuple[str, ...]
    type: GroupType | Fp8Type | QuantType


class PackedLayout(Protocol):
    """One way to store groups as tensors."""

    @property
    def name(self) -> str: ...

    def parts(self, group_type: GroupType, n_out: int, n_in: int) -> tuple[Part, ...]:
        """Name the tensors of a matrix. Raises LayoutError if it cannot be stored so."""
        ...

    def row_multiple(self, group_type: GroupType) -> int:
        """Rows that share words: pieces start at multiples, and only the last ends elsewhere."""
        ...

    def pack(
        self, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        """Give the bytes of rows [row0, row0 + len(groups.codes))."""
        ...

    def constants(self, group_type: GroupType, n_out: int, n_in: int) -> dict[str, bytes]:
        """Give the parts that do not depend on the weights, whole; `pack` leaves them out."""
        ...

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], group_type: GroupType, n_out: int, n_in: int
    ) -> Groups:
        """Read a whole matrix. Raises LayoutError or MissingTensorError if a part is not right."""
        ...

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe the weights in config.json. Raises LayoutError if the layout cannot.

        `ignore` names modules that stay floats, as `targets` do. `block_modules` are the last
        parts of the names of a block's quantized modules, which only GPTQ writes.
        """
        ...


def group_count(group_type: GroupType, n_out: int, n_in: int) -> int:
    """Count the groups of a row. Raises LayoutError for a shape that no layout stores."""
    size = group_type.group_size
    if n_out < 1 or n_in < 1:
        raise LayoutError(f"a matrix [{n_out}, {n_in}] has no weights to pack")
    if size == 0:
        return 1
    if n_in % size:
        raise LayoutError(f"rows of {n_in} values are not whole groups of {size}")
    return n_in // size


def check_divides(layout: str, axis: str, count: int, divisor: int) -> None:
    """Raise LayoutError unless `count` values along an axis fill whole words."""
    if count % divisor:
        raise LayoutError(f"{layout} packs {divisor} values along `{axis}` a word, not {count}")


def check_rows(
    layout: PackedLayout, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
) -> None:
    """Raise LayoutError if rows [row0, ...) do not belong to the matrix or cannot be packed."""
    n_groups = group_count(group_type, n_out, n_in)
    codes, scales, zero_points = groups.codes, groups.scales, groups.zero_points
    rows = len(codes)
    end, multiple = row0 + rows, layout.row_multiple(group_type)
    if row0 < 0 or end > n_out or row0 % multiple or (end % multiple and end != n_out):
        raise LayoutError(
            f"rows {row0} to {end} of {n_out} cannot be packed: {layout.name} packs {multiple} at "
            "a time"
        )
    _check_array("codes", codes, np.dtype(np.uint8), (rows, n_in))
    _check_array("scales", scales, NUMPY_DTYPES[group_type.scale_dtype], (rows, n_groups))
    if (zero_points is None) != group_type.symmetric:
        raise LayoutError("zero points belong to asymmetric groups, and only to these")
    if zero_points is not None:
        _check_array("zero points", zero_points, np.dtype(np.uint8), (rows, n_groups))
    largest = (1 << group_type.bits) - 1
    for what, array in (("code", codes), ("zero point", zero_points)):
        if array is not None and array.size and array.max() > largest:
            raise LayoutError(f"{what} {array.max()} does not fit {group_type.bits} bits")


def check_parts(
    layout: str, wanted: Iterable[Part], found: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], ...]:
    """Give the parts in the order asked for; refuse missing ones, wrong dtypes and shapes."""
    arrays = []
    for part in wanted:
        if part.suffix not in found:
            raise MissingTensorError(f"{layout} needs {part.suffix}, which is not there")
        array = found[part.suffix]
        _check_array(part.suffix, array, NUMPY_DTYPES[part.dtype], part.shape)
        arrays.append(array)
    return tuple(arrays)


def _check_array(
    what: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise LayoutError(
            f"{what} is {array.dtype} {list(array.shape)}, where {dtype} {list(shape)} belongs"
        )


def unpack_rows(
    layout: PackedLayout,
    read: Callable[[Part, tuple[slice, ...]], NDArray[Any]],
    group_type: GroupType,
    shape: tuple[int, int],
    row0: int,
    row1: int,
) -> Groups:
    """Read rows [row0, row1) of a matrix [n_out, n_in] = `shape`.

    `read` gives a region of a part. Pieces start and end at multiples of `rows_each` of all parts,
    or at the end. Raises LayoutError or MissingTensorError if what it gives is not right.
    """
    n_in = shape[1]
    wanted = layout.parts(group_type, *shape)
    multiple = max(part.rows_each for part in wanted)
    if row0 % multiple or (row1 % multiple and row1 != shape[0]):
        raise LayoutError(f"rows {row0} to {row1}: {multiple} of {layout.name} are read at a time")
    constants = layout.constants(group_type, *shape)
    own_constants = layout.constants(group_type, row1 - row0, n_in)
    arrays = {}
    for part in wanted:
        each = part.rows_each
        rows = slice(row0 // each, -(-row1 // each))
        region = tuple(
            rows if axis == part.out_axis else slice(0, size)
            for axis, size in enumerate(part.shape)
        )
        array = read(part, region)
        if part.out_axis is None and array.tobytes() == constants.get(part.suffix):
            # Of the rows alone it would say something else: the shape of the matrix.
            array = np.frombuffer(own_constants[part.suffix], NUMPY_DTYPES[part.dtype])
        arrays[part.suffix] = array
    return layout.unpack(arrays, group_type, row1 - row0, n_in)


def packed_rows(
    layout: PackedLayout,
    segments: Iterable[Segment],
    group_type: GroupType,
    shape: tuple[int, int],
    row0: int,
    row1: int,
) -> Groups:
    """Read rows [row0, row1) of a matrix from their segments, as a reader does from a file.

    Raises LayoutError if a segment is not where a reader looks for these rows.
    """
    made = {segment.suffix: segment for segment in segments}
    constants = layout.constants(group_type, *shape)

    def read(part: Part, region: tuple[slice, ...]) -> NDArray[Any]:
        dtype = NUMPY_DTYPES[part.dtype]
        if part.suffix not in made:
            whole = np.frombuffer(constants[part.suffix], dtype)
            return whole.reshape(part.shape)[region]
        segment = made[part.suffix]
        lengths = [run.stop - run.start for run in region]
        row_bytes = dtype.itemsize * prod(part.shape[1:])
        first = region[0].start * row_bytes
        if len(region) > 1:
            first += region[1].start * dtype.itemsize
        one_run = len(segment.data) == 1
        if segment.offset != first or not (one_run or segment.stride == row_bytes):
            raise LayoutError(f"{part.suffix} of rows {row0} to {row1} is not where it belongs")
        found = segment.data.view(dtype)  # where it lies: runs need not follow each other
        return found.reshape(lengths) if one_run else found

    return unpack_rows(layout, read, group_type, shape, row0, row1)


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
