"""Quantize arrays in memory to codes with scales apart, as directories for serving store them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.backend import Backend, CpuBackend
from weightcast.quant.cpu.library import SourceValueError, dequantize_bytes
from weightcast.quant.feedback import ArrayFactors
from weightcast.quant.fp4 import SCALED_ELEMENTS, join_blocks, split_blocks
from weightcast.quant.fp8 import Fp8Rows, dequantize_fp8, quantize_fp8
from weightcast.quant.groups import Groups, dequantize_groups
from weightcast.quant.host import CODES, as_importance, as_numpy, as_source, like, matrix_of
from weightcast.quant.metrics import check_bytes
from weightcast.quant.names import CodedType, weight_type_named
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import MXFP4, NVFP4, Fp8Type, GroupType, QuantType

_FP4_SCALES: Final[dict[object, Any]] = {MXFP4: np.uint8, NVFP4: ml_dtypes.float8_e4m3fn}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quantized:
    """Weights [..., out, in] as codes with scales apart: what `quantize` gives for such types.

    int4 and int8 have `codes` 0 to 2**bits - 1, one a byte, uint8 [..., out, in], and `scales`,
    bfloat16 [..., out, groups]; if asymmetric also `zero_points`, uint8 [..., out, groups]. x =
    (code - zero point) * scale, where the zero point of symmetric groups is 2**(bits - 1).

    fp8 has `codes` of float8_e4m3fn and float32 `scales`, [..., out, 1], or one for each block, as
    [..., out / 128, in / 128]: x = code * scale.

    All are arrays of numpy (with ml_dtypes for what numpy lacks), or of torch if the weights were.

    >>> q = weightcast.quantize(np.eye(128, dtype=np.float32), "int4-g128-asym")
    >>> q
    <Quantized int4-g128-asym [128, 128]: 4.16 bits per weight>
    >>> q.codes.shape, q.scales.shape, q.zero_points.shape
    ((128, 128), (128, 1), (128, 1))
    >>> q.dequantize().dtype
    dtype('float32')
    """

    type: str
    codes: Any
    scales: Any
    zero_points: Any | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.type, str):
            raise LayoutError(
                f"a type is text such as 'int4-g128', not {type(self.type).__name__}; give type, "
                "codes, scales and zero_points, in this order"
            )

    @classmethod
    def from_blocks(cls, blocks: Any, type_name: str) -> Quantized:
        """Take GGUF blocks of MXFP4 or NVFP4, uint8 [..., bytes per row], apart, unchanged.

        `codes` are e2m1, uint8 [..., in]; `scales` are MXFP4's exponents + 127, uint8 [..., in /
        32], or NVFP4's float8_e4m3fn [..., in / 16]. Raises LayoutError for other types and dtypes.

        >>> blocks = weightcast.quantize(np.ones((2, 64), np.float32), "mxfp4")
        >>> weightcast.Quantized.from_blocks(blocks, "mxfp4").scales.shape
        (2, 2)
        """
        quant_type = weight_type_named(type_name)
        if not isinstance(quant_type, QuantType) or quant_type not in _FP4_SCALES:
            raise LayoutError(f"{quant_type.label} cannot be taken apart: MXFP4 and NVFP4 can")
        rows = as_numpy(blocks, "take apart", CODES)
        check_bytes(rows.dtype == np.uint8, rows.dtype, rows.shape, quant_type)
        quant_type.row_elements(rows.shape[-1])
        found = split_blocks(rows.reshape(-1, rows.shape[-1]), quant_type)
        codes, scales = (part.reshape(*rows.shape[:-1], part.shape[-1]) for part in found)
        scales = np.ascontiguousarray(scales).view(_FP4_SCALES[quant_type])
        return cls(quant_type.label.lower(), like(blocks, codes), like(blocks, scales))

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the shape of the weights, [..., out, in]."""
        return tuple(self.codes.shape)

    @property
    def bits_per_weight(self) -> float:
        """Give the bits of a weight, scales included, when codes of 4 bits are packed."""
        bits = _code_bits(weight_type_named(self.type))
        codes, scales, zero_points = self._arrays()
        zeros = 0 if zero_points is None else bits * zero_points.size
        return bits + (8 * scales.nbytes + zeros) / max(codes.size, 1)

    def dequantize(self) -> Any:
        """Compute the weights that it stands for, float32 [..., out, in], each rounded once.

        Raises LayoutError for arrays whose dtypes or shapes do not go together.
        """
        weight_type = weight_type_named(self.type)
        codes, scales, zero_points = self._arrays()
        _check(weight_type, codes, scales, zero_points)
        values = np.empty(codes.shape, np.float32)
        for index in np.ndindex(codes.shape[:-2]):
            zeros = None if zero_points is None else zero_points[index]
            values[index] = _values(codes[index], scales[index], zeros, weight_type)
        return like(self.codes, values.reshape(self.shape))

    def _arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Give its arrays as numpy's, of two axes at least."""
        codes, scales = (
            np.atleast_2d(as_numpy(array, "dequantize", CODES))
            for array in (self.codes, self.scales)
        )
        if self.zero_points is None:
            return codes, scales, None
        return codes, scales, np.atleast_2d(as_numpy(self.zero_points, "dequantize", CODES))

    def __repr__(self) -> str:
        try:
            size = f": {self.bits_per_weight:.2f} bits per weight"
        except LayoutError:  # made by hand, of no such type
            size = ""
        return f"<Quantized {self.type} {list(self.shape)}{size}>"


