"""The table of quantization types: block sizes and the numbers ggml gives them.

Source of the numbers: enum ggml_type in ggml.h. A block is a run of values along `in` that share
a scale; plain floats are blocks of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightcast.errors import LayoutError


@dataclass(frozen=True, slots=True)
class QuantType:
    """One way to store a row of weights as bytes.

    `importance` says what ggml does with an importance matrix for this type.
    """

    name: str
    ggml_id: int
    block_elements: int
    block_bytes: int
    importance: Literal["ignored", "optional", "required"] = "ignored"

    @property
    def has_grid(self) -> bool:
        """Whether groups of values are points of a grid: IQ1, IQ2 and IQ3."""
        return self.name.startswith(("IQ1", "IQ2", "IQ3"))

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

    def row_elements(self, row_bytes: int) -> int:
        """Values of one row. Raises LayoutError if its bytes are not whole blocks."""
        n_blocks, rest = divmod(row_bytes, self.block_bytes)
        if rest:
            raise LayoutError(
                f"rows of {row_bytes} bytes are not whole {self.name} blocks of {self.block_bytes}"
            )
        return n_blocks * self.block_elements


F32 = QuantType("F32", 0, 1, 4)
F16 = QuantType("F16", 1, 1, 2)
BF16 = QuantType("BF16", 30, 1, 2)

Q4_0 = QuantType("Q4_0", 2, 32, 18, "optional")
Q4_1 = QuantType("Q4_1", 3, 32, 20, "optional")
Q5_0 = QuantType("Q5_0", 6, 32, 22, "optional")
Q5_1 = QuantType("Q5_1", 7, 32, 24, "optional")
Q8_0 = QuantType("Q8_0", 8, 32, 34)

Q2_K = QuantType("Q2_K", 10, 256, 84, "optional")
Q3_K = QuantType("Q3_K", 11, 256, 110, "optional")
Q4_K = QuantType("Q4_K", 12, 256, 144, "optional")
Q5_K = QuantType("Q5_K", 13, 256, 176, "optional")
Q6_K = QuantType("Q6_K", 14, 256, 210, "optional")

IQ4_NL = QuantType("IQ4_NL", 20, 32, 18, "optional")
IQ4_XS = QuantType("IQ4_XS", 23, 256, 136, "optional")
IQ3_S = QuantType("IQ3_S", 21, 256, 110, "optional")
IQ3_XXS = QuantType("IQ3_XXS", 18, 256, 98, "optional")
IQ2_S = QuantType("IQ2_S", 22, 256, 82, "optional")
IQ2_XS = QuantType("IQ2_XS", 17, 256, 74, "required")
IQ2_XXS = QuantType("IQ2_XXS", 16, 256, 66, "required")
IQ1_M = QuantType("IQ1_M", 29, 256, 56, "optional")
IQ1_S = QuantType("IQ1_S", 19, 256, 50, "required")

TQ1_0 = QuantType("TQ1_0", 34, 256, 54)
TQ2_0 = QuantType("TQ2_0", 35, 256, 66)
MXFP4 = QuantType("MXFP4", 39, 32, 17)
NVFP4 = QuantType("NVFP4", 40, 64, 36)
Q1_0 = QuantType("Q1_0", 41, 128, 18)
Q2_0 = QuantType("Q2_0", 42, 64, 18)

# Codes without a scale of their own: only ever a source, together with scales.
I8 = QuantType("I8", 24, 1, 1)

# Numbers that are no weights: only carried from file to file.
I16 = QuantType("I16", 25, 1, 2)
I32 = QuantType("I32", 26, 1, 4)
I64 = QuantType("I64", 27, 1, 8)
F64 = QuantType("F64", 28, 1, 8)

FLOAT_TYPES = (F32, F16, BF16)
SIMPLE_TYPES = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q1_0, Q2_0, TQ1_0, TQ2_0, MXFP4, NVFP4)
K_TYPES = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)
I_TYPES = (IQ4_NL, IQ4_XS, IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S)

TYPES = {t.name: t for t in (*FLOAT_TYPES, *SIMPLE_TYPES, *K_TYPES, *I_TYPES)}
STORED_TYPES = {**TYPES, **{t.name: t for t in (I8, I16, I32, I64, F64)}}
SOURCE_TYPES = {t.name: t for t in (F32, F16, BF16, I8)}
