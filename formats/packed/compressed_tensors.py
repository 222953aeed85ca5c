"""The layout "pack-quantized" of compressed-tensors: int32 words along `in`.

    .weight_packed      int32 [out, ceil(in * bits / 32)]      codes, lowest bits first
    .weight_scale       scales [out, groups]                   "channel": [out, 1]
    .weight_zero_point  int32 [ceil(out * bits / 32), groups]  packed along `out`; if asymmetric
    .weight_shape       int64 [2]                              out, in

Codes and zero points are stored as they are here: 0 to 2**bits - 1. A reader subtracts
2**(bits - 1) from both, so x = (q - zero_point) * scale holds for either.
Source: compressed_tensors/compressors/pack_quantized of https://pypi.org/project/compressed-tensors/0.20.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.config import compressed_tensors_config
from weightcast.formats.packed.layout import (
    Part,
    Scheme,
    Segment,
    as_bytes,
    check_parts,
    check_rows,
    group_count,
    pack_codes,
    padded,
    rows_of,
    unpack_codes,
)
from weightcast.quant.groups import Groups, GroupType

PACKED: Final = ".weight_packed"
SCALE: Final = ".weight_scale"
ZERO_POINT: Final = ".weight_zero_point"
SHAPE: Final = ".weight_shape"


class CompressedTensors:
    """compressed-tensors, pack-quantized."""

    name: Final = "compressed-tensors"

    def parts(self, group_type: GroupType, n_out: int, n_in: int) -> tuple[Part, ...]:
        n_groups = group_count(group_type, n_out, n_in)
        words = (_words(n_out, group_type.bits), n_groups)
        zero_points = Part(ZERO_POINT, "I32", words, rows_each=32 // group_type.bits)
        return (
            Part(PACKED, "I32", (n_out, _words(n_in, group_type.bits))),
            Part(SCALE, group_type.scale_dtype, (n_out, n_groups)),
            Part(SHAPE, "I64", (2,), out_axis=None),
            *(() if group_type.symmetric else (zero_points,)),
        )

    def row_multiple(self, group_type: GroupType) -> int:
        return 1 if group_type.symmetric else 32 // group_type.bits

    def pack(
        self, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        check_rows(self, groups, group_type, n_out, n_in, row0)
        yield rows_of(PACKED, _pack_words(groups.codes, group_type.bits), row0)
        yield rows_of(SCALE, groups.scales, row0)
        if groups.zero_points is not None:
            words = _pack_words(groups.zero_points.T, group_type.bits).view("<i4").T
            yield rows_of(ZERO_POINT, words, row0 * group_type.bits // 32)

    def constants(self, group_type: GroupType, n_out: int, n_in: int) -> dict[str, bytes]:
        group_count(group_type, n_out, n_in)
        return {SHAPE: np.array([n_out, n_in], "<i8").tobytes()}

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], group_type: GroupType, n_out: int, n_in: int
    ) -> Groups:
        wanted = self.parts(group_type, n_out, n_in)
        packed, scales, shape, *zero_words = check_parts(self.name, wanted, parts)
        if shape.tolist() != [n_out, n_in]:
            raise LayoutError(f"{SHAPE} says {shape.tolist()}, the model [{n_out}, {n_in}]")
        if group_type.symmetric and ZERO_POINT in parts:
            raise LayoutError(f"symmetric groups have no {ZERO_POINT}, but one is there")
        zero_points = None
        for words in zero_words:
            along_out = unpack_codes(as_bytes(words.T), group_type.bits, n_out)
            zero_points = np.ascontiguousarray(along_out.T)
        return Groups(unpack_codes(as_bytes(packed), group_type.bits, n_in), scales, zero_points)

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        return compressed_tensors_config(schemes, ignore)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack along rows into whole words, the rest of the last one zero: uint8 [rows, 4 * words]."""
    return padded(pack_codes(codes, bits), 4 * _words(codes.shape[1], bits))