def _code_bits(weight_type: QuantType | CodedType) -> int:
    """Count the bits of a code, packed. Raises LayoutError for types without codes apart."""
    if isinstance(weight_type, QuantType) and weight_type not in _FP4_SCALES:
        raise LayoutError(f"{weight_type.label} has no codes apart; dequantize its blocks")
    if isinstance(weight_type, GroupType):
        return weight_type.bits
    return 8 if isinstance(weight_type, Fp8Type) else 4


def _check(
    weight_type: QuantType | CodedType,
    codes: NDArray[Any],
    scales: NDArray[Any],
    zero_points: NDArray[Any] | None,
) -> None:
    """Raise LayoutError for codes that are none of the type, or that others do not go with."""
    label, most = weight_type.label, (1 << _code_bits(weight_type)) - 1
    is_fp8 = isinstance(weight_type, Fp8Type)
    dtype = np.dtype(ml_dtypes.float8_e4m3fn if is_fp8 else np.uint8)
    if codes.dtype != dtype:
        raise LayoutError(f"codes of {label} are {dtype}, not {codes.dtype}")
    if dtype == np.uint8 and codes.size and codes.max() > most:
        raise LayoutError(f"codes of {label} are at most {most}, and one is {codes.max()}")
    for name, array in (("scales", scales), ("zero points", zero_points)):
        if array is not None and array.shape[:-2] != codes.shape[:-2]:
            raise LayoutError(
                f"{name} {list(array.shape)} do not go with codes {list(codes.shape)}"
            )
    if isinstance(weight_type, GroupType):
        return  # dequantize_groups checks the rest
    wanted = _scales_shape(weight_type, codes.shape)
    scale_dtype = np.dtype(_FP4_SCALES.get(weight_type, np.float32))
    if scales.shape != wanted or scales.dtype != scale_dtype:
        found = f"{scales.dtype} {list(scales.shape)}"
        raise LayoutError(f"scales of {label} are {scale_dtype} {list(wanted)}, not {found}")


def _scales_shape(weight_type: QuantType | Fp8Type, shape: tuple[int, ...]) -> tuple[int, ...]:
    *lead, n_out, n_in = shape
    if isinstance(weight_type, QuantType):
        weight_type.row_bytes(n_in)
        return (*lead, n_out, n_in // SCALED_ELEMENTS[weight_type])
    rows, columns = weight_type.rows or n_out, weight_type.columns or n_in
    return (*lead, -(-n_out // rows), -(-n_in // columns))


def _values(
    codes: NDArray[Any],
    scales: NDArray[Any],
    zero_points: NDArray[Any] | None,
    weight_type: QuantType | CodedType,
) -> NDArray[np.float32]:
    if isinstance(weight_type, GroupType):
        return dequantize_groups(Groups(codes, scales, zero_points), weight_type)
    if not isinstance(weight_type, QuantType):
        return dequantize_fp8(Fp8Rows(codes, scales), weight_type)
    blocks = join_blocks(codes, np.ascontiguousarray(scales).view(np.uint8), weight_type)
    return dequantize_bytes(weight_type, blocks.reshape(-1), codes.size).reshape(codes.shape)


def quantize_coded(
    x: Any,
    weight_type: CodedType,
    importance: Any | None,
    search: Search = GGML,
    hessian: Any | None = None,
) -> Quantized:
    """Quantize weights [..., out, in] of this machine's memory; see `arrays.quantize`."""
    array = as_source(x)
    if array.size == 0:
        raise LayoutError(f"an array of {list(array.shape)} has no values to quantize")
    factors = None if importance is None else as_importance(importance, array.shape)
    planes = array[None] if array.ndim == 1 else array
    moments = None if hessian is None else ArrayFactors(hessian, planes.shape)
    found = []
    for index in np.ndindex(planes.shape[:-2]):
        weights = None if factors is None else factors[index]
        backend: Backend = CpuBackend()
        if moments is not None:
            backend, weights = moments.backend(index, weights)
        try:
            found.append(_coded(planes[index], weight_type, weights, search, backend))
        except SourceValueError as error:
            raise error.at(index) from None
    shape = array.shape[: max(array.ndim - 2, 0)]

    def joined(part: Callable[[Groups], NDArray[Any]]) -> Any:
        stacked = np.stack([part(groups) for groups in found])
        own = stacked.shape[1 if array.ndim > 1 else 2 :]
        return like(x, stacked.reshape(*shape, *own))

    zero_points = None if found[0].zero_points is None else joined(_zero_points)
    label = weight_type.label.lower()
    return Quantized(label, joined(lambda g: g.codes), joined(lambda g: g.scales), zero_points)


def _zero_points(groups: Groups) -> NDArray[np.uint8]:
    assert groups.zero_points is not None
    return groups.zero_points


def _coded(
    plane: NDArray[Any],
    weight_type: CodedType,
    importance: NDArray[np.float32] | None,
    search: Search,
    backend: Backend,
) -> Groups:
    if isinstance(weight_type, GroupType):
        return backend.quantize_groups(
            matrix_of(plane), weight_type, importance, effort=search.group_effort
        )
    values = np.ascontiguousarray(plane, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise SourceValueError("NaN or infinity", *map(int, bad[0]))
    rows = quantize_fp8(values, weight_type, importance, search)
    return Groups(rows.weights, rows.scales, None)
