"""Rows of an artifact made again of the source, by each way that they can have been made.

Other tools start from rounded weights, so rows made of those are tried too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare.rows import PairedRows, floats
from weightcast.converters.graph.read import Slab
from weightcast.converters.recipes.weight_types import carries_codes, type_label
from weightcast.converters.targets.packing import Fp4Packing, Fp8Packing, GroupPacking, Packing
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.formats.packed import LAYOUTS, fp8
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import Fp8Type, Segment
from weightcast.quant.backend import ProcessorLane, as_matrix
from weightcast.quant.cpu.library import Blocks, Matrix, SourceValueError, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.groups import GroupType, dequantize_groups, quantize_groups
from weightcast.quant.metrics import Errors
from weightcast.quant.types import F32, Q8_0, TYPES, QuantType

# What rows can have been made of: the source itself, or roundings that other tools start from.
SOURCE: Final = "the source"
SYMMETRIC: Final = "the source, in symmetric groups"
_ROUNDED: Final[dict[str, Any]] = {
    "float32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a slab of both, for one worker; `start` is the first's number in the matrix."""

    rows: PairedRows
    source: Slab
    artifact: Slab
    row0: int
    row1: int

    @property
    def start(self) -> int:
        return self.rows.out0 + self.row0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows beside what can have been made of the source.

    `origin` is what they were made of, None if it was not found; then `different` counts bytes
    unlike the likest, the first of them at file offset `first`, and `expected` are the errors that
    the type makes.
    """

    nbytes: int
    origin: str | None
    different: int = 0
    first: int | None = None
    expected: Errors | None = None


def compare(piece: Piece, importance: NDArray[np.float32] | None) -> Comparison:
    """Make rows again and compare them. Raises CheckpointError if the source cannot be read."""
    makers = _Makers(piece, importance)
    likest: tuple[int, int | None] | None = None
    for origin in makers.origins():
        try:
            nbytes, different, first = makers.difference(origin)
        except LayoutError as problem:
            if origin == SOURCE and not isinstance(problem, SourceValueError):
                raise
            continue  # values beyond the type: it was not made of them
        if not different:
            return Comparison(nbytes, origin)
        if likest is None or different < likest[0]:
            likest = different, first
    expected = makers.expected()
    nbytes = makers.nbytes
    different, first = likest or (nbytes, None)
    return Comparison(nbytes, None, different, first, expected)


class _Makers:
    """Makes rows of an artifact again, of the source and of roundings of it."""

    def __init__(self, piece: Piece, importance: NDArray[np.float32] | None) -> None:
        self._piece = piece
        self._source = piece.source.piece(piece.row0, piece.row1)
        self._array = piece.artifact.view.array
        self._packing = packing_of(self._array)
        self._importance = importance
        self._floats: NDArray[np.float32] | None = None
        self.nbytes = 0

    def origins(self) -> Iterator[str]:
        """What to try, the likeliest first."""
        yield SOURCE
        is_int8 = isinstance(self._source, Matrix) and self._source.scales is not None
        kind = self._type
        if is_int8 and (kind == Q8_0 or self._is_carried):
            yield "float32"
        if self._may_be_symmetric:
            yield SYMMETRIC
        for name in ("bf16", "f16"):
            if kind is None or kind.name != name.upper():
                yield name

    @property
    def _may_be_symmetric(self) -> bool:
        """AWQ and GPTQ store the zero points of symmetric groups too."""
        packing = self._packing
        return isinstance(packing, GroupPacking) and not packing.type.symmetric

    @property
    def _type(self) -> QuantType | None:
        return None if self._packing is not None else TYPES.get(self._piece.artifact.view.dtype)

    @property
    def _is_carried(self) -> bool:
        packing = self._packing
        return isinstance(packing, GroupPacking) and carries_codes(packing.type)

    def _made_of(self, origin: str) -> Matrix | Blocks:
        if origin in (SOURCE, SYMMETRIC):
            return self._source
        if self._floats is None:
            piece = self._piece
            self._floats = floats(piece.source, piece.row0, piece.row1)
        with np.errstate(over="ignore"):
            rounded = self._floats.astype(_ROUNDED[origin]).astype(np.float32)
        n_out, n_in = rounded.shape
        return Matrix(rounded.reshape(-1), F32.name, n_out, n_in, n_in, 1)

    def difference(self, origin: str) -> tuple[int, int, int | None]:
        """Make rows and compare: bytes, those that differ, file offset of the first."""
        if self._packing is not None:
            nbytes, different, first = self._packed_difference(origin)
        else:
            there = self._piece.artifact.stored_rows(self._piece.row0, self._piece.row1)
            unlike = np.flatnonzero(self._rows(origin) != there)
            nbytes, different = there.size, unlike.size
            first = self._offset(int(unlike[0])) if different else None
        self.nbytes = nbytes
        return nbytes, different, first

    def _offset(self, index: int) -> int:
        view = self._piece.artifact.view
        row_bytes = TYPES[view.dtype].row_bytes(view.shape[1])
        row = view.start // view.shape[1] + self._piece.start
        return self._array.offset + row * row_bytes + index

    def _rows(self, origin: str) -> NDArray[np.uint8]:
        source, kind = self._made_of(origin), self._type
        assert kind is not None
        if isinstance(source, Blocks) and source.type == kind:
            return source.data
        made = np.empty(source.n_out * kind.row_bytes(source.n_in), np.uint8)
        importance = self._importance
        if importance is None and kind.importance == "required":
            importance = np.ones(source.n_in, np.float32)
        quantize_matrix(as_matrix(source), kind, made, importance)
        return made

    def _packed_difference(self, origin: str) -> tuple[int, int, int | None]:
        nbytes = different = 0
        first = None
        constants = self._constants(origin)
        for segment in (*self._segments(origin), *constants):
            part, there = _stored_segment(self._array, segment)
            unlike = np.argwhere(segment.data != there)
            nbytes += there.size
            different += len(unlike)
            if len(unlike):
                run, byte = map(int, unlike[0])
                place = part.offset + segment.offset + run * segment.stride + byte
                first = place if first is None else min(first, place)
        return nbytes, different, first

    def _segments(self, origin: str) -> list[Segment]:
        packing, source = self._packing, self._made_of(origin)
        assert packing is not None
        if isinstance(packing, GroupPacking):
            has_codes = isinstance(source, Matrix) and source.scales is not None
            packing = replace(packing, is_carried=self._is_carried and has_codes, may_change=True)
            if origin == SYMMETRIC:
                packing = replace(packing, type=replace(packing.type, symmetric=True))
        n_out, start = self._piece.artifact.view.shape[0], self._piece.start
        try:
            made = packing.pack(source, n_out, start, self._importance, ProcessorLane())
        except LayoutError:
            if not (isinstance(packing, GroupPacking) and packing.is_carried):
                raise
            packing = replace(packing, is_carried=False)  # groups straddle the source's
            made = packing.pack(source, n_out, start, self._importance, ProcessorLane())
        return list(made.segments)

    def _constants(self, origin: str) -> Iterator[Segment]:
        """The zero points of symmetric groups, which do not depend on the weights."""
        packing = self._packing
        if origin != SYMMETRIC or not isinstance(packing, GroupPacking):
            return
        group_type = replace(packing.type, symmetric=True)
        shape = self._piece.artifact.view.shape
        for suffix, raw in packing.layout.constants(group_type, shape[0], shape[1]).items():
            data = np.frombuffer(raw, np.uint8).reshape(1, -1)
            yield Segment(suffix, data, 0, data.size)

    def expected(self) -> Errors | None:
        """The errors that the type makes of these rows, by the worst of the ways to make them."""
        matrix = as_matrix(self._source)
        worst: Errors | None = None
        for origin in self.origins():
            try:
                errors = self._errors_of(matrix, origin)
            except LayoutError:  # values beyond the type
                continue
            if worst is None or errors.total().relative_rms > worst.total().relative_rms:
                worst = errors
        return worst

    def _errors_of(self, matrix: Matrix, origin: str) -> Errors:
        if self._packing is None:
            kind = self._type
            assert kind is not None
            return measure_matrix(matrix, kind, self._rows(origin))
        return measure_matrix(matrix, *self._packed_values(origin))

    def _packed_values(self, origin: str) -> tuple[QuantType, NDArray[np.uint8]]:
        """Rows as a packed type holds them, before they are packed: blocks or float32."""
        packing, source = self._packing, as_matrix(self._made_of(origin))
        if isinstance(packing, Fp4Packing):
            kind = packing.layout.type
            made = np.empty(source.n_out * kind.row_bytes(source.n_in), np.uint8)
            quantize_matrix(source, kind, made)
            return kind, made
        if isinstance(packing, GroupPacking):
            groups = quantize_groups(source, packing.type, self._importance)
            values = dequantize_groups(groups, packing.type)
        else:
            assert isinstance(packing, Fp8Packing)
            given = np.empty((source.n_out, source.n_in), np.float32)
            quantize_matrix(source, F32, given.reshape(-1).view(np.uint8))
            weights, scales = fp8.quantize_fp8(given, packing.type)
            parts = {fp8.WEIGHT: weights, fp8.SCALE: scales}
            values = fp8.unpack(parts, packing.type, *given.shape)
        return F32, np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def packing_of(array: StoredArray) -> Packing | None:
    """How a matrix of a directory was packed; None for plain floats and GGUF."""
    if array.packed is None:
        return None
    matrix = array.packed.matrix
    label = type_label(matrix.type)
    if isinstance(matrix.type, GroupType):
        return GroupPacking(label, LAYOUTS[matrix.layout], matrix.type)
    if isinstance(matrix.type, Fp8Type):
        return Fp8Packing(label, matrix.type)
    return Fp4Packing(FP4_LAYOUTS[matrix.type.name])


def _stored_segment(array: StoredArray, segment: Segment) -> tuple[StoredArray, NDArray[np.uint8]]:
    """Read the bytes that a segment would be written to."""
    assert array.packed is not None
    part = array.packed.matrix.parts[segment.suffix]
    runs, run_bytes = segment.data.shape
    there = np.empty((runs, run_bytes), np.uint8)
    fd = os.open(part.path, os.O_RDONLY)
    try:
        if segment.stride == run_bytes:
            read_stored(fd, part, segment.offset, there.reshape(-1).data)
        else:
            for number, run in enumerate(there):
                read_stored(fd, part, segment.offset + number * segment.stride, run.data)
    finally:
        os.close(fd)
    return part, there
