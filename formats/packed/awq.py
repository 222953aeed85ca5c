"""The layout "gemm" of AWQ: eight output channels in an int32 word, 4 bits only.

    .qweight  int32 [in, out / 8]      codes; nibbles 0 to 7, lowest first, are the channels
    .qzeros   int32 [groups, out / 8]  0, 2, 4, 6, 1, 3, 5, 7 of each eight; zero points likewise
    .scales   scales [groups, out]

x = (q - z) * scale; symmetric weights are stored with zero points of 8.
Source: WQLinear_GEMM.from_linear, awq/modules/linear/gemm.py of
https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.config import awq_config
from weightcast.formats.packed.layout import (
    Part,
    Scheme,
    Segment,
    as_bytes,
    check_divides,
    check_parts,
    check_rows,
    columns_of,
    group_count,
)
from weightcast.quant.groups import Groups, GroupType

QWEIGHT: Final = ".qweight"
QZEROS: Final = ".qzeros"
SCALES: Final = ".scales"
# Channels in the low and in the high nibbles of a word's four bytes.
_LOW: Final = (0, 4, 1, 5)
_HIGH: Final = (2, 6, 3, 7)
_SYMMETRIC: Final = b"\x88"


class Awq:
    """AWQ, version "gemm"."""

    name: Final = "awq"

    def parts(self, group_type: GroupType, n_out: int, n_in: int) -> tuple[Part, ...]:
        n_groups = group_count(group_type, n_out, n_in)
        if group_type.bits != 4:
            raise LayoutError(f"awq stores 4 bits, not {group_type.bits}")
        check_divides(self.name, "out", n_out, 8)
        return (
            Part(QWEIGHT, "I32", (n_in, n_out // 8), 1, 8),
            Part(QZEROS, "I32", (n_groups, n_out // 8), 1, 8),
            Part(SCALES, group_type.scale_dtype, (n_groups, n_out), 1),
        )

    def row_multiple(self, group_type: GroupType) -> int:
        return 8

    def pack(
        self, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        self.parts(group_type, n_out, n_in)
        check_rows(self, groups, group_type, n_out, n_in, row0)
        yield columns_of(QWEIGHT, _pack(groups.codes), row0 // 2, n_out // 2)
        item = groups.scales.itemsize
        yield columns_of(SCALES, groups.scales.T, item * row0, item * n_out)
        if groups.zero_points is not None:
            yield columns_of(QZEROS, _pack(groups.zero_points), row0 // 2, n_out // 2)

    def constants(self, group_type: GroupType, n_out: int, n_in: int) -> dict[str, bytes]:
        _, qzeros, _ = self.parts(group_type, n_out, n_in)
        return {QZEROS: _SYMMETRIC * qzeros.nbytes} if group_type.symmetric else {}

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], group_type: GroupType, n_out: int, n_in: int
    ) -> Groups:
        wanted = self.parts(group_type, n_out, n_in)
        qweight, qzeros, scales = check_parts(self.name, wanted, parts)
        if group_type.symmetric and np.any(as_bytes(qzeros) != _SYMMETRIC[0]):
            raise LayoutError(f"{QZEROS} is not 8 everywhere, as it is for symmetric groups")
        zero_points = None if group_type.symmetric else _unpack(qzeros)
        return Groups(_unpack(qweight), np.ascontiguousarray(scales.T), zero_points)

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        return awq_config(schemes, ignore)


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack [rows, n] codes, rows side by side: uint8 [n, rows / 2], transposed."""
    rows, n = codes.shape
    eights = codes.reshape(rows // 8, 8, n)
    packed = eights[:, _LOW] | eights[:, _HIGH] << 4
    return np.asarray(packed.reshape(rows // 2, n).T, np.uint8)


def _unpack(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Undo `_pack`: int32 [n, rows / 8] into codes [rows, n]."""
    n, eighth = words.shape
    packed = as_bytes(as_bytes(words).T).reshape(eighth, 4, n)
    codes = np.empty((eighth, 8, n), np.uint8)
    codes[:, _LOW] = packed & 15
    codes[:, _HIGH] = packed >> 4
    return codes.reshape(8 * eighth, n)
