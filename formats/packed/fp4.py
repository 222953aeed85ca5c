"""MXFP4 and NVFP4 as compressed-tensors stores it, made of GGUF blocks and back, unchanged.

    .weight_packed        uint8 [out, in / 2]      e2m1 codes, 2k in the low nibble of byte k
    .weight_scale         MXFP4: uint8 [out, in / 32], x = fp4 * 2^(e - 127)
                          NVFP4: float8_e4m3fn [out, in / 16], x = fp4 * scale / global scale
    .weight_global_scale  NVFP4: float32 [1], the inverse of a factor beside the blocks, or 1; those
                          whose inverse is not exact are read by scaled_nvfp4.py

GGUF blocks (quant/kernels/blocks/layouts.h) hold the same codes and scales; the nibbles of each
run of values that share a scale are there in another order: first all low ones, then all high ones.
Source: compressed_tensors/compressors/{mxfp4,nvfp4} of
https://pypi.org/project/compressed-tensors/0.20.0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import LoadedRows, StoredArray
from weightcast.formats.packed.codes import pack_codes, rows_of, unpack_codes
from weightcast.formats.packed.coding import NO_CODES, Quantized
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    MatrixShape,
    Part,
    Segment,
    check_parts,
)
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.library import Blocks, Matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.fp4 import join_blocks, split_blocks
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import MXFP4, NVFP4, QuantType, WeightType

PACKED: Final = ".weight_packed"
SCALE: Final = ".weight_scale"
GLOBAL_SCALE: Final = ".weight_global_scale"
_NAN: Final = {"U8": 0xFF, "F8_E4M3": 0x7F}


class BlockCoding:
    """GGUF blocks, uint8 [rows, row bytes]."""

    working_bytes: Final = 2

    def is_searched(self, search: Search) -> bool:
        return search.is_least_error

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: QuantType,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
        search: Search = GGML,
    ) -> Quantized[NDArray[np.uint8]]:
        row_bytes = weight_type.row_bytes(source.n_in)
        if isinstance(source, Blocks) and source.type == weight_type:
            blocks = source.data.reshape(source.n_out, row_bytes)
        else:
            blocks = np.empty((source.n_out, row_bytes), np.uint8)
            backend.quantize(source, weight_type, blocks, importance, search)
        if baseline is None:
            return Quantized(blocks)
        matrix = as_matrix(source)
        return Quantized(blocks, self.measure(matrix, blocks, weight_type, importance, baseline))

    def carry(self, matrix: Matrix, weight_type: QuantType) -> Quantized[NDArray[np.uint8]]:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def check_carried(
        self, matrix: Matrix, rows: NDArray[np.uint8], weight_type: QuantType
    ) -> None:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def measure(
        self,
        matrix: Matrix,
        rows: NDArray[np.uint8],
        weight_type: QuantType,
        importance: NDArray[np.float32] | None,
        baseline: Baseline,
    ) -> Errors:
        return measure_matrix(matrix, weight_type, rows, importance, baseline)

    def values(
        self, rows: NDArray[np.uint8], weight_type: QuantType
    ) -> tuple[QuantType, NDArray[np.uint8]]:
        return weight_type, rows.reshape(-1)

    def memory_dtype(self, weight_type: QuantType) -> str:
        return weight_type.name

    def load(
        self, rows: NDArray[np.uint8], weight_type: QuantType, out: NDArray[np.uint8]
    ) -> LoadedRows:
        np.copyto(out, rows)
        return LoadedRows()


@dataclass(frozen=True, slots=True)
class Fp4:
    """One of the two types: values that share a scale, the scale's dtype.

    NVFP4 blocks can have a `factor` beside them, by which their values are to be multiplied: its
    inverse is the global scale.
    """

    name: str
    type: QuantType
    scaled_elements: int
    scale_dtype: str
    factor: float = 1.0

    @property
    def format(self) -> str:
        return self.name

    @property
    def coding(self) -> BlockCoding:
        return BLOCKS

    @property
    def scales(self) -> str:
        return SCALE

    @property
    def is_written(self) -> bool:
        return True

    def holds(self, weight_type: WeightType) -> bool:
        return weight_type == self.type

    def parts(self, shape: MatrixShape[QuantType]) -> tuple[Part, ...]:
        """Name the tensors of a matrix. Raises LayoutError if rows do not fill GGUF blocks."""
        n_out, n_in = shape.n_out, shape.n_in
        self.type.row_bytes(n_in)
        if n_out < 1 or n_in < 1:
            raise LayoutError(f"a matrix [{n_out}, {n_in}] has no weights to pack")
        packed = Part(PACKED, "U8", (n_out, n_in // 2))
        scale = Part(SCALE, self.scale_dtype, (n_out, n_in // self.scaled_elements))
        return (packed, scale, *(Part(n, "F32", (1,), None) for n in self.constants(shape)))

    def row_multiple(self, weight_type: QuantType) -> int:
        return 1

    def constants(self, shape: MatrixShape[QuantType]) -> dict[str, bytes]:
        return {GLOBAL_SCALE: self._global_scale.tobytes()} if self.type == NVFP4 else {}

    @property
    def _global_scale(self) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            inverse: NDArray[np.float32] = np.float32(1) / np.array([self.factor], np.float32)
        return inverse

    def under(self, factor: float) -> Fp4 | None:
        """Give the layout of blocks with a factor; None if no global scale stands for that."""
        found = replace(self, factor=factor)
        inverse = float(found._global_scale[0])
        is_possible = self.type == NVFP4 and 0 < inverse < math.inf and factor > 0
        return found if is_possible else None

    def pack(
        self, rows: NDArray[np.uint8], shape: MatrixShape[QuantType], row0: int
    ) -> Iterator[Segment]:
        """Place the bytes of rows [row0, ...) of the matrix, given as their blocks.

        Raises LayoutError where ggml's scales mean a number and compressed-tensors' a NaN.
        """
        row_bytes = self.type.row_bytes(shape.n_in)
        row1 = row0 + len(rows)
        if rows.dtype != np.uint8 or rows.shape != (len(rows), row_bytes):
            raise LayoutError(f"{rows.dtype} {list(rows.shape)} are no rows of {row_bytes} B")
        if row0 < 0 or row1 > shape.n_out:
            raise LayoutError(f"rows {row0} to {row1} are not all of {shape.n_out}")
        codes, scales = split_blocks(rows, self.type)
        yield rows_of(PACKED, pack_codes(codes, 4), row0)
        yield rows_of(SCALE, self._portable(scales), row0)

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[QuantType]
    ) -> NDArray[np.uint8]:
        """Make GGUF blocks, uint8 [out, row bytes]. Raises LayoutError if they cannot hold it."""
        packed, scale, *global_scale = check_parts(self.name, self.parts(shape), parts)
        for value in global_scale:
            if value[0] != self._global_scale[0]:
                known = "none but 1" if self.factor == 1 else f"{self._global_scale[0]} here"
                raise LayoutError(f"{GLOBAL_SCALE} is {value[0]}: GGUF blocks have {known}")
        raw = np.ascontiguousarray(scale).view(np.uint8)
        if np.any(raw >= _NAN[self.scale_dtype]):
            raise LayoutError(f"{SCALE} has a NaN or a negative number")
        codes = unpack_codes(np.ascontiguousarray(packed), 4, shape.n_in)
        return join_blocks(codes, raw, self.type)

    def arguments(self, weight_type: QuantType) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Give the arguments of weights and inputs in a quantization_config."""
        strategy = "tensor_group" if self.type == NVFP4 else "group"
        groups = {"strategy": strategy, "group_size": self.scaled_elements}
        return {"num_bits": 4, "type": "float"} | groups, None

    def _portable(self, scales: NDArray[np.uint8]) -> NDArray[Any]:
        """Give scales that mean to all readers what they mean to ggml."""
        if np.any(scales == 0xFF):
            value = "480" if self.type == NVFP4 else "2^128"
            raise LayoutError(f"a scale of {value}, which ggml reads, is a NaN in {self.name}")
        if self.type == NVFP4:
            # ggml takes 0x7F for zero and ignores the sign.
            scales = np.where(scales == 0x7F, 0, scales & 0x7F).astype(np.uint8)
        return scales.view(NUMPY_DTYPES[self.scale_dtype])


BLOCKS: Final = BlockCoding()
FP4_LAYOUTS: Final = {
    layout.type.name: layout
    for layout in (
        Fp4("mxfp4-pack-quantized", MXFP4, 32, "U8"),
        Fp4("nvfp4-pack-quantized", NVFP4, 16, "F8_E4M3"),
    )
}


def fp4_shape(packed: StoredArray, scale: StoredArray) -> MatrixShape[QuantType]:
    """Tell which type a matrix has by the dtype of its scales. Raises LayoutError if none."""
    types = {layout.scale_dtype: layout.type for layout in FP4_LAYOUTS.values()}
    if packed.dtype != "U8" or scale.dtype not in types:
        raise LayoutError(
            f"{packed.dtype} codes with {scale.dtype} scales are neither MXFP4 nor NVFP4"
        )
    return MatrixShape(types[scale.dtype], packed.shape[0], 2 * packed.shape[1])
