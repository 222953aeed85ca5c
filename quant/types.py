"""Weight types: GGUF's, with ggml's numbers, integers in groups, and floats of 8 bits.

Source of the numbers: enum ggml_type in ggml.h. A block is a run of values along `in` that share
a scale; plain floats are blocks of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Final, Literal, Protocol

from weightcast.errors import LayoutError

# Dtypes that scales of groups can have.
SCALE_TYPES: Final = ("BF16", "F16", "F32")
SIZE_MULTIPLE: Final = 32  # of the values of a group


class WeightType(Protocol):
    """One way to store the values of a matrix; frozen, so that it can be a key."""

    def __hash__(self) -> int: ...

    @property
    def label(self) -> str:
        """Name the type in reports and messages: BF16, INT4-G128."""
        ...

    @property
    def is_plain(self) -> bool:
        """Tell whether values are stored one by one, as floats."""
        ...

    @property
    def carries_codes(self) -> bool:
        """Tell whether int8 codes of a source can be stored unchanged."""
        ...

    @property
    def lookalike(self) -> WeightType | None:
        """Give another type whose rows a reader may take for rows of this one."""
        ...

    def scale_span(self, n_in: int) -> int:
        """Count the values along a row of `n_in` that share a scale."""
        ...

    def check_row(self, n_in: int) -> None:
        """Raise LayoutError unless the kernels can make rows of `n_in` values."""
        ...

    def in_rows_of(self, n_in: int) -> WeightType:
        """Give the one name of what rows of `n_in` values have several names for."""
        ...


@dataclass(frozen=True, slots=True)
class QuantType:
    """A type of GGUF: rows are whole blocks of bytes.

    `importance` says what ggml does with an importance matrix for this type.
    """

    name: str
    ggml_id: int
    block_elements: int
    block_bytes: int
    importance: Literal["ignored", "optional", "required"] = "ignored"

    @property
    def label(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        return self.block_elements == 1

    @property
    def carries_codes(self) -> bool:
        return False

    @property
    def lookalike(self) -> WeightType | None:
        return None

    def scale_span(self, n_in: int) -> int:
        return self.block_elements

    def check_row(self, n_in: int) -> None:
        self.row_bytes(n_in)

    def in_rows_of(self, n_in: int) -> QuantType:
        return self

    @property
    def has_grid(self) -> bool:
        """Tell whether groups of values are points of a grid: IQ1, IQ2 and IQ3."""
        return self.name.startswith(("IQ1", "IQ2", "IQ3"))

    def fits(self, row_elements: int) -> bool:
        """Tell whether rows of this length fill whole blocks."""
        return row_elements % self.block_elements == 0

    @property
    def bits_per_weight(self) -> float:
        """Give the bits that a weight takes, its share of scales included."""
        return 8 * self.block_bytes / self.block_elements

    def row_bytes(self, row_elements: int) -> int:
        """Count the bytes of one row. Raises LayoutError if it does not fill whole blocks."""
        if not self.fits(row_elements):
            raise LayoutError(
                f"a row of {row_elements} values does not fill {self.name} blocks of "
                f"{self.block_elements}"
            )
        return row_elements // self.block_elements * self.block_bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Count the bytes of a tensor [..., row]; one value without axes. Raises LayoutError."""
        *rows, row_elements = shape or (1,)
        return prod(rows) * self.row_bytes(row_elements)

    def row_elements(self, row_bytes: int) -> int:
        """Count the values of one row. Raises LayoutError if its bytes are not whole blocks."""
        n_blocks, rest = divmod(row_bytes, self.block_bytes)
        if rest:
            raise LayoutError(
                f"rows of {row_bytes} bytes are not whole {self.name} blocks of {self.block_bytes}"
            )
        return n_blocks * self.block_elements


@dataclass(frozen=True, slots=True)
class GroupType:
    """Integers of 4 or 8 bits with a scale, and maybe a zero point, for each group of a row.

    Raises LayoutError for bits, a size or a dtype that there is not.
    """

    bits: int
    group_size: int  # along `in`, a multiple of 32; 0: the whole row ("channel")
    symmetric: bool = True  # the zero point is 2**(bits - 1) everywhere and is not stored
    scale_dtype: str = "BF16"  # BF16, F16 or F32: scales are rounded before codes are chosen

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise LayoutError(f"groups of {self.bits} bits: use 4 or 8")
        if self.group_size < 0 or self.group_size % SIZE_MULTIPLE != 0:
            raise LayoutError(
                f"group size {self.group_size}: use a multiple of {SIZE_MULTIPLE}, or 0 for rows"
            )
        if self.scale_dtype not in SCALE_TYPES:
            raise LayoutError(f"scales of {self.scale_dtype}: use {', '.join(SCALE_TYPES)}")

    @property
    def label(self) -> str:
        size = f"G{self.group_size}" if self.group_size else "CHANNEL"
        return f"INT{self.bits}-{size}{'' if self.symmetric else '-ASYM'}"

    @property
    def is_plain(self) -> bool:
        return False

    @property
    def carries_codes(self) -> bool:
        return self.bits == 8 and self.symmetric

    @property
    def lookalike(self) -> WeightType | None:
        # AWQ and GPTQ store the zero points of symmetric groups too.
        return None if self.symmetric else replace(self, symmetric=True)

    def scale_span(self, n_in: int) -> int:
        return self.group_size or n_in

    def check_row(self, n_in: int) -> None:
        self.size_in(n_in)

    def in_rows_of(self, n_in: int) -> GroupType:
        # A group that is a whole row is a scale a row.
        return replace(self, group_size=0) if self.group_size == n_in else self

    def size_in(self, n_in: int) -> int:
        """Count the values of one group of a row. Raises LayoutError if groups do not fill it."""
        size = self.group_size or n_in
        if size % SIZE_MULTIPLE != 0 or (size and n_in % size != 0):
            needed = self.group_size or SIZE_MULTIPLE
            raise LayoutError(f"a row of {n_in} values does not fill groups of {needed}")
        return max(size, SIZE_MULTIPLE)

    def groups_in(self, n_in: int) -> int:
        """Count the groups of a row of `n_in` values. Raises LayoutError if they do not fill it."""
        return n_in // self.size_in(n_in)


@dataclass(frozen=True, slots=True)
class Fp8Type:
    """Floats of 8 bits (e4m3) with a scale for each `rows` x `columns` of them; 0: for all."""

    rows: int = 1
    columns: int = 0

    @property
    def label(self) -> str:
        named = {(1, 0): "FP8", (0, 0): "FP8-TENSOR", (1, 32): "MXFP8"}
        other = "FP8-BLOCK" if self.rows == self.columns else f"FP8-{self.rows}X{self.columns}"
        return named.get((self.rows, self.columns), other)

    @property
    def is_plain(self) -> bool:
        return False

    @property
    def carries_codes(self) -> bool:
        return False

    @property
    def lookalike(self) -> WeightType | None:
        return None

    def scale_span(self, n_in: int) -> int:
        return self.columns or n_in

    def check_row(self, n_in: int) -> None:
        """Accept rows of any length."""

    def in_rows_of(self, n_in: int) -> Fp8Type:
        return self


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
FLOAT_NAMES = frozenset(t.name for t in FLOAT_TYPES)
LOSSY_NAMES = frozenset(TYPES) - FLOAT_NAMES
STORED_TYPES = {**TYPES, **{t.name: t for t in (I8, I16, I32, I64, F64)}}
SOURCE_TYPES = {t.name: t for t in (F32, F16, BF16, I8)}
