"""Matrices put together from several windows, or computed from one: parts, and what to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Final

from weightcast.converters.graph.view import Runs, View, is_near, runs_of
from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.quant.types import F32, FLOAT_NAMES, I8, TYPES

# Regions of a slab start at cache lines.
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Window:
    """Elements of decoded rows [n, length], taken at strides from `start` on: a matrix `shape`."""

    start: int
    shape: tuple[int, int]
    strides: tuple[int, int]

    def has_whole_rows(self, length: int) -> bool:
        """Tell whether each of its rows is a whole decoded row."""
        rows_apart, rest = divmod(self.strides[0], length)
        is_aligned = not rest and not self.start % length
        return is_aligned and rows_apart > 0 and self.shape[1] == length and self.strides[1] == 1


@dataclass(frozen=True, slots=True)
class Part:
    """A window [n, m] and its place in a matrix.

    Element (i, j) goes to row `row0 + i * row_step`, column `col0 + j * col_step`, after each
    (scale, shift) of `affine` in turn was applied to it, as `tensor.Affine` says. Elements of
    blocks and of packed matrices have no address: `window` takes those that are wanted from the
    decoded rows of `view`.
    """

    view: View
    row0: int = 0
    col0: int = 0
    row_step: int = 1
    col_step: int = 1
    affine: tuple[tuple[float, float], ...] = ()
    window: Window | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Give its rows and columns."""
        return self.view.shape if self.window is None else self.window.shape

    @property
    def is_plain(self) -> bool:
        """Tell whether single elements have an address."""
        return not self.view.array.is_blocked

    @property
    def dtype(self) -> str:
        """Name the dtype, or the type of blocks, that its rows have when put in place."""
        view, window = self.view, self.window
        is_kept = window is None or (view.is_blocked and window.has_whole_rows(view.shape[1]))
        if self.affine or not is_kept or (view.is_encoded and not view.is_blocked):
            return F32.name
        return view.dtype

    def rows_in(self, out0: int, out1: int) -> range:
        """Number its rows that are among rows [out0, out1) of the matrix."""
        n_out = self.shape[0]
        first, last = (
            min(n_out, -(-max(0, out - self.row0) // self.row_step)) for out in (out0, out1)
        )
        return range(first, last)

    def stored_rows(self, rows: range) -> range:
        """Number the rows of `view` to read for some of its rows, at least one."""
        first, last = rows[0], rows[-1]
        if self.window is not None:
            (stride_out, stride_in), length = self.window.strides, self.view.shape[1]
            width = (self.window.shape[1] - 1) * stride_in
            first = (self.window.start + first * stride_out) // length
            last = (self.window.start + last * stride_out + width) // length
        multiple = self.view.row_multiple
        stop = -(-(last + 1) // multiple) * multiple
        return range(first // multiple * multiple, min(stop, self.view.shape[0]))


@dataclass(frozen=True, slots=True)
class Region:
    """One read, shared by rows of several parts: `members` are the parts and their row numbers.

    It covers `runs` of a plain array, or `rows` of a `view` on blocks or a packed matrix.
    """

    members: tuple[tuple[Part, range], ...]
    view: View
    runs: Runs | None = None
    rows: range = range(0)

    @property
    def nbytes(self) -> int:
        """Count the bytes that it takes in memory."""
        if self.runs is not None:
            return self.runs.nbytes
        return self.view.slab_bytes(self.rows.start, self.rows.stop)

    @property
    def aligned_bytes(self) -> int:
        """Count the bytes from its start to the next region in the buffer."""
        return -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def working_bytes(self) -> int:
        """Count the bytes of memory beside the buffer that reading it takes."""
        packed = self.view.array.packed
        return 0 if packed is None else len(self.rows) * packed.working_bytes

    @property
    def bytes_to_read(self) -> int:
        """Count the bytes to read from files."""
        if self.runs is not None:
            return self.runs.nbytes
        return self.view.bytes_to_read(self.rows.start, self.rows.stop)

    @property
    def order(self) -> tuple[Path, int, int]:
        """Give a sort key: what is read in this order is read front to back."""
        first = self.rows.start if self.runs is None else self.runs.first
        return self.view.path, self.view.array.offset, first


@dataclass(frozen=True, slots=True)
class Assembly:
    """A matrix [out, in] of parts that fill it without overlap, with the interface of a View.

    Slabs hold the parts as they are stored; workers put pieces of rows together. `dtype` is the
    parts' common one (a float, blocks of whole rows, int8 with scales for groups of one size),
    else F32.
    """

    shape: tuple[int, int]
    parts: tuple[Part, ...]
    dtype: str
    group_size: int | None = None

    @property
    def item_bytes(self) -> int:
        """Count the bytes of a value in memory; KeyError for blocks."""
        return ITEM_BYTES[self.dtype]

    @property
    def is_blocked(self) -> bool:
        """Tell whether rows are quantized blocks in memory."""
        return self.dtype not in ITEM_BYTES

    @property
    def is_packed(self) -> bool:
        """Tell whether a part has codes and scales in separate tensors, as in serving layouts."""
        return any(part.view.is_packed for part in self.parts)

    @property
    def is_encoded(self) -> bool:
        """Tell whether rows are made anew before use: always."""
        return True

    @property
    def is_readable(self) -> bool:
        """Tell whether kernels can read the rows of all parts."""
        return all(part.view.is_readable for part in self.parts)

    @property
    def row_multiple(self) -> int:
        """Give 1: reads start anywhere, and include the rows that share words if need be."""
        return 1

    @property
    def views(self) -> tuple[View, ...]:
        """List the windows that the matrix is made of."""
        return tuple(part.view for part in self.parts)

    @property
    def single(self) -> View | None:
        """Give None: there is no one window."""
        return None

    @property
    def path(self) -> Path:
        """Name the file of the first part for messages."""
        return self.parts[0].view.path

    @property
    def order(self) -> tuple[Path, int, int]:
        """Give a sort key: what is read in this order is read front to back."""
        return min(part.view.order for part in self.parts)

    @property
    def is_along_out(self) -> bool:
        """Tell whether most of it is stored [in, out], neighbours along `out` side by side."""
        balance = 0
        for part in self.parts:
            (n_out, n_in), (stride_out, stride_in) = part.shape, part.view.strides
            balance += n_out * n_in * (1 if part.is_plain and stride_out < stride_in else -1)
        return balance > 0

    def parts_in(self, out0: int, out1: int) -> Iterator[tuple[Part, range]]:
        """Find the parts that rows [out0, out1) are made of, with the numbers of their rows."""
        for part in self.parts:
            if rows := part.rows_in(out0, out1):
                yield part, rows

    def part_at(self, out: int, in_: int) -> Part:
        """Find the part that element (out, in) lies in."""
        return next(
            part
            for part, rows in self.parts_in(out, out + 1)
            if in_ in range(part.col0, part.col0 + part.shape[1] * part.col_step, part.col_step)
        )

    def regions(self, out0: int, out1: int) -> list[Region]:
        """Plan what to read for rows [out0, out1), from front to back in each file."""
        plain: list[_Member] = []
        encoded: list[_Member] = []
        for member in self.parts_in(out0, out1):
            (plain if member[0].is_plain else encoded).append(member)
        return sorted([*_plain(plain), *_encoded(encoded)], key=lambda region: region.order)

    def slab_bytes(self, out0: int, out1: int) -> int:
        """Count the bytes of the buffer that rows [out0, out1) are read into."""
        return sum(region.aligned_bytes for region in self.regions(out0, out1))

    def bytes_to_read(self, out0: int, out1: int) -> int:
        """Count the bytes to read for rows [out0, out1)."""
        return sum(region.bytes_to_read for region in self.regions(out0, out1))

    def _bytes_to_hold(self, out0: int, out1: int) -> int:
        """Count the bytes of memory that rows [out0, out1) take while they are read."""
        regions = self.regions(out0, out1)
        working = max(region.working_bytes for region in regions)
        return sum(region.aligned_bytes for region in regions) + working

    def rows_per_slab(self, limit_bytes: int) -> int:
        """Count the rows that fit a slab of `limit_bytes`, at least one.

        All slabs that follow each other with so many rows fit, from row 0 on.
        """
        n_out = self.shape[0]
        total = self._bytes_to_hold(0, n_out)
        if total <= limit_bytes:
            return n_out
        # Slabs that end where parts do read no part twice.
        grain = gcd(*(part.row0 - part.row0 % part.row_step for part in self.parts)) or 1
        rows = max(1, limit_bytes * n_out // total)
        while rows > 1:
            if rows > grain:
                rows -= rows % grain
            starts = range(0, n_out, rows)
            most = max(self._bytes_to_hold(start, min(start + rows, n_out)) for start in starts)
            if most <= limit_bytes:
                break
            rows = min(rows - 1, max(1, rows * limit_bytes // most))
        return rows

    @property
    def decoded_row_bytes(self) -> int:
        """Count the bytes that a row takes while it is put together, with what it is cut from."""
        cut_bytes = [0]
        for part in self.parts:
            if part.window is not None:
                length = part.view.shape[1]
                stored_rows = -(-part.window.strides[0] // (length * part.row_step))
                cut_bytes.append(4 * length * stored_rows)
        return 4 * self.shape[1] + max(cut_bytes)

    def piece_bytes(self, rows: int) -> int:
        """Count the bytes of `rows` rows as they are put together, at most."""
        return rows * self.shape[1] * ITEM_BYTES[F32.name]


def assemble(shape: tuple[int, int], parts: Sequence[Part]) -> Assembly:
    """Make an assembly of parts that fill a matrix, and find the dtype that they share."""
    ordered = tuple(sorted(parts, key=lambda part: (part.row0, part.col0)))
    dtypes = {part.dtype for part in ordered}
    dtype = dtypes.pop() if len(dtypes) == 1 else F32.name
    if dtype == I8.name:
        sizes = {_group_size(part) for part in ordered}
        size = sizes.pop() if len(sizes) == 1 else None
        return Assembly(shape, ordered, dtype if size else F32.name, size)
    is_blocked = dtype in TYPES and dtype not in FLOAT_NAMES
    if is_blocked and any(part.shape[1] != shape[1] for part in ordered):
        dtype = F32.name
    return Assembly(shape, ordered, dtype)


def _group_size(part: Part) -> int | None:
    """Give the group size of an int8 part, or None if its groups are none where it is put."""
    size = part.view.group_size
    is_in_place = size is not None and part.col_step == 1 and not part.col0 % size
    return size if is_in_place else None


def _plain(members: Iterable[_Member]) -> Iterator[Region]:
    """Plan to read plain parts together that are interleaved or adjacent in an array."""
    spread: dict[tuple[StoredArray, int, int], list[_Read]] = defaultdict(list)
    for part, rows in members:
        runs = runs_of(part.view, rows.start, rows.stop)
        spread[runs.array, runs.count, runs.step].append((runs, ((part, rows),)))
    whole: dict[StoredArray, list[_Read]] = defaultdict(list)
    for (array, _, _), reads in spread.items():
        for runs, owners in _joined(reads):
            if runs.count == 1 or is_near(array, runs.step - runs.length, runs.length):
                length = (runs.count - 1) * runs.step + runs.length
                whole[array].append((Runs(array, runs.first, length), owners))
            else:
                yield Region(owners, owners[0][0].view, runs)
    for reads in whole.values():
        for runs, owners in _joined(reads):
            yield Region(owners, owners[0][0].view, runs)


_Member = tuple[Part, range]
_Read = tuple[Runs, tuple[_Member, ...]]


def _joined(reads: list[_Read]) -> Iterator[_Read]:
    """Join runs of one count and step where they overlap or nearly touch."""
    reads.sort(key=lambda read: read[0].first)
    runs, owners = reads[0]
    for more, others in reads[1:]:
        if is_near(runs.array, more.first - runs.first - runs.length, runs.length):
            length = max(runs.length, more.first + more.length - runs.first)
            runs = Runs(runs.array, runs.first, length, runs.count, runs.step)
            owners += others
        else:
            yield runs, owners
            runs, owners = more, others
    yield runs, owners


def _encoded(members: Iterable[_Member]) -> Iterator[Region]:
    """Plan to read rows only once that several parts are cut from."""
    of_view: dict[View, list[tuple[range, _Member]]] = defaultdict(list)
    for part, rows in members:
        of_view[part.view].append((part.stored_rows(rows), (part, rows)))
    for view, found in of_view.items():
        found.sort(key=lambda one: one[0].start)
        rows, owners = found[0][0], [found[0][1]]
        for more, owner in found[1:]:
            if more.start <= rows.stop:
                rows = range(rows.start, max(rows.stop, more.stop))
                owners.append(owner)
            else:
                yield Region(tuple(owners), view, None, rows)
                rows, owners = more, [owner]
        yield Region(tuple(owners), view, None, rows)
