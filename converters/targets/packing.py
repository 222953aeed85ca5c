"""How one matrix becomes several tensors of a safetensors file, rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.packed import fp8
from weightcast.formats.packed.fp4 import PackedFp4
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    Fp8Type,
    PackedLayout,
    Part,
    Segment,
    packed_rows,
)
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.groups import InexactScaleError
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.groups import Groups, GroupType, carry_groups, check_carried, measure_groups
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.types import F32

Place = Callable[[Segment], Segment]


def as_made(segment: Segment) -> Segment:
    """Leave a segment in the memory that it was made in."""
    return segment


@dataclass(frozen=True, slots=True)
class Made:
    """Bytes of some rows; `counts` says how many of their groups carry int8 codes unchanged.

    `errors` compares what a reader gets of them with the matrix; None if it was not asked for.
    """

    segments: Iterable[Segment]
    errors: Errors | None
    counts: BlockCounts = field(default_factory=BlockCounts)


class Packing(Protocol):
    """What is made of a matrix [n_out, n_in]; frozen, so that it can be a key."""

    def __hash__(self) -> int: ...

    @property
    def label(self) -> str:
        """A short name of the type."""

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        """Name the tensors. Raises LayoutError if the matrix cannot be stored so."""

    def row_multiple(self) -> int:
        """Rows that must be packed together."""

    def row_bytes(self, n_in: int) -> int:
        """Bytes that a row takes while it is made."""

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        """Parts that do not depend on the weights."""

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        place: Place = as_made,
        baseline: Baseline | None = None,
    ) -> Made:
        """Quantize rows [row0, row0 + rows.n_out) of a matrix and say where their bytes go.

        `place` brings segments into the memory that they are written from, and gives them there.
        What is searched for goes through `backend`; what is only copied, or made of 8-bit floats,
        is done here. What is made is compared with `baseline`, or with nothing. Raises
        SourceValueError, LayoutError and, on a device, DeviceError.
        """


@dataclass(frozen=True, slots=True)
class GroupPacking:
    """Integers in groups; `is_carried`: the source's own codes and scales, unchanged.

    That they are is proved for all rows, on the bytes that go to the file. Rows whose scales the
    type cannot hold are refused, unless they `may_change`: then they are quantized anew.
    """

    label: str
    layout: PackedLayout
    type: GroupType
    is_carried: bool = False
    may_change: bool = False

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        parts = self.layout.parts(self.type, n_out, n_in)
        # Layouts can store channels of any length, which kernels cannot make.
        self.type.size_in(n_in)
        return parts

    def row_multiple(self) -> int:
        return self.layout.row_multiple(self.type)

    def row_bytes(self, n_in: int) -> int:
        # A code a byte, once more as it is packed, and once more as a reader sees what is carried.
        return (3 if self.is_carried else 2) * n_in

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        return self.layout.constants(self.type, n_out, n_in)

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        place: Place = as_made,
        baseline: Baseline | None = None,
    ) -> Made:
        if self.is_carried:
            try:
                return self._carry(as_matrix(rows), n_out, row0, importance, place, baseline)
            except InexactScaleError:
                if not self.may_change:
                    raise
        errors = None
        if baseline is None:
            groups = backend.quantize_groups(rows, self.type, importance)
        else:
            what = rows, self.type, importance, baseline
            groups, errors = backend.quantize_and_measure_groups(*what)
        was_int8 = isinstance(rows, Matrix) and rows.scales is not None and self.type.bits == 8
        n_groups = groups.scales.size if was_int8 else 0
        counts = BlockCounts(requantized=n_groups)
        segments = tuple(place(segment) for segment in self._pack(groups, n_out, row0))
        return Made(segments, errors, counts)

    def _carry(
        self,
        matrix: Matrix,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        place: Place,
        baseline: Baseline | None,
    ) -> Made:
        groups = carry_groups(matrix, self.type)
        segments = tuple(place(segment) for segment in self._pack(groups, n_out, row0))
        shape, row1 = (n_out, matrix.n_in), row0 + matrix.n_out
        seen = packed_rows(self.layout, segments, self.type, shape, row0, row1)
        check_carried(matrix, seen, self.type)
        errors = None
        if baseline is not None:
            errors = measure_groups(matrix, seen, self.type, importance, baseline)
        return Made(segments, errors, BlockCounts(exact=groups.scales.size))

    def _pack(self, groups: Groups, n_out: int, row0: int) -> Iterator[Segment]:
        return self.layout.pack(groups, self.type, n_out, groups.codes.shape[1], row0)


@dataclass(frozen=True, slots=True)
class Fp4Packing:
    """MXFP4 or NVFP4: the blocks of GGUF in another order."""

    layout: PackedFp4

    @property
    def label(self) -> str:
        return self.layout.type.name

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        return self.layout.parts(n_out, n_in)

    def row_multiple(self) -> int:
        return 1

    def row_bytes(self, n_in: int) -> int:
        return 2 * n_in

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        return self.layout.constants()

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        place: Place = as_made,
        baseline: Baseline | None = None,
    ) -> Made:
        quant_type = self.layout.type
        row_bytes = quant_type.row_bytes(rows.n_in)
        if isinstance(rows, Blocks) and rows.type == quant_type:
            blocks = rows.data.reshape(rows.n_out, row_bytes)
        else:
            blocks = np.empty((rows.n_out, row_bytes), np.uint8)
            backend.quantize(rows, quant_type, blocks)
        errors = None
        if baseline is not None:
            errors = measure_matrix(as_matrix(rows), quant_type, blocks, importance, baseline)
        return Made(self.layout.pack(blocks, n_out, rows.n_in, row0), errors)


@dataclass(frozen=True, slots=True)
class Fp8Packing:
    """Floats of 8 bits with a scale for each row or square."""

    label: str
    type: Fp8Type

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        return fp8.parts(self.type, n_out, n_in)

    def row_multiple(self) -> int:
        return fp8.row_multiple(self.type)

    def row_bytes(self, n_in: int) -> int:
        return 16 * n_in  # float32, its magnitude, quotient and scale

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        return {}

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        place: Place = as_made,
        baseline: Baseline | None = None,
    ) -> Made:
        matrix = as_matrix(rows)
        values = np.empty((matrix.n_out, matrix.n_in), np.float32)
        quantize_matrix(matrix, F32, values.view(np.uint8))
        segments = tuple(fp8.pack(values, self.type, n_out, matrix.n_in, row0))
        errors = None
        if baseline is not None:
            read = self._read(segments, matrix.n_out, matrix.n_in).view(np.uint8)
            errors = measure_matrix(matrix, F32, read, importance, baseline)
        return Made(segments, errors)

    def _read(self, segments: tuple[Segment, ...], n_out: int, n_in: int) -> NDArray[np.float32]:
        """Multiply the weights of segments [n_out, n_in] by their scales, as readers do."""
        parts = {
            part.suffix: segment.data.reshape(-1).view(NUMPY_DTYPES[part.dtype]).reshape(part.shape)
            for part, segment in zip(fp8.parts(self.type, n_out, n_in), segments, strict=True)
        }
        return fp8.unpack(parts, self.type, n_out, n_in)
