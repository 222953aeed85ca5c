"""Pack one matrix into several tensors of a safetensors file, rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.packed.layout import AnyMatrixLayout, MatrixShape, Part, Segment
from weightcast.formats.packed.regions import rows_in_segments
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.groups import InexactScaleError
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import WeightType

PlaceSegment = Callable[[Segment], Segment]


def as_made(segment: Segment) -> Segment:
    """Leave a segment in the memory that it was made in."""
    return segment


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Bytes of some rows; `counts` says how many of their groups carry int8 codes unchanged.

    `errors` compares what a reader gets of them with the matrix; None if it was not asked for.
    """

    segments: Iterable[Segment]
    errors: Errors | None
    counts: BlockCounts = field(default_factory=BlockCounts)


@dataclass(frozen=True, slots=True)
class Packing:
    """A weight type and the layout that stores it; frozen, so that it can be a key.

    `keeps_codes`: the source's own int8 codes and scales go to the file unchanged. That they do is
    proved for all rows, on the bytes that go there. Rows whose scales the type cannot hold are
    refused unless `allow_requantize` is set: then they are quantized anew. `search` is the rule
    by which that is done.
    """

    layout: AnyMatrixLayout
    type: WeightType
    keeps_codes: bool = False
    allow_requantize: bool = False
    search: Search = GGML

    @property
    def label(self) -> str:
        """Name the type in reports."""
        return self.type.label

    @property
    def is_searched(self) -> bool:
        """Tell whether scales are fitted to the weights, so that an importance counts."""
        return self.layout.coding.is_searched(self.search) and not self.keeps_codes

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        """Name the tensors. Raises LayoutError if the matrix cannot be made or stored so."""
        parts = self.layout.parts(self._shape(n_out, n_in))
        # Layouts can store channels of any length, which kernels cannot make.
        self.type.check_row(n_in)
        return parts

    def row_multiple(self) -> int:
        """Count the rows that must be packed together."""
        return self.layout.row_multiple(self.type)

    def row_bytes(self, n_in: int) -> int:
        """Count the bytes that a row takes while it is made."""
        # Codes that are kept are there once more as a reader sees them.
        return (self.layout.coding.working_bytes + self.keeps_codes) * n_in

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        """Give the parts that do not depend on the weights."""
        return self.layout.constants(self._shape(n_out, n_in))

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        place: PlaceSegment = as_made,
        baseline: Baseline | None = None,
    ) -> PackedRows:
        """Quantize rows [row0, row0 + rows.n_out) of a matrix and say where their bytes go.

        `place` brings segments into the memory that they are written from, and gives them there.
        What is searched for goes through `backend`; what is only copied, or made of 8-bit floats,
        is done here. The result is compared with `baseline`, or with nothing. Raises
        SourceValueError, LayoutError and, on a device, DeviceError.
        """
        if self.keeps_codes:
            try:
                return self._keep(as_matrix(rows), n_out, row0, importance, place, baseline)
            except InexactScaleError:
                if not self.allow_requantize:
                    raise
        coding = self.layout.coding
        made = coding.quantize(rows, self.type, importance, backend, baseline, self.search)
        shape = self._shape(n_out, rows.n_in)
        segments = tuple(place(segment) for segment in self.layout.pack(made.rows, shape, row0))
        return PackedRows(segments, made.errors, made.counts)

    def _keep(
        self,
        matrix: Matrix,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        place: PlaceSegment,
        baseline: Baseline | None,
    ) -> PackedRows:
        coding, shape = self.layout.coding, self._shape(n_out, matrix.n_in)
        made = coding.carry(matrix, self.type)
        segments = tuple(place(segment) for segment in self.layout.pack(made.rows, shape, row0))
        seen = rows_in_segments(self.layout, segments, shape, row0, row0 + matrix.n_out)
        coding.check_carried(matrix, seen, self.type)
        errors = None
        if baseline is not None:
            errors = coding.measure(matrix, seen, self.type, importance, baseline)
        return PackedRows(segments, errors, made.counts)

    def _shape(self, n_out: int, n_in: int) -> MatrixShape[WeightType]:
        return MatrixShape(self.type, n_out, n_in)
