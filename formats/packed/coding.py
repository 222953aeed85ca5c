"""Codings: from weights to the rows that layouts pack, and from those back to values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.array import LoadedRows
from weightcast.quant.backend import Backend
from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import Search
from weightcast.quant.types import QuantType, WeightType

# The dtype in memory of bytes that mean nothing until they are decoded.
ENCODED: Final = "U8"
NO_CODES: Final = "holds no int8 codes: quantize them"
T_contra = TypeVar("T_contra", bound=WeightType, contravariant=True)
CodedRows = TypeVar("CodedRows")


@dataclass(frozen=True, slots=True)
class Quantized(Generic[CodedRows]):
    """Rows of a matrix after quantization; `errors` compares them with it, if that was asked."""

    rows: CodedRows
    errors: Errors | None = None
    counts: BlockCounts = field(default_factory=BlockCounts)


class Coding(Protocol[T_contra, CodedRows]):
    """Arithmetic of a kind of weight types, whose quantized rows are `CodedRows`."""

    def is_searched(self, search: Search) -> bool:
        """Tell whether scales are fitted to the weights by a rule, so that an importance counts."""
        ...

    @property
    def working_bytes(self) -> int:
        """Count the bytes that a weight takes while it is quantized and packed."""
        ...

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: T_contra,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
        search: Search,
    ) -> Quantized[CodedRows]:
        """Quantize rows and compare them with `baseline`, or with nothing.

        What is searched for goes through `backend`. Raises SourceValueError, LayoutError and, on a
        device, DeviceError.
        """
        ...

    def carry(self, matrix: Matrix, weight_type: T_contra) -> Quantized[CodedRows]:
        """Take the codes and scales of an int8 matrix as they are.

        Raises LayoutError if the type cannot hold them, InexactScaleError, which is one, if it is
        for a scale.
        """
        ...

    def check_carried(self, matrix: Matrix, rows: CodedRows, weight_type: T_contra) -> None:
        """Prove that rows stand for the codes and scales of an int8 matrix.

        Raises NotCarriedError at the first value for which they do not.
        """
        ...

    def measure(
        self,
        matrix: Matrix,
        rows: CodedRows,
        weight_type: T_contra,
        importance: NDArray[np.float32] | None,
        baseline: Baseline,
    ) -> Errors:
        """Compare rows with the matrix that they were made of."""
        ...

    def values(self, rows: CodedRows, weight_type: T_contra) -> tuple[QuantType, NDArray[np.uint8]]:
        """Give rows as bytes of a type that kernels read: GGUF blocks, or float32."""
        ...

    def memory_dtype(self, weight_type: T_contra) -> str:
        """Name what rows of a source are in memory: I8, GGUF blocks of a type, or ENCODED."""
        ...

    def load(self, rows: CodedRows, weight_type: T_contra, out: NDArray[np.uint8]) -> LoadedRows:
        """Put rows of a source into memory, `out` [rows, row bytes]."""
        ...
