"""compressed-tensors: integers in int32 words along `in` ("pack-quantized"), and other forms.

    .weight_packed      int32 [out, ceil(in * bits / 32)]      codes, lowest bits first
    .weight_scale       scales [out, groups]                   "channel": [out, 1]
    .weight_zero_point  int32 [ceil(out * bits / 32), groups]  packed along `out`; if asymmetric
    .weight_shape       int64 [2]                              out, in

Codes and zero points are stored as they are here: 0 to 2**bits - 1. A reader subtracts
2**(bits - 1) from both, so x = (q - zero_point) * scale holds for either.
Source: compressed_tensors/compressors/pack_quantized of https://pypi.org/project/compressed-tensors/0.20.0
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.codes import as_bytes, pack_codes, padded, rows_of, unpack_codes
from weightcast.formats.packed.config import check_some, contradiction_of_groups
from weightcast.formats.packed.find import (
    ModuleTensors,
    find_each,
    group_size,
    modules_with,
    packed_matrix,
    read_bytes,
)
from weightcast.formats.packed.fp4 import FP4_LAYOUTS, GLOBAL_SCALE, fp4_shape
from weightcast.formats.packed.fp8 import FP8_LAYOUT, WEIGHT, block_type, fp8_matrix
from weightcast.formats.packed.groups import GROUPS, check_rows, group_count, is_group_type
from weightcast.formats.packed.int_quantized import int_matrix
from weightcast.formats.packed.layout import (
    MatrixLayout,
    MatrixShape,
    PackedMatrix,
    Part,
    Scheme,
    Segment,
    Traits,
    check_parts,
)
from weightcast.formats.packed.readers import Readers
from weightcast.formats.packed.scaled_nvfp4 import SCALED_NVFP4, has_global_scale
from weightcast.quant.groups import Groups
from weightcast.quant.names import weight_type_named
from weightcast.quant.types import GroupType, WeightType

PACKED: Final = ".weight_packed"
SCALE: Final = ".weight_scale"
ZERO_POINT: Final = ".weight_zero_point"
SHAPE: Final = ".weight_shape"
# What vLLM's kernels for experts take: groups of 256, or a scale a row.
_VLLM_INT8_GROUPS: Final = (256, 0)


class _Format(MatrixLayout[Any, Any], Protocol):
    """One of the ways that compressed-tensors stores a matrix."""

    @property
    def format(self) -> str: ...

    def holds(self, weight_type: WeightType) -> bool: ...

    def arguments(self, weight_type: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Give the arguments of weights and inputs in a quantization_config."""
        ...


