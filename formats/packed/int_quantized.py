"""Integers a byte each, as compressed-tensors stores what runs with integer activations: only read.

    .weight             int8 [out, in]      codes less 2**(bits - 1), also those of 4 bits
    .weight_scale       scales [out, groups]
    .weight_zero_point  int8 [out, groups]  less 2**(bits - 1); if asymmetric

Source: compressed_tensors/compressors/naive_quantized ("int-quantized") of
https://pypi.org/project/compressed-tensors/0.20.1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.config import claimed_bits
from weightcast.formats.packed.find import ModuleTensors, group_size, packed_matrix
from weightcast.formats.packed.groups import GROUPS, group_count, is_group_type
from weightcast.formats.packed.layout import (
    MatrixShape,
    PackedLayout,
    PackedMatrix,
    Part,
    Segment,
    check_parts,
)
from weightcast.quant.groups import SCALE_DTYPES, Groups
from weightcast.quant.types import GroupType, WeightType

WEIGHT: Final = ".weight"
SCALE: Final = ".weight_scale"
ZERO_POINT: Final = ".weight_zero_point"


class IntQuantized:
    """Codes, scales and maybe zero points."""

    name: Final = "int-quantized"
    coding: Final = GROUPS
    scales: Final = SCALE
    is_written: Final = False

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type)

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        of_groups = shape.n_out, group_count(shape)
        return (
            Part(WEIGHT, "I8", (shape.n_out, shape.n_in)),
            Part(SCALE, shape.type.scale_dtype, of_groups),
            *(() if shape.type.symmetric else (Part(ZERO_POINT, "I8", of_groups),)),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 1

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        return {}

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        raise LayoutError(f"{self.name} is only read")

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        codes, scales, *zero_points = check_parts(self.name, self.parts(shape), parts)
        bits = shape.type.bits
        unsigned = [_unsigned(array, bits) for array in (codes, *zero_points)]
        return Groups(unsigned[0], scales, unsigned[1] if zero_points else None)


INT_QUANTIZED: Final = IntQuantized()


def _unsigned(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Add 2**(bits - 1). Raises LayoutError for what does not fit the bits."""
    found = codes.view(np.uint8) + np.uint8(1 << bits - 1)  # modulo 256, as bytes are
    if bits < 8 and found.size and found.max() >= 1 << bits:
        raise LayoutError(f"a code that does not fit {bits} bits")
    return found


def int_matrix(
    layout: PackedLayout, module: ModuleTensors, config: Mapping[str, Any]
) -> PackedMatrix:
    """Find a matrix; only its config says of how many bits it is. Raises LayoutError."""
    n_out, n_in = module.matrix(WEIGHT).shape
    scale = module.part(SCALE)
    if scale.dtype not in SCALE_DTYPES:
        raise LayoutError(f"{SCALE} is {scale.dtype}, which scales of integers are not")
    n_groups = max(1, scale.nbytes // (n_out * SCALE_DTYPES[scale.dtype].itemsize))
    size = group_size(n_in, n_groups)
    group_type = GroupType(
        claimed_bits(config, size, n_in), size, not module.has(ZERO_POINT), scale.dtype
    )
    return packed_matrix(layout, MatrixShape(group_type, n_out, n_in), module, INT_QUANTIZED)
