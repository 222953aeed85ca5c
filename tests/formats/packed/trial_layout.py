"""A layout that nobody needs, in one file: int4 codes, a byte each, in plain rows.

    .trial_codes   uint8 [out, in]    a code a byte, 0 to 15
    .trial_scales  scales [out, groups]

x = (q - 8) * scale. The test adds it to the table of layouts, and nothing else has to know it.
docs/contributing/add-a-layout.md refers to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.codes import rows_of
from weightcast.formats.packed.config import check_some, contradiction_of_groups, only_groups
from weightcast.formats.packed.find import (
    ModuleTensors,
    find_each,
    group_size,
    modules_with,
    packed_matrix,
)
from weightcast.formats.packed.groups import GROUPS, check_rows, group_count, is_group_type
from weightcast.formats.packed.layout import (
    MatrixShape,
    PackedMatrix,
    Part,
    Scheme,
    Segment,
    Traits,
    check_parts,
)
from weightcast.formats.packed.readers import Readers
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType, WeightType

CODES: Final = ".trial_codes"
SCALES: Final = ".trial_scales"


class Trial:
    """Codes a byte each and scales, in rows; "m-trial" has groups of 32 with float32 scales."""

    name: Final = "trial"
    coding: Final = GROUPS
    scales: Final = SCALES
    is_written: Final = True
    traits: Final = Traits(
        quant_method="trial",
        readers=Readers(unread="the layout of a test"),
        marks=(CODES,),
        types={"trial": GroupType(4, 32, scale_dtype="F32")},
    )

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type) and weight_type.bits == 4 and weight_type.symmetric

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        if not self.holds(weight_type):
            return only_groups(self.name, weight_type) or "trial holds int4 without zero points"
        return None

    def matrix_layout(self, weight_type: WeightType) -> Trial:
        return self

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        if not self.holds(shape.type):
            raise LayoutError(f"trial does not store {shape.type.label}")
        return (
            Part(CODES, "U8", (shape.n_out, shape.n_in)),
            Part(SCALES, shape.type.scale_dtype, (shape.n_out, group_count(shape))),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 1

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        check_rows(self, rows, shape, row0)
        yield rows_of(CODES, rows.codes, row0)
        yield rows_of(SCALES, rows.scales, row0)

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        return {}

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        codes, scales = check_parts(self.name, self.parts(shape), parts)
        if codes.max() > 15:
            raise LayoutError(f"{CODES} has {codes.max()} with 4 bits")
        return Groups(codes, scales, None)

    def header_metadata(self, matrices: Mapping[str, MatrixShape[GroupType]]) -> dict[str, str]:
        return {}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        check_some(schemes)
        return {"quant_method": self.traits.quant_method, "bits": 4, "ignore": list(ignore)}

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        def find(module: ModuleTensors) -> PackedMatrix:
            n_out, n_in = module.matrix(CODES).shape
            scales = module.matrix(SCALES)
            size = group_size(n_in, scales.shape[1])
            weight_type = GroupType(4, size, scale_dtype=scales.dtype)
            return packed_matrix(self, MatrixShape(weight_type, n_out, n_in), module)

        return find_each(modules_with(CODES, arrays), find)

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return contradiction_of_groups(config, shape)
