"""Matrices put together from several windows, or computed from one: parts, and what to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Final

from weightcast.converters.graph.view import GAP_BYTES, Runs, View, runs_of
from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.quant.types import F32, FLOAT_TYPES, I8, TYPES

# Regions of a slab start at cache lines.
_ALIGNMENT: Final = 64

_FLOATS: Final = {t.name for t in FLOAT_TYPES}


@dataclass(frozen=True, slots=True)
class Cut:
    """Elements of decoded rows [n, length], taken at strides from `start` on: a matrix `shape`."""

    start: int
    shape: tuple[int, int]
    strides: tuple[int, int]

    def has_whole_rows(self, length: int) -> bool:
        """Whether its rows are rows of what it is cut from."""
        rows_apart, rest = divmod(self.strides[0], length)
        is_aligned = not rest and not self.start % length
        return is_aligned and rows_apart > 0 and self.shape[1] == length and self.strides[1] == 1


@dataclass(frozen=True, slots=True)
class Part:
    """A window [n, m] and its place in a matrix.

    Element (i, j) goes to row `row0 + i * row_step`, column `col0 + j * col_step`, after each
    (scale, shift) of `affine` in turn was applied to it, as `tensor.Affine` says. Elements of
    blocks and of packed matrices have no address: those that are wanted are `cut` from the decoded
    rows of `view`.
    """

    view: View
    row0: int = 0
    col0: int = 0
    row_step: int = 1
    col_step: int = 1
    affine: tuple[tuple[float, float], ...] = ()
    cut: Cut | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.view.shape if self.cut is None else self.cut.shape

    @property
    def is_plain(self) -> bool:
        """Whether single elements have an address."""
        return not self.view.array.is_blocked

    @property
    def dtype(self) -> str:
        """The dtype, or type of blocks, that its rows have when they are put in place."""
        view, cut = self.view, self.cut
        is_kept = cut is None or (view.is_blocked and cut.has_whole_rows(view.shape[1]))
        if self.affine or not is_kept or (view.is_encoded and not view.is_blocked):
            return F32.name
        return view.dtype

    def rows_in(self, out0: int, out1: int) -> range:
        """Number those of its rows that are among rows [out0, out1) of the matrix."""
        n_out = self.shape[0]
        first, last = (
            min(n_out, -(-max(0, out - self.row0) // self.row_step)) for out in (out0, out1)
        )
        return range(first, last)

    def stored_rows(self, rows: range) -> range:
        """Number the rows of `view` that some of its rows, at least one, are read or cut from."""
        first, last = rows[0], rows[-1]
        if self.cut is not None:
            (stride_out, stride_in), length = self.cut.strides, self.view.shape[1]
            width = (self.cut.shape[1] - 1) * stride_in
            first = (self.cut.start + first * stride_out) // length
            last = (self.cut.start + last * stride_out + width) // length
        multiple = self.view.row_multiple
        stop = -(-(last + 1) // multiple) * multiple
        return range(first // multiple * multiple, min(stop, self.view.shape[0]))


@dataclass(frozen=True, slots=True)
class Region:
    """What is read together, for rows of some parts: `members` with the numbers of these rows.

    Of plain arrays it is `runs` of elements; of what is encoded, or packed, `rows` of `view`.
    """

    members: tuple[tuple[Part, range], ...]
    view: View
    runs: Runs | None = None
    rows: range = range(0)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        if self.runs is not None:
            return self.runs.nbytes
        return self.view.slab_bytes(self.rows.start, self.rows.stop)

    @property
    def aligned_bytes(self) -> int:
        """Bytes from its start to that of the next region."""
        return -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def bytes_to_read(self) -> int:
        """Bytes to read from files."""
        if self.runs is not None:
            return self.runs.nbytes
        return self.view.bytes_to_read(self.rows.start, self.rows.stop)

    @property
    def order(self) -> tuple[Path, int, int]:
        """A key to sort by, so that files are read from front to back."""
        first = self.rows.start if self.runs is None else self.runs.first
        return self.view.path, self.view.array.offset, first


@dataclass(frozen=True, slots=True)
class Assembly:
    """A matrix [out, in] of parts that fill it without overlap; it has what a View has.

    Slabs hold the parts as they are stored; each piece of rows is put together by whoever uses it.
    Its `dtype` is then that of the parts if they have one: float, blocks, or int8 with scales for
    groups of one size. Else it is float32.
    """

    shape: tuple[int, int]
    parts: tuple[Part, ...]
    dtype: str
    group_size: int | None = None

    @property
    def item_bytes(self) -> int:
        """Bytes of a value in memory, where it is not part of a block."""
        return ITEM_BYTES[self.dtype]

    @property
    def is_blocked(self) -> bool:
        """Whether the rows are quantized blocks in memory."""
        return self.dtype not in ITEM_BYTES

    @property
    def is_packed(self) -> bool:
        """Whether a part is stored in several tensors, as layouts for serving do."""
        return any(part.view.is_packed for part in self.parts)

    @property
    def is_encoded(self) -> bool:
        """Whether the rows become something else on the way to what is made of them: always."""
        return True

    @property
    def is_readable(self) -> bool:
        """Whether kernels can read the rows."""
        return all(part.view.is_readable for part in self.parts)

    @property
    def row_multiple(self) -> int:
        """Rows that share words or scales: reads can start anywhere, and read more if need be."""
        return 1

    @property
    def views(self) -> tuple[View, ...]:
        """The windows that the matrix is made of."""
        return tuple(part.view for part in self.parts)

    @property
    def single(self) -> View | None:
        """None: there is no one window."""
        return None

    @property
    def path(self) -> Path:
        """The file to name in messages: that of the first part."""
        return self.parts[0].view.path

    @property
    def order(self) -> tuple[Path, int, int]:
        """A key to sort by, so that files are read from front to back."""
        return min(part.view.order for part in self.parts)

    @property
    def is_along_out(self) -> bool:
        """Whether most of it is stored with neighbours along `out` side by side."""
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
        """Bytes of the buffer that rows [out0, out1) are read into."""
        return sum(region.aligned_bytes for region in self.regions(out0, out1))

    def bytes_to_read(self, out0: int, out1: int) -> int:
        """Bytes to read for rows [out0, out1)."""
        return sum(region.bytes_to_read for region in self.regions(out0, out1))

    def rows_per_slab(self, limit_bytes: int) -> int:
        """How many rows fit a slab, if slabs of so many rows follow each other; at least one."""
        n_out = self.shape[0]
        total = self.slab_bytes(0, n_out)
        if total <= limit_bytes:
            return n_out
        # Slabs that end where parts do read no part twice.
        grain = gcd(*(part.row0 - part.row0 % part.row_step for part in self.parts)) or 1
        rows = max(1, limit_bytes * n_out // total)
        while rows > 1:
            if rows > grain:
                rows -= rows % grain
            starts = range(0, n_out, rows)
            most = max(self.slab_bytes(start, min(start + rows, n_out)) for start in starts)
            if most <= limit_bytes:
                break
            rows = min(rows - 1, max(1, rows * limit_bytes // most))
        return rows

    def piece_bytes(self, rows: int) -> int:
        """Bytes of `rows` rows as they are put together, at most."""
        return rows * self.shape[1] * ITEM_BYTES[F32.name]


# A matrix as it is read: windows and assemblies have all else in common.
StoredMatrix = View | Assembly


def assemble(shape: tuple[int, int], parts: Sequence[Part]) -> Assembly:
    """Put parts together, in the order of rows."""
    ordered = tuple(sorted(parts, key=lambda part: (part.row0, part.col0)))
    dtypes = {part.dtype for part in ordered}
    dtype = dtypes.pop() if len(dtypes) == 1 else F32.name
    if dtype == I8.name:
        sizes = {_group_size(part) for part in ordered}
        size = sizes.pop() if len(sizes) == 1 else None
        return Assembly(shape, ordered, dtype if size else F32.name, size)
    is_blocked = dtype in TYPES and dtype not in _FLOATS
    if is_blocked and any(part.shape[1] != shape[1] for part in ordered):
        dtype = F32.name
    return Assembly(shape, ordered, dtype)


def _group_size(part: Part) -> int | None:
    """The size of the groups of an int8 part, if they are groups where it is put."""
    size = part.view.group_size
    is_in_place = size is not None and part.col_step == 1 and not part.col0 % size
    return size if is_in_place else None


def _plain(members: Iterable[_Member]) -> Iterator[Region]:
    """Read what lies side by side, or between each other, together."""
    spread: dict[tuple[StoredArray, int, int], list[_Read]] = defaultdict(list)
    for part, rows in members:
        runs = runs_of(part.view, rows.start, rows.stop)
        spread[runs.array, runs.count, runs.step].append((runs, ((part, rows),)))
    whole: dict[StoredArray, list[_Read]] = defaultdict(list)
    for (array, _, _), reads in spread.items():
        for runs, owners in _joined(reads):
            gap = (runs.step - runs.length) * ITEM_BYTES[array.dtype]
            if runs.count == 1 or gap < GAP_BYTES:
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
    """Join runs of one number and step where they overlap or nearly touch."""
    reads.sort(key=lambda read: read[0].first)
    runs, owners = reads[0]
    gap = GAP_BYTES // ITEM_BYTES[runs.array.dtype]
    for more, others in reads[1:]:
        if more.first < runs.first + runs.length + gap:
            length = max(runs.length, more.first + more.length - runs.first)
            runs = Runs(runs.array, runs.first, length, runs.count, runs.step)
            owners += others
        else:
            yield runs, owners
            runs, owners = more, others
    yield runs, owners


def _encoded(members: Iterable[_Member]) -> Iterator[Region]:
    """Read rows that several parts are cut from once."""
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
