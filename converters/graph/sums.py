"""Matrices to which low-rank products are added: what of the factors goes where, and its memory.

The matrix itself is read as any other, a slab at a time. Of the factors a slab has, as float32, all
of a [rank, in] and the rows of b [out, rank] that it needs; workers add the products (`gather`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.converters.graph.assembly import Assembly, Part
from weightcast.converters.graph.view import View
from weightcast.quant.types import F32

_FLOAT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of one matrix: a [rank, in], b [out, rank] and a multiplier for each term."""

    a: tuple[StoredMatrix, ...]
    b: tuple[StoredMatrix, ...]
    multipliers: tuple[float, ...]

    @property
    def ranks(self) -> int:
        """Count the ranks of all terms together."""
        return sum(a.shape[0] for a in self.a)

    def values_of(self, rows: range) -> int:
        """Count the values of a, and of these rows of b."""
        return sum(a.shape[0] * (a.shape[1] + len(rows)) for a in self.a)


@dataclass(frozen=True, slots=True)
class Patch:
    """A part of a matrix, and the `rows` of b and `columns` of a whose products are added to it.

    Where the matrix `is_turned`, its rows go by the columns of a.
    """

    part: Part
    rows: range
    columns: range
    is_turned: bool = False

    def rows_for(self, out0: int, out1: int) -> range:
        """Number the rows of b that rows [out0, out1) of the matrix need; maybe none."""
        here = self.part.rows_in(out0, out1)
        if self.is_turned:
            return self.rows if here else range(0)
        return self.rows[here.start : here.stop]


@dataclass(frozen=True, slots=True)
class Sum:
    """A matrix [out, in], and what is added to parts of it, with the interface of a View."""

    base: View | Assembly
    added: tuple[tuple[Factors, tuple[Patch, ...]], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Give its rows and columns."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """Name the dtype of rows as they are added up: F32."""
        return F32.name

    @property
    def group_size(self) -> int | None:
        """Give None: codes with scales are none any more."""
        return None

    @property
    def item_bytes(self) -> int:
        """Count the bytes of a value in memory."""
        return _FLOAT_BYTES

    @property
    def is_blocked(self) -> bool:
        """Tell whether rows are quantized blocks in memory: never."""
        return False

    @property
    def is_packed(self) -> bool:
        """Tell whether what it is made of has codes and scales in separate tensors."""
        return self.base.is_packed

    @property
    def is_encoded(self) -> bool:
        """Tell whether rows are made anew before use: always."""
        return True

    @property
    def is_readable(self) -> bool:
        """Tell whether kernels can read the rows of the matrix and of its factors."""
        factors = (m for held, _ in self.added for m in (*held.a, *held.b))
        return self.base.is_readable and all(matrix.is_readable for matrix in factors)

    @property
    def row_multiple(self) -> int:
        """Count the rows that share words or scales: reads must start at a multiple."""
        return self.base.row_multiple

    @property
    def views(self) -> tuple[View, ...]:
        """List the windows that the matrix is made of, without its factors."""
        return self.base.views

    @property
    def single(self) -> View | None:
        """Give None: there is no one window."""
        return None

    @property
    def path(self) -> Path:
        """Name the file of the matrix for messages."""
        return self.base.path

    @property
    def order(self) -> tuple[Path, int, int]:
        """Give a sort key: what is read in this order is read front to back."""
        return self.base.order

    def needed(self, out0: int, out1: int) -> Iterator[tuple[Factors, tuple[Patch, ...], range]]:
        """List what is added to rows [out0, out1), with the rows of b to read for that."""
        for factors, patches in self.added:
            wanted = [rows for p in patches if (rows := p.rows_for(out0, out1))]
            if wanted:
                first, last = min(map(min, wanted)), max(map(max, wanted))
                yield factors, patches, range(first, last + 1)

    def base_bytes(self, out0: int, out1: int) -> int:
        """Count the bytes of the buffer that rows of the matrix itself take, rounded up."""
        return -(-self.base.slab_bytes(out0, out1) // 64) * 64

    def slab_bytes(self, out0: int, out1: int) -> int:
        """Count the bytes of the buffer for rows [out0, out1) and for their factors."""
        values = sum(factors.values_of(rows) for factors, _, rows in self.needed(out0, out1))
        return self.base_bytes(out0, out1) + _FLOAT_BYTES * values

    def bytes_to_read(self, out0: int, out1: int) -> int:
        """Count the bytes to read of the matrix; the factors are small beside it."""
        return self.base.bytes_to_read(out0, out1)

    def rows_per_slab(self, limit_bytes: int) -> int:
        """Count the rows that fit a slab of `limit_bytes` with their factors, at least one.

        Each slab has all of a: one of twice that size is allowed, so that a is not read for each
        few rows again.
        """
        multiple = self.row_multiple
        of_a = sum(factors.values_of(range(0)) for factors, _ in self.added)
        limit_bytes = max(limit_bytes, 2 * _FLOAT_BYTES * of_a)
        rows = self.base.rows_per_slab(limit_bytes)
        while rows > multiple and (nbytes := self.slab_bytes(0, rows)) > limit_bytes:
            fewer = min(rows - 1, rows * limit_bytes // nbytes)
            rows = max(fewer // multiple, 1) * multiple
        return rows

    @property
    def decoded_row_bytes(self) -> int:
        """Count the bytes that a row takes while it is decoded and added to."""
        return self.base.decoded_row_bytes + _FLOAT_BYTES * self.shape[1]

    def piece_bytes(self, rows: int) -> int:
        """Count the bytes of `rows` rows as they are added up."""
        return _FLOAT_BYTES * rows * self.shape[1]


# A matrix as it is read: windows, assemblies and sums have all else in common.
StoredMatrix = View | Assembly | Sum
