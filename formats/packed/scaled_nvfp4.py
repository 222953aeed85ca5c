"""NVFP4 with a global scale other than 1, which GGUF blocks do not have.

Where its inverse is exact, it is a factor beside blocks (`split_global_scale`), and these are as
good as any. Matrices under other global scales are only read.

    .weight_packed        uint8 [out, in / 2]            e2m1 codes, 2k in the low nibble of byte k
    .weight_scale         float8_e4m3fn [out, in / 16]
    .weight_global_scale  float32 [1]                    x = fp4 * (scale / global scale)

Source: compressed_tensors/compressors/nvfp4 and quantization/lifecycle/forward.py of
https://pypi.org/project/compressed-tensors/0.20.1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import LoadedRows, StoredArray
from weightcast.formats.packed.codes import unpack_codes
from weightcast.formats.packed.coding import ENCODED, NO_CODES, Quantized
from weightcast.formats.packed.find import ModuleTensors, read_bytes
from weightcast.formats.packed.fp4 import BLOCKS, FP4_LAYOUTS, GLOBAL_SCALE
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    MatrixShape,
    Part,
    Segment,
    check_parts,
)
from weightcast.formats.packed.rows import PackedReader, stored_matrix
from weightcast.quant.backend import Backend
from weightcast.quant.cpu.library import Blocks, Matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import F32, NVFP4, QuantType, WeightType

_UNSCALED: Final = FP4_LAYOUTS[NVFP4.name]
# Products of scales and such factors, or of codes and these, are exact in float32.
_MOST_DOUBLINGS: Final = 121
_MAGNITUDES: Final = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
_E2M1: Final = np.array([*_MAGNITUDES, *(-x for x in _MAGNITUDES)], np.float32)


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """Rows of one matrix; the scales include the global one."""

    packed: NDArray[np.uint8]  # [rows, in / 2 or more]
    scales: NDArray[np.float32]  # [rows, in / 16]

    def values(self, row0: int, row1: int) -> NDArray[np.float32]:
        """Decode rows [row0, row1), float32 [rows, in]."""
        scales = self.scales[row0:row1]
        codes = unpack_codes(self.packed[row0:row1], 4, scales.shape[1] * _UNSCALED.scaled_elements)
        with np.errstate(all="ignore"):  # what is not finite is found, and named, when it is used
            found: NDArray[np.float32] = _E2M1[codes]
            found *= scales.repeat(_UNSCALED.scaled_elements, axis=1)
        return found


class ScaledCoding:
    """NVFP4 under a global scale, by numpy."""

    working_bytes: Final = 6

    def is_searched(self, search: Search) -> bool:
        return BLOCKS.is_searched(search)

    def quantize(
        self,
        source: Matrix | Blocks,
        weight_type: QuantType,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        baseline: Baseline | None,
        search: Search = GGML,
    ) -> Quantized[ScaledRows]:
        made = BLOCKS.quantize(source, weight_type, importance, backend, baseline, search)
        shape = MatrixShape(weight_type, source.n_out, source.n_in)
        packed, scale = (segment.data for segment in _UNSCALED.pack(made.rows, shape, 0))
        scales = scale.view(NUMPY_DTYPES[_UNSCALED.scale_dtype]).astype(np.float32)
        rows = ScaledRows(packed.reshape(source.n_out, -1), scales.reshape(source.n_out, -1))
        return Quantized(rows, made.errors)

    def carry(self, matrix: Matrix, weight_type: QuantType) -> Quantized[ScaledRows]:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def check_carried(self, matrix: Matrix, rows: ScaledRows, weight_type: QuantType) -> None:
        raise LayoutError(f"{weight_type.label} {NO_CODES}")

    def measure(
        self,
        matrix: Matrix,
        rows: ScaledRows,
        weight_type: QuantType,
        importance: NDArray[np.float32] | None,
        baseline: Baseline,
    ) -> Errors:
        return measure_matrix(matrix, *self.values(rows, weight_type), importance, baseline)

    def values(
        self, rows: ScaledRows, weight_type: QuantType
    ) -> tuple[QuantType, NDArray[np.uint8]]:
        return F32, rows.values(0, len(rows.packed)).reshape(-1).view(np.uint8)

    def memory_dtype(self, weight_type: QuantType) -> str:
        return ENCODED

    def load(self, rows: ScaledRows, weight_type: QuantType, out: NDArray[np.uint8]) -> LoadedRows:
        kept = out[:, : rows.packed.shape[1]]
        np.copyto(kept, rows.packed)
        return LoadedRows(decode=partial(ScaledRows.values, replace(rows, packed=kept)))


class ScaledNvfp4:
    """Codes, scales and a global scale, whatever it is."""

    name: Final = _UNSCALED.name
    coding: Final = ScaledCoding()
    scales: Final = _UNSCALED.scales
    is_written: Final = False

    def holds(self, weight_type: WeightType) -> bool:
        return weight_type == NVFP4

    def parts(self, shape: MatrixShape[QuantType]) -> tuple[Part, ...]:
        return _UNSCALED.parts(shape)

    def row_multiple(self, weight_type: QuantType) -> int:
        return 1

    def constants(self, shape: MatrixShape[QuantType]) -> dict[str, bytes]:
        return {}

    def pack(self, rows: ScaledRows, shape: MatrixShape[QuantType], row0: int) -> Iterator[Segment]:
        raise LayoutError(f"{self.name} with a global scale is only read")

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[QuantType]
    ) -> ScaledRows:
        packed, scale, global_scale = check_parts(self.name, self.parts(shape), parts)
        with np.errstate(all="ignore"):
            return ScaledRows(packed, scale.astype(np.float32) / global_scale[0])


SCALED_NVFP4: Final = ScaledNvfp4()


def has_global_scale(module: ModuleTensors) -> bool:
    """Tell whether the blocks of a matrix are under a global scale other than 1."""
    if not module.has(GLOBAL_SCALE):
        return False
    array = module.part(GLOBAL_SCALE)
    if (array.dtype, array.nbytes) != ("F32", 4):
        return False  # which the layout without it refuses
    value = _number(array)
    if not 0 < value < math.inf:
        raise LayoutError(f"{GLOBAL_SCALE} is {value:g}, not a positive number")
    return value != 1


def split_global_scale(array: StoredArray) -> tuple[StoredArray, float] | None:
    """Give a matrix without its global scale, and the factor that stands for it.

    The product is the weights to the bit, as the scale is a power of two; None of other arrays.
    """
    reader = array.packed
    if not isinstance(reader, PackedReader) or reader.stored_as is not SCALED_NVFP4:
        return None
    mantissa, exponent = math.frexp(_number(reader.parts[GLOBAL_SCALE]))
    if mantissa != 0.5 or abs(exponent) > _MOST_DOUBLINGS:
        return None
    factor = 2.0 ** (1 - exponent)
    layout = _UNSCALED.under(factor)
    assert layout is not None
    return stored_matrix(reader.name, replace(reader.matrix, stored_as=layout)), factor


def _number(array: StoredArray) -> float:
    return float(read_bytes(array, 0, 4).view("<f4")[0])
