"""How one matrix becomes several tensors of a safetensors file, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.devices import Lane, as_matrix
from weightcast.formats import packed_fp8
from weightcast.formats.packed_fp4 import PackedFp4
from weightcast.formats.packed_parts import Fp8Type, PackedLayout, Part, Segment
from weightcast.quant.group_library import InexactScaleError
from weightcast.quant.groups import Groups, GroupType, carry_groups
from weightcast.quant.library import Blocks, Matrix, quantize_matrix
from weightcast.quant.types import F32


class Packing(Protocol):
    """What is made of a matrix [n_out, n_in]."""

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
        lane: Lane,
    ) -> Iterator[Segment]:
        """Quantize rows [row0, row0 + rows.n_out) of a matrix and say where their bytes go.

        What is searched for goes through `lane`; what is only copied, or made of 8-bit floats, is
        done here. Raises SourceValueError, LayoutError and, on a device, DeviceError.
        """


@dataclass(frozen=True, slots=True)
class GroupPacking:
    """Integers in groups; `is_carried`: the source's own codes and scales, unchanged.

    Rows whose scales the type cannot hold are refused, unless they `may_change`: then they are
    quantized anew.
    """

    label: str
    layout: PackedLayout
    type: GroupType
    is_carried: bool = False
    may_change: bool = False

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        return self.layout.parts(self.type, n_out, n_in)

    def row_multiple(self) -> int:
        return self.layout.row_multiple(self.type)

    def row_bytes(self, n_in: int) -> int:
        return 2 * n_in  # a code a byte, and once more as it is packed

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        return self.layout.constants(self.type, n_out, n_in)

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
        lane: Lane,
    ) -> Iterator[Segment]:
        groups = self._make(rows, importance, lane)
        return self.layout.pack(groups, self.type, n_out, rows.n_in, row0)

    def _make(
        self, rows: Matrix | Blocks, importance: NDArray[np.float32] | None, lane: Lane
    ) -> Groups:
        if self.is_carried:
            try:
                return carry_groups(as_matrix(rows), self.type)
            except InexactScaleError:
                if not self.may_change:
                    raise
        return lane.quantize_groups(rows, self.type, importance)


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
        lane: Lane,
    ) -> Iterator[Segment]:
        quant_type = self.layout.type
        row_bytes = quant_type.row_bytes(rows.n_in)
        if isinstance(rows, Blocks) and rows.type == quant_type:
            blocks = rows.data.reshape(rows.n_out, row_bytes)
        else:
            blocks = np.empty((rows.n_out, row_bytes), np.uint8)
            lane.quantize(rows, quant_type, blocks)
        return self.layout.pack(blocks, n_out, rows.n_in, row0)


@dataclass(frozen=True, slots=True)
class Fp8Packing:
    """Floats of 8 bits with a scale for each row or square."""

    label: str
    type: Fp8Type

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        return packed_fp8.parts(self.type, n_out, n_in)

    def row_multiple(self) -> int:
        return packed_fp8.row_multiple(self.type)

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
        lane: Lane,
    ) -> Iterator[Segment]:
        matrix = as_matrix(rows)
        values = np.empty((matrix.n_out, matrix.n_in), np.float32)
        quantize_matrix(matrix, F32, values.view(np.uint8))
        return packed_fp8.pack(values, self.type, n_out, matrix.n_in, row0)
