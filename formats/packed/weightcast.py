"""Our own layout: codes, scales and zero points in rows, described in the header's metadata.

docs/layouts.md specifies it; the tests take its golden bytes from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from weightcast.errors import FormatError, LayoutError
from weightcast.formats.packed.config import weightcast_config
from weightcast.formats.packed.layout import (
    Part,
    Scheme,
    Segment,
    as_bytes,
    check_parts,
    check_rows,
    group_count,
    pack_codes,
    rows_of,
    unpack_codes,
)
from weightcast.formats.reading import parse_json
from weightcast.quant.groups import Groups, GroupType
from weightcast.text import shown

CODES: Final = ".codes"
SCALES: Final = ".scales"
ZERO_POINTS: Final = ".zero_points"
METADATA_KEY: Final = "weightcast"
VERSION: Final = 1


class Weightcast:
    """Planes of codes, scales and zero points."""

    name: Final = "weightcast"

    def parts(self, group_type: GroupType, n_out: int, n_in: int) -> tuple[Part, ...]:
        n_groups = group_count(group_type, n_out, n_in)
        return (
            Part(CODES, "U8", (n_out, -(-n_in * group_type.bits // 8))),
            Part(SCALES, group_type.scale_dtype, (n_out, n_groups)),
            *(() if group_type.symmetric else (Part(ZERO_POINTS, "U8", (n_out, n_groups)),)),
        )

    def row_multiple(self, group_type: GroupType) -> int:
        return 1

    def pack(
        self, groups: Groups, group_type: GroupType, n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        check_rows(self, groups, group_type, n_out, n_in, row0)
        yield rows_of(CODES, pack_codes(groups.codes, group_type.bits), row0)
        yield rows_of(SCALES, groups.scales, row0)
        if groups.zero_points is not None:
            yield rows_of(ZERO_POINTS, groups.zero_points, row0)

    def constants(self, group_type: GroupType, n_out: int, n_in: int) -> dict[str, bytes]:
        return {}

    def unpack(
        self, parts: Mapping[str, NDArray[Any]], group_type: GroupType, n_out: int, n_in: int
    ) -> Groups:
        wanted = self.parts(group_type, n_out, n_in)
        packed, scales, *zero_points = check_parts(self.name, wanted, parts)
        if group_type.symmetric and ZERO_POINTS in parts:
            raise LayoutError(f"symmetric groups have no {ZERO_POINTS}, but one is there")
        codes = unpack_codes(as_bytes(packed), group_type.bits, n_in)
        for stored in zero_points:
            if stored.max() >> group_type.bits:
                raise LayoutError(f"{ZERO_POINTS} has {stored.max()} with {group_type.bits} bits")
            return Groups(codes, scales, stored)
        return Groups(codes, scales, None)

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        return weightcast_config(schemes, ignore)


@dataclass(frozen=True, slots=True)
class Described:
    """What the metadata say of one matrix [n_out, n_in]."""

    type: GroupType
    n_out: int
    n_in: int


def header_metadata(matrices: Mapping[str, Described]) -> dict[str, str]:
    """Describe the packed matrices of one file for `__metadata__` of its header."""
    said = {
        name: {
            "bits": matrix.type.bits,
            "group_size": matrix.type.group_size,
            "symmetric": matrix.type.symmetric,
            "scale_dtype": matrix.type.scale_dtype,
            "shape": [matrix.n_out, matrix.n_in],
        }
        for name, matrix in sorted(matrices.items())
    }
    value = {"version": VERSION, "matrices": said}
    return {METADATA_KEY: json.dumps(value, separators=(",", ":"))}


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Described]:
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
    return {name: _described(name, said) for name, said in value["matrices"].items()}


def _described(name: str, said: Any) -> Described:
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
            described = Described(GroupType(bits, size, symmetric, dtype), *shape)
            group_count(described.type, described.n_out, described.n_in)
            return described
    raise LayoutError(f"the weightcast metadata of {shown(name)} are not complete: {shown(said)}")
