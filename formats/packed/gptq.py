"""The layouts of GPTQ, versions 1 and 2: int32 words along `in`, output channels side by side.

    .qweight  int32 [in * bits / 32, out]      codes of 32 / bits rows of the transposed matrix,
                                               lowest bits first
    .qzeros   int32 [groups, out * bits / 32]  zero points, lowest bits first
    .scales   scales [groups, out]
    .g_idx    int32 [in]                       the group of each input column

Version 1 stores zero points less one, x = (q - (z + 1)) * scale, version 2 as they are. So version
1 has no zero point 0, which asymmetric groups need: these are read, but not written.
Sources: QuantLinear.pack of https://github.com/AutoGPTQ/AutoGPTQ (auto_gptq/nn_modules/qlinear/
qlinear_cuda.py), and of https://github.com/ModelCloud/GPTQModel for version 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.config import NO_ZERO_POINT_0, gptq_config
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
    pack_codes,
    unpack_codes,
)
from weightcast.quant.groups import Groups, GroupType

QWEIGHT: Final = ".qweight"
QZEROS: Final = ".qzeros"
SCALES: Final = ".scales"
G_IDX: Final = ".g_idx"


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ; `less` is what zero points are stored less."""

    name: str
    less: int

    def parts(self, group_type: GroupType, n_out: int, n_in: int) -> tuple[Part, ...]:
        n_groups = group_count(group_type, n_out, n_in)
        bits = group_type.bits
        check_divides(self.name, "in", n_in, 32 // bits)
        check_divides(self.name, "out", n_out, 32 // bits)
        return (
            Part(QWEIGHT, "I32", (n_in * bits // 32, n_out), 1),
            Part(QZEROS, "I32", (n_groups, n_out * bits // 32), 1, 32 // bits),
            Part(SCALES, group_type.scale_dtype, (n_groups, n_out), 1),
            Part(G_IDX, "I32", (n_in,), None),
        )

    def row_multiple(self, group_type: GroupType) -> int:
        return 32 // group_type.bits  # zero points of so many rows share a word

    def pack(
        self, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        self.parts(group_type, n_out, n_in)
        if self.less and not group_type.symmetric:
            raise LayoutError(NO_ZERO_POINT_0)
        check_rows(self, groups, group_type, n_out, n_in, row0)
        words = pack_codes(groups.codes, group_type.bits).view("<i4")
        yield columns_of(QWEIGHT, words.T, 4 * row0, 4 * n_out)
        item = groups.scales.itemsize
        yield columns_of(SCALES, groups.scales.T, item * row0, item * n_out)
        if groups.zero_points is not None:
            stored = pack_codes(groups.zero_points.T, group_type.bits)
            yield columns_of(
                QZEROS, stored, row0 * group_type.bits // 8, n_out * group_type.bits // 8
            )

    def constants(self, group_type: GroupType, n_out: int, n_in: int) -> dict[str, bytes]:
        _, qzeros, *_ = self.parts(group_type, n_out, n_in)
        made = {G_IDX: _group_of_columns(group_type, n_in).tobytes()}
        if group_type.symmetric:
            made[QZEROS] = bytes([self.symmetric_byte(group_type)]) * qzeros.nbytes
        return made

    def symmetric_byte(self, group_type: GroupType) -> int:
        """What every byte of `.qzeros` is where groups of these bits are symmetric."""
        stored = (1 << group_type.bits - 1) - self.less
        return stored if group_type.bits == 8 else stored << 4 | stored

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], group_type: GroupType, n_out: int, n_in: int
    ) -> Groups:
        wanted = self.parts(group_type, n_out, n_in)
        qweight, qzeros, scales, g_idx = check_parts(self.name, wanted, parts)
        if not np.array_equal(g_idx, _group_of_columns(group_type, n_in)):
            raise LayoutError(f"{G_IDX} orders columns by activation (desc_act), which is not read")
        codes = unpack_codes(as_bytes(qweight.T), group_type.bits, n_in)
        return Groups(codes, np.ascontiguousarray(scales.T), self._zeros(qzeros, group_type, n_out))

    def _zeros(
        self, qzeros: NDArray[Any], group_type: GroupType, n_out: int
    ) -> NDArray[np.uint8] | None:
        stored = as_bytes(qzeros)
        if group_type.symmetric:
            if np.any(stored != self.symmetric_byte(group_type)):
                raise LayoutError(f"{QZEROS} is not that of symmetric groups in {self.name}")
            return None
        zeros = unpack_codes(stored, group_type.bits, n_out).T
        if self.less and group_type.bits == 8 and zeros.max() == 255:
            raise LayoutError(f"{QZEROS} has a zero point of 256, which is not read")
        # Of 4 bits it may be 16: readers add one after unpacking, without wrapping around.
        return np.ascontiguousarray(zeros) + np.uint8(self.less)

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        return gptq_config(schemes, ignore, block_modules, self.name)


def _group_of_columns(group_type: GroupType, n_in: int) -> NDArray[np.int32]:
    return (np.arange(n_in, dtype="<i4") // (group_type.group_size or n_in)).astype("<i4")


GPTQ_LAYOUTS: Final = {
    layout.name: layout for layout in (Gptq("gptq", less=1), Gptq("gptq_v2", less=0))
}
