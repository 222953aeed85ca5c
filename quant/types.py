"""The table of quantization types: block sizes and the numbers ggml gives them.

Source of the numbers: enum ggml_type in ggml.h. A block is a run of values along `in` that share
a scale; plain floats are blocks of one.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightcast.quant.errors import LayoutError


@dataclass(frozen=True, slots=True)
class QuantType:
    """One way to store a row of weights as bytes."""

    name: str
    ggml_id: int
    block_elements: int
    block_bytes: int

    def fits(self, row_elements: int) -> bool:
        """Whether rows of this length fill whole blocks."""
        return row_elements % self.block_elements == 0

    def row_bytes(self, row_elements: int) -> int:
        """Bytes of one row. Raises LayoutError if it does not fill whole blocks."""
        if not self.fits(row_elements):
            raise LayoutError(
                f"a row of {row_elements} values does not fill {self.name} blocks of "
                f"{self.block_elements}"
            )
        return row_elements // self.block_elements * self.block_bytes


F32 = QuantType("F32", 0, 1, 4)
F16 = QuantType("F16", 1, 1, 2)
BF16 = QuantType("BF16", 30, 1, 2)
Q8_0 = QuantType("Q8_0", 8, 32, 34)

# Codes without a scale of their own: only ever a source, together with scales.
I8 = QuantType("I8", 24, 1, 1)

TYPES = {t.name: t for t in (F32, F16, BF16, Q8_0)}
SOURCE_TYPES = {t.name: t for t in (F32, F16, BF16, I8)}