class PackQuantized:
    """Integers in groups, in int32 words."""

    name: Final = "compressed-tensors"
    format: Final = "pack-quantized"
    coding: Final = GROUPS
    scales: Final = SCALE
    is_written: Final = True

    def holds(self, weight_type: WeightType) -> bool:
        return is_group_type(weight_type)

    def parts(self, shape: MatrixShape[GroupType]) -> tuple[Part, ...]:
        n_groups, n_out, bits = group_count(shape), shape.n_out, shape.type.bits
        words = (_words(n_out, bits), n_groups)
        zero_points = Part(ZERO_POINT, "I32", words, rows_each=32 // bits)
        return (
            Part(PACKED, "I32", (n_out, _words(shape.n_in, bits))),
            Part(SCALE, shape.type.scale_dtype, (n_out, n_groups)),
            Part(SHAPE, "I64", (2,), out_axis=None),
            *(() if shape.type.symmetric else (zero_points,)),
        )

    def row_multiple(self, weight_type: GroupType) -> int:
        return 1 if weight_type.symmetric else 32 // weight_type.bits

    def pack(self, rows: Groups, shape: MatrixShape[GroupType], row0: int) -> Iterator[Segment]:
        check_rows(self, rows, shape, row0)
        bits = shape.type.bits
        yield rows_of(PACKED, _pack_words(rows.codes, bits), row0)
        yield rows_of(SCALE, rows.scales, row0)
        if rows.zero_points is not None:
            words = _pack_words(rows.zero_points.T, bits).view("<i4").T
            yield rows_of(ZERO_POINT, words, row0 * bits // 32)

    def constants(self, shape: MatrixShape[GroupType]) -> dict[str, bytes]:
        group_count(shape)
        return {SHAPE: np.array([shape.n_out, shape.n_in], "<i8").tobytes()}

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[GroupType]) -> Groups:
        n_out, n_in, bits = shape.n_out, shape.n_in, shape.type.bits
        packed, scales, stored, *zero_words = check_parts(self.name, self.parts(shape), parts)
        if stored.tolist() != [n_out, n_in]:
            raise LayoutError(f"{SHAPE} says {stored.tolist()}, the model [{n_out}, {n_in}]")
        if shape.type.symmetric and ZERO_POINT in parts:
            raise LayoutError(f"symmetric groups have no {ZERO_POINT}, but one is there")
        zero_points = None
        for words in zero_words:
            along_out = unpack_codes(as_bytes(words.T), bits, n_out)
            zero_points = np.ascontiguousarray(along_out.T)
        return Groups(unpack_codes(as_bytes(packed), bits, n_in), scales, zero_points)

    def arguments(self, weight_type: GroupType) -> tuple[dict[str, Any], dict[str, Any] | None]:
        size = weight_type.group_size
        weights: dict[str, Any] = {"num_bits": weight_type.bits, "type": "int"}
        weights["symmetric"] = weight_type.symmetric
        # vLLM's kernels for experts compare the size with -1; without one they refuse channels.
        weights |= {"strategy": "group" if size else "channel", "group_size": size or -1}
        return weights, None


_FORMATS: Final[tuple[_Format, ...]] = (PackQuantized(), *FP4_LAYOUTS.values(), FP8_LAYOUT)


def _in_vllm(weight_type: WeightType, is_expert: bool) -> str | None:
    if not is_group_type(weight_type) or weight_type.bits != 8 or not is_expert:
        return None
    if not weight_type.symmetric:
        return "its kernels for int8 experts have no zero points"
    if weight_type.group_size not in _VLLM_INT8_GROUPS:
        return (
            "its kernels for int8 experts take groups of 256 or a scale a row, not groups of "
            f"{weight_type.group_size}"
        )
    return None


def _activations(weight_type: WeightType) -> str | None:
    if not FP8_LAYOUT.holds(weight_type):
        return None
    # docs/transformers.md has how this was measured.
    return (
        f"{weight_type.label} is run with activations in 8 bits: logits of a small model moved by "
        "11 % of their size, in blocks by 13 %"
    )


def _mixed_in_llama_cpp(types: Collection[WeightType]) -> str | None:
    return "refuses several config groups" if len(types) > 1 else None


_READERS: Final = Readers(
    transformers="with compressed-tensors (tested with 5.23 and 5.24)",
    transformers_hint=(
        ". Asymmetric groups need `quantization_config=CompressedTensorsConfig(dequantize=True)`"
    ),
    in_vllm=_in_vllm,
    tested_in_vllm=is_group_type,
    activations=_activations,
    mixed_experts=(
        "takes all matrices for one type of compressed-tensors; in GPTQ layouts they may differ"
    ),
    mixed_in_llama_cpp=_mixed_in_llama_cpp,
)


class CompressedTensors:
    """Any mix of integers in groups, MXFP4, NVFP4 and FP8."""

    name: Final = "compressed-tensors"
    traits: Final = Traits(
        quant_method="compressed-tensors",
        readers=_READERS,
        marks=(PACKED, SCALE, GLOBAL_SCALE, ".weight_g_idx"),
        types={name: weight_type_named(name) for name in ("mxfp4", "nvfp4", "fp8", "fp8-block")},
    )

    def holds(self, weight_type: WeightType) -> bool:
        return any(form.holds(weight_type) for form in _FORMATS)

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        return None

    def matrix_layout(self, weight_type: WeightType) -> _Format:
        for form in _FORMATS:
            if form.holds(weight_type):
                return form
        raise LayoutError(f"{weight_type.label} has no form in compressed-tensors")

    def header_metadata(self, matrices: Mapping[str, MatrixShape[WeightType]]) -> dict[str, str]:
        return {}

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe each scheme by a config group."""
        check_some(schemes)
        groups = [self._config_group(scheme) for scheme in schemes]
        formats = {group["format"] for group in groups}
        return {
            "quant_method": self.traits.quant_method,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": list(ignore),
            "config_groups": {f"group_{n}": group for n, group in enumerate(groups)},
        }

    def _config_group(self, scheme: Scheme) -> dict[str, Any]:
        form = self.matrix_layout(scheme.type)
        weights, inputs = form.arguments(scheme.type)
        return {
            "targets": list(scheme.targets),
            "weights": {"symmetric": True, "dynamic": False, **weights},
            "input_activations": inputs,
            "output_activations": None,
            "format": form.format,
        }

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        def packed(module: ModuleTensors) -> PackedMatrix:
            codes, scale = module.matrix(PACKED), module.matrix(SCALE)
            if scale.dtype == "F8_E8M0":  # MXFP4's exponents under their own name
                module = module.seen_as(SCALE, "U8", scale.shape)
                scale = module.matrix(SCALE)
            shape: MatrixShape[WeightType]
            shape = _shape(module) if codes.dtype == "I32" else fp4_shape(codes, scale)
            stored_as = SCALED_NVFP4 if has_global_scale(module) else None
            return packed_matrix(self, shape, module, stored_as)

        def a_byte_each(module: ModuleTensors) -> PackedMatrix:
            if module.matrix(WEIGHT).dtype == "I8":
                return int_matrix(self, module, config)
            return fp8_matrix(self, module, SCALE, block_type(config))

        scaled = [module for module in modules_with(WEIGHT, arrays) if module.has(SCALE)]
        found = find_each(modules_with(PACKED, arrays), packed)
        return found | find_each(scaled, a_byte_each)

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[WeightType]
    ) -> tuple[str, str] | None:
        return contradiction_of_groups(config, shape)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack along rows into whole words, the rest of the last one zero: uint8 [rows, 4 * words]."""
    return padded(pack_codes(codes, bits), 4 * _words(codes.shape[1], bits))


def _shape(module: ModuleTensors) -> MatrixShape[GroupType]:
    """Tell bits and group size from the shapes of the parts. Raises LayoutError."""
    n_out, n_in = _read_shape(module)
    words = module.matrix(PACKED).shape[1]
    bits = [bits for bits in (4, 8) if _words(n_in, bits) == words]
    if len(bits) != 1:
        raise LayoutError(f"{words} words for {n_in} values are not of 4 or 8 bits")
    scale = module.matrix(SCALE)
    size = group_size(n_in, scale.shape[1])
    group_type = GroupType(bits[0], size, not module.has(ZERO_POINT), scale.dtype)
    return MatrixShape(group_type, n_out, n_in)


def _read_shape(module: ModuleTensors) -> tuple[int, int]:
    """Read the shape that only `.weight_shape` has where rows do not fill whole words."""
    array = module.part(SHAPE)
    if (array.dtype, array.shape) != ("I64", (2,)):
        raise LayoutError(f"{SHAPE} is {array.dtype} {list(array.shape)}")
    n_out, n_in = read_bytes(array, 0, 16).view("<i8").tolist()
    if n_out < 1 or n_in < 1:
        raise LayoutError(f"{SHAPE} says [{n_out}, {n_in}]")
    return n_out, n_in
