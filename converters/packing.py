"""How one matrix becomes several tensors of a safetensors file, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.packed_parts import PackedLayout, Part, Segment
from weightcast.quant.groups import GroupType, carry_groups, quantize_groups
from weightcast.quant.library import Blocks, Matrix


class Packing(Protocol):
    """What is made of a matrix [n_out, n_in]."""

    @property
    def label(self) -> str:
        """A short name of the type."""

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        """Name the tensors. Raises LayoutError if the matrix cannot be stored so."""

    def row_multiple(self) -> int:
        """Rows that must be packed together."""

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        """Parts that do not depend on the weights."""

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
    ) -> Iterator[Segment]:
        """Quantize rows [row0, row0 + rows.n_out) of a matrix and say where their bytes go.

        Raises SourceValueError, LayoutError.
        """


@dataclass(frozen=True, slots=True)
class GroupPacking:
    """Integers in groups; `is_carried`: the source's own codes and scales, unchanged."""

    label: str
    layout: PackedLayout
    type: GroupType
    is_carried: bool = False

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        return self.layout.parts(self.type, n_out, n_in)

    def row_multiple(self) -> int:
        return self.layout.row_multiple(self.type)

    def constants(self, n_out: int, n_in: int) -> dict[str, bytes]:
        return self.layout.constants(self.type, n_out, n_in)

    def pack(
        self,
        rows: Matrix | Blocks,
        n_out: int,
        row0: int,
        importance: NDArray[np.float32] | None,
    ) -> Iterator[Segment]:
        matrix = rows.dequantized() if isinstance(rows, Blocks) else rows
        if self.is_carried:
            groups = carry_groups(matrix, self.type)
        else:
            groups = quantize_groups(matrix, self.type, importance)
        return self.layout.pack(groups, self.type, n_out, matrix.n_in, row0)
