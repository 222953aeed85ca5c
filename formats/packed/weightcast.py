"""Our own layout: codes, scales and zero points in rows, described in the header's metadata.

docs/layouts.md specifies it; the tests take its golden bytes from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.codes import as_bytes, pack_codes, rows_of, unpack_codes
from weightcast.formats.packed.config import (
    check_some,
    contradiction_of_groups,
    group_type_of,
    only_groups,
)
from weightcast.formats.packed.find import (
    ModuleTensors,
    find_each,
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
from weightcast.formats.reading import parse_json
from weightcast.formats.safetensors import read_header_metadata
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType, WeightType
from weightcast.text import shown

CODES: Final = ".codes"
SCALES: Final = ".scales"
ZERO_POINTS: Final = ".zero_points"
METADATA_KEY: Final = "weightcast"
VERSION: Final = 1


class Weightcast:
    """Planes of codes, scales and zero points."""

    name: Final = "weightcast"
    coding: Final = GROUPS
    scales: Final = SCALES
    is_written: Final = True
    traits: Final = Traits(
        quant_method="weightcast",
        readers=Readers(unread="weightcast's own layout of groups"),
        describes_itself=True,
    )

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type)

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        return only_groups(self.name, weight_type)

    def matrix_layout(self, weight_type: WeightType) -> Weightcast:
        return self

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        n_groups, n_out = group_count(shape), shape.n_out
        return (
            Part(CODES, "U8", (n_out, -(-shape.n_in * shape.type.bits // 8))),
            Part(SCALES, shape.type.scale_dtype, (n_out, n_groups)),
            *(() if shape.type.symmetric else (Part(ZERO_POINTS, "U8", (n_out, n_groups)),)),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 1

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        check_rows(self, rows, shape, row0)
        yield rows_of(CODES, pack_codes(rows.codes, shape.type.bits), row0)
        yield rows_of(SCALES, rows.scales, row0)
        if rows.zero_points is not None:
            yield rows_of(ZERO_POINTS, rows.zero_points, row0)

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        return {}

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        bits = shape.type.bits
        packed, scales, *zero_points = check_parts(self.name, self.parts(shape), parts)
        if shape.type.symmetric and ZERO_POINTS in parts:
            raise LayoutError(f"symmetric groups have no {ZERO_POINTS}, but one is there")
        codes = unpack_codes(as_bytes(packed), bits, shape.n_in)
        for stored in zero_points:
            if stored.max() >> bits:
                raise LayoutError(f"{ZERO_POINTS} has {stored.max()} with {bits} bits")
            return Groups(codes, scales, stored)
        return Groups(codes, scales, None)

    def header_metadata(self, matrices: Mapping[str, MatrixShape[GroupType]]) -> dict[str, str]:
        said = {
            name: {
                "bits": shape.type.bits,
                "group_size": shape.type.group_size,
                "symmetric": shape.type.symmetric,
                "scale_dtype": shape.type.scale_dtype,
                "shape": [shape.n_out, shape.n_in],
            }
            for name, shape in sorted(matrices.items())
        }
        value = {"version": VERSION, "matrices": said}
        return {METADATA_KEY: json.dumps(value, separators=(",", ":"))}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe all types; each file's header says the same of each of its matrices."""
        check_some(schemes)
        groups = []
        for scheme in schemes:
            group_type = group_type_of(scheme, self.name)
            said = {"targets": list(scheme.targets), "bits": group_type.bits}
            groups.append(
                said | {"group_size": group_type.group_size, "symmetric": group_type.symmetric}
            )
        return {"quant_method": self.traits.quant_method, "groups": groups, "ignore": list(ignore)}

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        found: dict[str, PackedMatrix] = {}
        for path in sorted({module.part(CODES).path for module in modules_with(CODES, arrays)}):
            try:
                described = read_metadata(read_header_metadata(path))
            except LayoutError as problem:
                raise LayoutError(f"{path}: {problem}") from None
            twice = sorted(found.keys() & described.keys())
            if twice:
                raise LayoutError(f"{path}: {shown(twice[0])} is described in another file too")

            def find(
                module: ModuleTensors, described: Mapping[str, MatrixShape[GroupType]] = described
            ) -> PackedMatrix:
                return packed_matrix(self, described[module.name], module)

            found |= find_each((ModuleTensors(name, arrays) for name in sorted(described)), find)
        if config and not found:
            raise MissingTensorError(
                "quant_method weightcast, but no file describes packed matrices"
            )
        return found

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return contradiction_of_groups(config, shape)


def read_metadata(metadata: Mapping[str, str]) -> dict[str, MatrixShape[GroupType]]:
    """Undo `header_metadata`; nothing if the key is not there. Raises LayoutError."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        value = parse_json(METADATA_KEY, metadata[METADATA_KEY])
    except FormatError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("matrices"), dict):
        raise LayoutError("the weightcast metadata are not a JSON object with matrices")
    if value.get("version") != VERSION:
        raise LayoutError(f"weightcast layout of version {shown(value.get('version'))}, not 1")
    return {name: _shape(name, said) for name, said in value["matrices"].items()}


def _shape(name: str, said: Any) -> MatrixShape[GroupType]:
    if isinstance(said, dict):
        bits, size, shape = said.get("bits"), said.get("group_size"), said.get("shape")
        symmetric, dtype = said.get("symmetric"), said.get("scale_dtype")
        if (
            type(bits) is int
            and type(size) is int
            and isinstance(symmetric, bool)
            and isinstance(dtype, str)
            and isinstance(shape, list)
            and len(shape) == 2
            and all(type(n) is int for n in shape)
        ):
            described = MatrixShape(GroupType(bits, size, symmetric, dtype), *shape)
            group_count(described)
            return described
    raise LayoutError(f"the weightcast metadata of {shown(name)} are not complete: {shown(said)}")
