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

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.codes import as_bytes, columns_of, pack_codes, unpack_codes
from weightcast.formats.packed.config import (
    REGEX,
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
    read_bytes,
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
G_IDX: Final = ".g_idx"
_VERSIONS: Final = ("gptq", "gptq_v2")
_NO_ZERO_POINT_0: Final = "gptq has no zero point 0: asymmetric groups need gptq_v2"
_PIECE_BYTES: Final = 1 << 16


def _in_vllm(weight_type: WeightType, is_expert: bool) -> str | None:
    if is_group_type(weight_type) and not weight_type.symmetric:
        return "its GPTQ has no zero points"
    return None


def _mixed_in_llama_cpp(types: Collection[WeightType]) -> str | None:
    if len({found.bits for found in types if is_group_type(found)}) > 1:
        return "takes all matrices for one type"
    return None


def _mixed_in_transformers(types: Collection[WeightType]) -> str | None:
    return "optimum takes all GPTQ matrices for one type" if len(types) > 1 else None


class Gptq:
    """GPTQ; zero points are stored less `less`.

    Without `has_order` columns are in the usual one, which nothing says: it is only read.
    """

    coding: Final = GROUPS
    scales: Final = SCALES

    def __init__(self, name: str, less: int, *, has_order: bool = True) -> None:
        self.name: Final = name
        self.less: Final = less
        self.is_written: Final = has_order
        readers = Readers(
            transformers="with optimum and GPTQModel (tested with 5.24)",
            in_vllm=_in_vllm,
            tested_in_vllm=is_group_type,
            mixed_in_transformers=_mixed_in_transformers,
            mixed_in_llama_cpp=_mixed_in_llama_cpp,
        )
        self.traits: Final = Traits("gptq", readers, marks=(QWEIGHT,))

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type)

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        if self.less and is_group_type(weight_type) and not weight_type.symmetric:
            return f"{_NO_ZERO_POINT_0}, as the name of the output can say"
        return only_groups(self.name, weight_type)

    def matrix_layout(self, weight_type: WeightType) -> Gptq:
        return self

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        n_groups, n_out, n_in = group_count(shape), shape.n_out, shape.n_in
        bits = shape.type.bits
        check_divides(self.name, "in", n_in, 32 // bits)
        check_divides(self.name, "out", n_out, 32 // bits)
        return (
            Part(QWEIGHT, "I32", (n_in * bits // 32, n_out), 1),
            Part(QZEROS, "I32", (n_groups, n_out * bits // 32), 1, 32 // bits),
            Part(SCALES, shape.type.scale_dtype, (n_groups, n_out), 1),
            *((Part(G_IDX, "I32", (n_in,), None),) if self.is_written else ()),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 32 // weight_type.bits  # zero points of so many rows share a word

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        self.parts(shape)
        bits, n_out = shape.type.bits, shape.n_out
        if self.less and not shape.type.symmetric:
            raise LayoutError(_NO_ZERO_POINT_0)
        check_rows(self, rows, shape, row0)
        words = pack_codes(rows.codes, bits).view("<i4")
        yield columns_of(QWEIGHT, words.T, 4 * row0, 4 * n_out)
        item = rows.scales.itemsize
        yield columns_of(SCALES, rows.scales.T, item * row0, item * n_out)
        if rows.zero_points is not None:
            stored = pack_codes(rows.zero_points.T, bits)
            yield columns_of(QZEROS, stored, row0 * bits // 8, n_out * bits // 8)

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        _, qzeros, *_ = self.parts(shape)
        made = {G_IDX: _group_of_columns(shape).tobytes()} if self.is_written else {}
        if shape.type.symmetric:
            made[QZEROS] = bytes([self._symmetric_byte(shape.type)]) * qzeros.nbytes
        return made

    def _symmetric_byte(self, group_type: GroupType) -> int:
        """Give every byte of `.qzeros` where groups of these bits are symmetric."""
        stored = (1 << group_type.bits - 1) - self.less
        return stored if group_type.bits == 8 else stored << 4 | stored

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        qweight, qzeros, scales, *g_idx = check_parts(self.name, self.parts(shape), parts)
        if g_idx and not np.array_equal(g_idx[0], _group_of_columns(shape)):
            raise LayoutError(f"{G_IDX} orders columns by activation (desc_act), which is not read")
        codes = unpack_codes(as_bytes(qweight.T), shape.type.bits, shape.n_in)
        zero_points = self._zero_points(qzeros, shape)
        return Groups(codes, np.ascontiguousarray(scales.T), zero_points)

    def _zero_points(
        self, qzeros: NDArray[Any], shape: MatrixShape[GroupType]
    ) -> NDArray[np.uint8] | None:
        stored, bits = as_bytes(qzeros), shape.type.bits
        if shape.type.symmetric:
            if np.any(stored != self._symmetric_byte(shape.type)):
                raise LayoutError(f"{QZEROS} is not that of symmetric groups in {self.name}")
            return None
        zeros = unpack_codes(stored, bits, shape.n_out).T
        if self.less and bits == 8 and zeros.max() == 255:
            raise LayoutError(f"{QZEROS} has a zero point of 256, which is not read")
        # Of 4 bits it may be 16: readers add one after unpacking, without wrapping around.
        return np.ascontiguousarray(zeros) + np.uint8(self.less)

    def header_metadata(self, matrices: Mapping[str, MatrixShape[GroupType]]) -> dict[str, str]:
        return {}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe the scheme of class "Linear", or else the first, for all modules.

        The others are `dynamic` rules. Without `block_modules`, vLLM takes the names of the
        checkpoint for those of its own modules, and leaves those that are called differently
        unquantized and uninitialized; optimum does that to packed modules that are not listed.
        """
        check_some(schemes)
        types = {scheme: group_type_of(scheme, self.name) for scheme in schemes}
        if self.less and not all(group_type.symmetric for group_type in types.values()):
            raise LayoutError(_NO_ZERO_POINT_0)
        main = next((scheme for scheme in schemes if "Linear" in scheme.targets), schemes[0])
        dynamic: dict[str, dict[str, Any]] = {f"-:{_regex(name)}": {} for name in ignore}
        for scheme, group_type in types.items():
            if scheme != main:
                said = _arguments(group_type)
                dynamic |= {f"+:{_regex(name)}": said for name in scheme.targets}
        config = {
            "quant_method": self.traits.quant_method,
            **_arguments(types[main]),
            "desc_act": False,
            "lm_head": False,
            "checkpoint_format": self.name,
            "pack_dtype": "int32",
            "dynamic": dynamic,
        }
        if block_modules:
            config["modules_in_block_to_quantize"] = [list(block_modules)]
        return config

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        """Find matrices; which are symmetric, where only some are, is seen from zero points."""
        version = config.get("checkpoint_format", "gptq")
        if version not in _VERSIONS:
            known = " and ".join(_VERSIONS)
            raise LayoutError(f"checkpoint_format {shown(version)} is not read, only {known}")
        if version != self.name:
            return {}
        if config.get("desc_act"):
            raise LayoutError("desc_act: columns in the order of activation are not read")
        symmetries = _symmetries(config)
        # Where no matrix has an order of columns, it is the usual one.
        has_order = any(name.endswith(G_IDX) for name in arrays)
        stored_as = self if has_order else Gptq(self.name, self.less, has_order=False)

        def find(module: ModuleTensors) -> PackedMatrix:
            bits = None if has_order else config.get("bits")
            shape = _shape(module, bits, symmetric=True in symmetries)
            matrix = packed_matrix(self, shape, module, stored_as)
            # Rules may name modules as a runtime does, so the zero points decide which is meant.
            if len(symmetries) > 1 and not self._has_symmetric_zeros(matrix, shape.type):
                asymmetric = replace(shape.type, symmetric=False)
                return replace(matrix, shape=replace(shape, type=asymmetric))
            return matrix

        return find_each(modules_with(QWEIGHT, arrays), find)

    def _has_symmetric_zeros(self, matrix: PackedMatrix, group_type: GroupType) -> bool:
        """Tell whether zero points are those of symmetric groups everywhere."""
        byte, qzeros = self._symmetric_byte(group_type), matrix.parts[QZEROS]
        for start in range(0, qzeros.nbytes, _PIECE_BYTES):
            end = min(start + _PIECE_BYTES, qzeros.nbytes)
            if np.any(read_bytes(qzeros, start, end) != byte):
                return False
        return True

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return contradiction_of_groups(config, shape)


def _group_of_columns(shape: MatrixShape[GroupType]) -> NDArray[np.int32]:
    size = shape.type.group_size or shape.n_in
    return (np.arange(shape.n_in, dtype="<i4") // size).astype("<i4")


def _arguments(group_type: GroupType) -> dict[str, Any]:
    return {
        "bits": group_type.bits,
        "group_size": group_type.group_size or -1,
        "sym": group_type.symmetric,
    }


def _regex(name: str) -> str:
    """Say in a regular expression which names are meant; readers match from the start."""
    return name[len(REGEX) :] if name.startswith(REGEX) else re.escape(name) + "$"


def _symmetries(config: Mapping[str, Any]) -> set[bool]:
    """Collect whether groups are symmetric by the config and its rules."""
    dynamic = config.get("dynamic") or {}
    exceptions = dynamic.values() if isinstance(dynamic, Mapping) else ()
    said = [config, *(rule for rule in exceptions if isinstance(rule, Mapping) and "sym" in rule)]
    return {rule.get("sym") is True for rule in said}


def _shape(module: ModuleTensors, bits_said: object, *, symmetric: bool) -> MatrixShape[GroupType]:
    """Tell bits and group size from the shapes of the parts, or from bits that are said."""
    qweight, scales = module.matrix(QWEIGHT), module.matrix(SCALES)
    words, n_out = qweight.shape
    if bits_said is None:
        g_idx = module.part(G_IDX)
        n_in = g_idx.shape[0] if len(g_idx.shape) == 1 else 0
    else:
        n_in = 32 * words // (8 if bits_said == 8 else 4)
    bits = 32 * words // n_in if n_in else 0
    if bits not in (4, 8):
        raise LayoutError(f"{words} words for {n_in} values are not of 4 or 8 bits")
    size = group_size(n_in, scales.shape[0])
    return MatrixShape(GroupType(bits, size, symmetric, scales.dtype), n_out, n_in)
