"""The layout "gemm" of AWQ: eight output channels in an int32 word, 4 bits only.

    .qweight  int32 [in, out / 8]      codes; nibbles 0 to 7, lowest first, are the channels
    .qzeros   int32 [groups, out / 8]  0, 2, 4, 6, 1, 3, 5, 7 of each eight; zero points likewise
    .scales   scales [groups, out]

x = (q - z) * scale; symmetric weights are stored with zero points of 8.
Source: WQLinear_GEMM.from_linear, awq/modules/linear/gemm.py of
https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.codes import as_bytes, columns_of
from weightcast.formats.packed.config import (
    check_some,
    contradiction_of_groups,
    group_type_of,
    only_groups,
)
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
    check_divides,
    check_parts,
)
from weightcast.formats.packed.readers import Readers
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType, WeightType
from weightcast.text import shown

QWEIGHT: Final = ".qweight"
QZEROS: Final = ".qzeros"
SCALES: Final = ".scales"
# Channels in the low and in the high nibbles of a word's four bytes.
_LOW: Final = (0, 4, 1, 5)
_HIGH: Final = (2, 6, 3, 7)
_SYMMETRIC: Final = b"\x88"


def _in_vllm(weight_type: WeightType, is_expert: bool) -> str | None:
    if is_group_type(weight_type) and weight_type.group_size == 0:
        return "its AWQ has no scales for whole rows"
    return None


class Awq:
    """AWQ, version "gemm"."""

    name: Final = "awq"
    coding: Final = GROUPS
    scales: Final = SCALES
    is_written: Final = True
    traits: Final = Traits(
        quant_method="awq",
        readers=Readers(
            transformers="with optimum and GPTQModel (tested with 5.24)",
            in_vllm=_in_vllm,
            tested_in_vllm=is_group_type,
        ),
        marks=(QWEIGHT,),
        ignores_words=True,
    )

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type) and weight_type.bits == 4

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        if weight_type != main:
            return f"awq holds one packed type, here {main.label}, and bf16, f16, f32"
        return only_groups(self.name, weight_type)

    def matrix_layout(self, weight_type: WeightType) -> Awq:
        return self

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        n_groups, n_out = group_count(shape), shape.n_out
        if shape.type.bits != 4:
            raise LayoutError(f"awq stores 4 bits, not {shape.type.bits}")
        check_divides(self.name, "out", n_out, 8)
        return (
            Part(QWEIGHT, "I32", (shape.n_in, n_out // 8), 1, 8),
            Part(QZEROS, "I32", (n_groups, n_out // 8), 1, 8),
            Part(SCALES, shape.type.scale_dtype, (n_groups, n_out), 1),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 8

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        self.parts(shape)
        check_rows(self, rows, shape, row0)
        stride = shape.n_out // 2
        yield columns_of(QWEIGHT, _pack(rows.codes), row0 // 2, stride)
        item = rows.scales.itemsize
        yield columns_of(SCALES, rows.scales.T, item * row0, item * shape.n_out)
        if rows.zero_points is not None:
            yield columns_of(QZEROS, _pack(rows.zero_points), row0 // 2, stride)

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        _, qzeros, _ = self.parts(shape)
        return {QZEROS: _SYMMETRIC * qzeros.nbytes} if shape.type.symmetric else {}

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        qweight, qzeros, scales = check_parts(self.name, self.parts(shape), parts)
        if shape.type.symmetric and np.any(as_bytes(qzeros) != _SYMMETRIC[0]):
            raise LayoutError(f"{QZEROS} is not 8 everywhere, as it is for symmetric groups")
        zero_points = None if shape.type.symmetric else _unpack(qzeros)
        return Groups(_unpack(qweight), np.ascontiguousarray(scales.T), zero_points)

    def header_metadata(self, matrices: Mapping[str, MatrixShape[GroupType]]) -> dict[str, str]:
        return {}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe one type for all modules but those whose names contain an ignored word."""
        check_some(schemes)
        types = {group_type_of(scheme, self.name) for scheme in schemes}
        if len(types) > 1:
            raise LayoutError("awq has one type for all modules: use compressed-tensors or gptq")
        group_type = types.pop()
        if group_type.bits != 4:
            raise LayoutError(f"awq stores 4 bits, not {group_type.bits}")
        return {
            "quant_method": self.traits.quant_method,
            "bits": 4,
            "group_size": group_type.group_size or -1,
            # Symmetric weights have zero points too: 8 everywhere.
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": [_word(name) for name in ignore],
        }

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        version = config.get("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise LayoutError(f"awq of version {shown(version)} is not read, only gemm")

        def find(module: ModuleTensors) -> PackedMatrix:
            n_in = module.matrix(QWEIGHT).shape[0]
            scales = module.matrix(SCALES)
            size = group_size(n_in, scales.shape[0])
            group_type = GroupType(4, size, symmetric=False, scale_dtype=scales.dtype)
            return packed_matrix(self, MatrixShape(group_type, scales.shape[1], n_in), module)

        return find_each(modules_with(QWEIGHT, arrays), find)

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return contradiction_of_groups(config, shape)


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


def _word(name: str) -> str:
    """Say it as a part of names: `re:.*word.*` is all that AWQ knows beyond plain names."""
    word = re.sub(r"\.\*$|\$$", "", re.sub(r"^re:(\.\*)?", "", name)).replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", word):
        raise LayoutError(f"awq ignores modules by a part of their names, not by {name!r}")
    return word
