"""FP8 of quant_method "fp8", as vLLM, Quark and DeepSeek write it: only read.

    .weight            float8_e4m3fn [out, in]
    .weight_scale      [], [1] or [out, 1]: one for the matrix, or a row
    .weight_scale_inv  [ceil(out / rows), ceil(in / columns)]: for each of weight_block_size

x = weight * scale under either name. Sources: quantization/fp8.py of vLLM 0.24;
quantizers/quantizer_finegrained_fp8.py of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.find import ModuleTensors, find_each, modules_with
from weightcast.formats.packed.fp8 import FP8_LAYOUT, SCALE, WEIGHT, fp8_matrix
from weightcast.formats.packed.layout import (
    AnyMatrixLayout,
    MatrixShape,
    PackedMatrix,
    Scheme,
    Traits,
)
from weightcast.formats.packed.readers import Readers
from weightcast.quant.types import Fp8Type, WeightType
from weightcast.text import shown

_SCALE_INV: Final = ".weight_scale_inv"
_ONLY_READ: Final = "directories of quant_method fp8 are only read; write -fp8 or -fp8-block"


class Fp8Checkpoint:
    """Floats of 8 bits, with a scale a matrix, a row or a block."""

    name: Final = "fp8-checkpoint"
    traits: Final = Traits("fp8", Readers(), marks=(_SCALE_INV,))

    def holds(self, weight_type: WeightType) -> bool:
        return False

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        return _ONLY_READ

    def matrix_layout(self, weight_type: WeightType) -> AnyMatrixLayout:
        return FP8_LAYOUT

    def header_metadata(self, matrices: Mapping[str, MatrixShape[Any]]) -> dict[str, str]:
        return {}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        raise LayoutError(_ONLY_READ)

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        blocks = _blocks(config.get("weight_block_size"))

        def found(module: ModuleTensors) -> PackedMatrix:
            suffix = _SCALE_INV if module.has(_SCALE_INV) else SCALE
            if suffix == _SCALE_INV and "weight_block_size" not in config:
                raise LayoutError("the config has no weight_block_size for its scales")
            return fp8_matrix(self, module, suffix, blocks)

        modules = modules_with(WEIGHT, arrays)
        return find_each((m for m in modules if m.has(SCALE) or m.has(_SCALE_INV)), found)

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return None


def _blocks(said: Any) -> Fp8Type:
    """Read weight_block_size, which is left out where there is a scale a matrix or a row."""
    if said is None:
        return Fp8Type(0, 0)
    if isinstance(said, list) and len(said) == 2:
        rows, columns = said
        if type(rows) is int and type(columns) is int and 0 < rows < 1 << 16 > columns > 0:
            return Fp8Type(rows, columns)
    raise LayoutError(f"weight_block_size is {shown(said)}, not two sizes")
