"""Which tensors of a safetensors directory are parts of packed matrices, and of which type.

The method comes from `quantization_config` of config.json, everything else from the tensors' own
shapes and dtypes: so a recipe's rules need not be matched with names. Which groups of GPTQ are
symmetric, where only some are, is seen from their zero points.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.formats.packed import LAYOUTS, compressed_tensors, fp8, gptq
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import Fp8Type, Part
from weightcast.formats.packed.weightcast import CODES, Described, read_metadata
from weightcast.formats.safetensors import read_header_metadata
from weightcast.quant.groups import GroupType
from weightcast.quant.types import QuantType
from weightcast.text import shown

_FP8_FORMAT: Final = "float-quantized"
# Last parts of names that only packed matrices have.
_MARKS: Final = (".weight_packed", ".qweight", ".weight_g_idx", ".weight_scale_inv")
_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed matrix [n_out, n_in] in files: its parts by suffix.

    `layout` is a name in LAYOUTS, of one of FP4_LAYOUTS, or "float-quantized".
    """

    layout: str
    type: GroupType | Fp8Type | QuantType
    n_out: int
    n_in: int
    parts: Mapping[str, StoredArray]


def recognize(
    config: Mapping[str, Any] | None, arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    """Find the packed matrices among all tensors of a directory, by the name of their module.

    `config` is its quantization_config. Parts are there, with the shapes that belong to the type.
    Raises LayoutError or MissingTensorError, with the tensor's name, for anything else.
    """
    config = config or {}
    if not isinstance(config, Mapping):
        raise LayoutError(f"quantization_config is {shown(config)}, not an object")
    method = config.get("quant_method")
    finders = {
        None: _find_weightcast,
        "weightcast": _find_weightcast,
        "compressed-tensors": _find_compressed,
        "gptq": _find_gptq,
        "awq": _find_awq,
    }
    if not isinstance(method, str | None) or method not in finders:
        known = ", ".join(name for name in finders if name)
        raise LayoutError(f"quant_method {shown(method)} is not read, only {known}")
    found = finders[method](config, arrays)
    taken = {name + suffix for name, matrix in found.items() for suffix in matrix.parts}
    for name in arrays:
        if name.endswith(_MARKS) and name not in taken:
            said = f"quant_method {method} does not explain"
            if method is None:
                said = "no quantization_config explains"
            raise LayoutError(f"{name}: packed in a way that {said}")
    return found


def _find_compressed(
    config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    def make(name: str) -> PackedMatrix:
        packed = _matrix(name, compressed_tensors.PACKED, arrays)
        scale = _matrix(name, compressed_tensors.SCALE, arrays)
        return (_pack_quantized if packed.dtype == "I32" else _fp4)(name, packed, scale, arrays)

    weights = _with_suffix(arrays, fp8.WEIGHT)
    scaled = [name for name in weights if name + fp8.SCALE in arrays]
    found = _each(_with_suffix(arrays, compressed_tensors.PACKED), make)
    return found | _each(scaled, lambda name: _fp8(name, arrays, config))


def _pack_quantized(
    name: str, packed: StoredArray, scale: StoredArray, arrays: Mapping[str, StoredArray]
) -> PackedMatrix:
    n_out, n_in = _read_shape(name, arrays)
    words = packed.shape[1]
    bits = [bits for bits in (4, 8) if -(-n_in * bits // 32) == words]
    if len(bits) != 1:
        raise LayoutError(f"{words} words for {n_in} values are not of 4 or 8 bits")
    symmetric = name + compressed_tensors.ZERO_POINT not in arrays
    size = _group_size(n_in, scale.shape[1])
    group_type = GroupType(bits[0], size, symmetric, scale.dtype)
    return _packed_matrix("compressed-tensors", name, group_type, (n_out, n_in), arrays)


def _fp4(
    name: str, packed: StoredArray, scale: StoredArray, arrays: Mapping[str, StoredArray]
) -> PackedMatrix:
    types = {layout.scale_dtype: layout for layout in FP4_LAYOUTS.values()}
    if packed.dtype != "U8" or scale.dtype not in types:
        raise LayoutError(
            f"{packed.dtype} codes with {scale.dtype} scales are neither MXFP4 nor NVFP4"
        )
    layout = types[scale.dtype]
    n_out, n_in = packed.shape[0], 2 * packed.shape[1]
    parts = _checked(name, layout.parts(n_out, n_in), arrays)
    return PackedMatrix(layout.name, layout.type, n_out, n_in, parts)


def _fp8(name: str, arrays: Mapping[str, StoredArray], config: Mapping[str, Any]) -> PackedMatrix:
    weight = _matrix(name, fp8.WEIGHT, arrays)
    if weight.dtype != "F8_E4M3":
        raise LayoutError(f"weights of {weight.dtype} with scales are not read")
    n_out, n_in = weight.shape
    fp8_type = _fp8_type(_matrix(name, fp8.SCALE, arrays), n_out, config)
    parts = _checked(name, fp8.parts(fp8_type, n_out, n_in), arrays)
    return PackedMatrix(_FP8_FORMAT, fp8_type, n_out, n_in, parts)


def _fp8_type(scale: StoredArray, n_out: int, config: Mapping[str, Any]) -> Fp8Type:
    """Tell the block from the config, which is the only place that has it."""
    if scale.shape == (n_out, 1):
        return Fp8Type()
    groups = config.get("config_groups")
    blocks = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("block_structure") is not None:
            said = weights["block_structure"]
            blocks.add(said if isinstance(said, str) else shown(said))
    if not blocks:
        return Fp8Type()
    block = _square(blocks.pop()) if len(blocks) == 1 else 0
    if not block:
        raise LayoutError("its block_structure is not a single square in the config")
    return Fp8Type(block)


def _square(text: str) -> int:
    """Take N from "[N, N]"; 0 if it is anything else."""
    rows, _, columns = text.strip("[]").partition(", ")
    return int(rows) if rows == columns and rows.isdecimal() and len(rows) < 6 else 0


def _find_gptq(
    config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    layout = config.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise LayoutError(f"checkpoint_format {shown(layout)} is not read, only gptq and gptq_v2")
    if config.get("desc_act"):
        raise LayoutError("desc_act: columns in the order of activation are not read")
    dynamic = config.get("dynamic") or {}
    exceptions = dynamic.values() if isinstance(dynamic, Mapping) else ()
    said = [config, *(rule for rule in exceptions if isinstance(rule, Mapping) and "sym" in rule)]
    symmetries = {rule.get("sym") is True for rule in said}

    def make(name: str) -> PackedMatrix:
        qweight = _matrix(name, gptq.QWEIGHT, arrays)
        scales = _matrix(name, gptq.SCALES, arrays)
        g_idx = _part(name, gptq.G_IDX, arrays)
        n_in = g_idx.shape[0] if len(g_idx.shape) == 1 else 0
        words, n_out = qweight.shape
        bits = 32 * words // n_in if n_in else 0
        if bits not in (4, 8):
            raise LayoutError(f"{words} words for {n_in} values are not of 4 or 8 bits")
        size = _group_size(n_in, scales.shape[0])
        group_type = GroupType(bits, size, True in symmetries, scales.dtype)
        matrix = _packed_matrix(layout, name, group_type, (n_out, n_in), arrays)
        # Rules may name modules as a runtime does, so the zero points decide which one is meant.
        if len(symmetries) > 1 and not _has_symmetric_zeros(matrix):
            return replace(matrix, type=replace(group_type, symmetric=False))
        return matrix

    return _each(_with_suffix(arrays, gptq.QWEIGHT), make)


def _has_symmetric_zeros(matrix: PackedMatrix) -> bool:
    """Whether a matrix of symmetric groups in GPTQ has their zero point everywhere."""
    assert isinstance(matrix.type, GroupType)
    byte = gptq.GPTQ_LAYOUTS[matrix.layout].symmetric_byte(matrix.type)
    qzeros = matrix.parts[gptq.QZEROS]
    for start in range(0, qzeros.nbytes, _PIECE_BYTES):
        end = min(start + _PIECE_BYTES, qzeros.nbytes)
        if np.any(_read_bytes(qzeros, start, end) != byte):
            return False
    return True


def _find_awq(
    config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    version = config.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise LayoutError(f"awq of version {shown(version)} is not read, only gemm")

    def make(name: str) -> PackedMatrix:
        n_in = _matrix(name, gptq.QWEIGHT, arrays).shape[0]
        scales = _matrix(name, gptq.SCALES, arrays)
        size = _group_size(n_in, scales.shape[0])
        group_type = GroupType(4, size, symmetric=False, scale_dtype=scales.dtype)
        shape = (scales.shape[1], n_in)
        return _packed_matrix("awq", name, group_type, shape, arrays)

    return _each(_with_suffix(arrays, gptq.QWEIGHT), make)


def _find_weightcast(
    config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    found: dict[str, PackedMatrix] = {}
    for path in sorted({arrays[name + CODES].path for name in _with_suffix(arrays, CODES)}):
        try:
            described = read_metadata(read_header_metadata(path))
        except LayoutError as problem:
            raise LayoutError(f"{path}: {problem}") from None
        twice = sorted(found.keys() & described.keys())
        if twice:
            raise LayoutError(f"{path}: {shown(twice[0])} is described in another file too")

        def make(name: str, described: dict[str, Described] = described) -> PackedMatrix:
            said = described[name]
            shape = (said.n_out, said.n_in)
            return _packed_matrix("weightcast", name, said.type, shape, arrays)

        found |= _each(sorted(described), make)
    if config and not found:
        raise MissingTensorError("quant_method weightcast, but no file describes packed matrices")
    return found


def _packed_matrix(
    layout: str,
    name: str,
    group_type: GroupType,
    shape: tuple[int, int],
    arrays: Mapping[str, StoredArray],
) -> PackedMatrix:
    parts = _checked(name, LAYOUTS[layout].parts(group_type, *shape), arrays)
    return PackedMatrix(layout, group_type, *shape, parts)


def _each(names: list[str], make: Callable[[str], PackedMatrix]) -> dict[str, PackedMatrix]:
    """Make each, naming it where it is refused."""
    found = {}
    for name in names:
        try:
            found[name] = make(name)
        except LayoutError as problem:
            raise LayoutError(f"{name}: {problem}") from None
    return found


def _with_suffix(arrays: Mapping[str, StoredArray], suffix: str) -> list[str]:
    return sorted(name.removesuffix(suffix) for name in arrays if name.endswith(suffix))


def _part(name: str, suffix: str, arrays: Mapping[str, StoredArray]) -> StoredArray:
    if name + suffix not in arrays:
        raise MissingTensorError(f"{name}{suffix} is not there, but other parts of {name} are")
    return arrays[name + suffix]


def _matrix(name: str, suffix: str, arrays: Mapping[str, StoredArray]) -> StoredArray:
    array = _part(name, suffix, arrays)
    if len(array.shape) != 2 or 0 in array.shape:
        raise LayoutError(f"{suffix} is {list(array.shape)}, not a matrix")
    return array


def _checked(
    name: str, wanted: tuple[Part, ...], arrays: Mapping[str, StoredArray]
) -> dict[str, StoredArray]:
    """Give the parts; raise LayoutError unless each has the dtype and shape that belong there."""
    parts = {}
    for part in wanted:
        array = _part(name, part.suffix, arrays)
        if (array.dtype, array.shape) != (part.dtype, part.shape):
            raise LayoutError(
                f"{part.suffix} is {array.dtype} {list(array.shape)}, where {part.dtype} "
                f"{list(part.shape)} belongs"
            )
        parts[part.suffix] = array
    return parts


def _group_size(n_in: int, n_groups: int) -> int:
    if n_in % n_groups:
        raise LayoutError(f"{n_groups} groups in rows of {n_in} values are not equal")
    return 0 if n_groups == 1 else n_in // n_groups


def _read_shape(name: str, arrays: Mapping[str, StoredArray]) -> tuple[int, int]:
    """Read the shape that only `.weight_shape` has where rows do not fill whole words."""
    array = _part(name, compressed_tensors.SHAPE, arrays)
    if (array.dtype, array.shape) != ("I64", (2,)):
        raise LayoutError(f"{compressed_tensors.SHAPE} is {array.dtype} {list(array.shape)}")
    n_out, n_in = _read_bytes(array, 0, 16).view("<i8").tolist()
    if n_out < 1 or n_in < 1:
        raise LayoutError(f"{compressed_tensors.SHAPE} says [{n_out}, {n_in}]")
    return n_out, n_in


def _read_bytes(array: StoredArray, start: int, end: int) -> NDArray[np.uint8]:
    buffer = np.empty(end - start, np.uint8)
    fd = os.open(array.path, os.O_RDONLY)
    try:
        read_stored(fd, array, start, buffer.data)
    finally:
        os.close(fd)
    return buffer
