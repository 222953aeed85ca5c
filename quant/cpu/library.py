"""Binding of the C++ library (kernels/weightcast.h) through ctypes, which releases the GIL."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import weightcast.quant
from weightcast.errors import CheckpointError, LayoutError
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import SOURCE_TYPES, TYPES, QuantType

ABI_VERSION = 6
LIBRARY_NAME = f"lib/libweightcast.so.{ABI_VERSION}"
OK, BAD_TYPE, BAD_SHAPE, NOT_FINITE, OVERFLOW, NEEDS_IMPORTANCE = range(6)
BAD_IMPORTANCE, MISCOMPILED, INEXACT_SCALE, NOT_CARRIED, NULL_ARGUMENT, NO_MEMORY = range(6, 12)
BAD_ARGUMENT, NOT_DEFINITE = 12, 13
# Functions that return a status.
_CHECKED: Final = (
    "carry_groups",
    "check_carried",
    "dequantize",
    "dequantize_groups",
    "factor_hessian",
    "measure",
    "measure_groups",
    "quantize",
    "quantize_and_measure_groups",
    "quantize_groups",
    "quantize_least_error",
    "round_with_feedback",
    "self_test",
    "transpose",
)
INSTRUCTION_SETS: Final = ("scalar", "sse2", "neon", "avx2", "avx512")


class _Source(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("n_out", ctypes.c_int64),
        ("n_in", ctypes.c_int64),
        ("stride_out", ctypes.c_int64),
        ("stride_in", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("scale_stride", ctypes.c_int64),
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        ("bad_out", ctypes.c_int64),
        ("bad_in", ctypes.c_int64),
        ("exact_blocks", ctypes.c_int64),
        ("requantized_blocks", ctypes.c_int64),
        ("inexact_scales", ctypes.c_int64),
    ]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A source matrix [n_out, n_in] in memory: a flat buffer, where it starts, its strides.

    `data` is a flat array of the stored dtype (bfloat16 and float16 as uint16), `start` the index
    of element (0, 0), strides count elements. int8 needs `scales`, float32 [groups, n_out].
    """

    data: NDArray[np.generic]
    dtype: str
    n_out: int
    n_in: int
    stride_out: int
    stride_in: int
    start: int = 0
    scales: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """A source matrix [n_out, n_in] in quantized blocks: flat uint8, row after row."""

    data: NDArray[np.uint8]
    type: QuantType
    n_out: int
    n_in: int

    def dequantized(self) -> Matrix:
        """The values as row-major float32."""
        values = dequantize_bytes(self.type, self.data, self.n_out * self.n_in)
        return Matrix(values, "F32", self.n_out, self.n_in, self.n_in, 1)


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks of int8: carried unchanged or requantized; scales that float16 cannot represent.

    They are those of Q8_0, or the groups of a packed matrix.
    """

    exact: int = 0
    requantized: int = 0
    inexact_scales: int = 0

    def __add__(self, other: BlockCounts) -> BlockCounts:
        return BlockCounts(
            self.exact + other.exact,
            self.requantized + other.requantized,
            self.inexact_scales + other.inexact_scales,
        )


class SourceValueError(LayoutError):
    """A value that cannot be converted, at [out, in] of the matrix."""

    def __init__(self, problem: str, out: int, in_: int) -> None:
        super().__init__(f"{problem} at [{out}, {in_}] (out, in)")
        self.problem = problem
        self.out = out
        self.in_ = in_

    def at(self, index: tuple[int, ...]) -> LayoutError:
        """Make the error of the matrix at `index` of an array of matrices, for who has the array.

        Of whatever rank that is, it is of the one class that users know.
        """
        if not index:
            return LayoutError(self)
        return LayoutError(f"{self.problem} at {[*index, self.out, self.in_]}")


class RangeError(SourceValueError):
    """A finite value that is too large for the type asked for."""


class ScaleOverflowError(RangeError):
    """A scale of a block beyond float16, at the first value of the block.

    The blocks were written all the same, as ggml writes them: with an infinite scale.
    """

    def __init__(self, type_name: str, out: int, in_: int, counts: BlockCounts) -> None:
        super().__init__(f"values too large for the float16 scale of {type_name}", out, in_)
        self.counts = counts


def installed(name: str) -> Path:
    """Find a built file of the package. Raises ImportError if it is not there."""
    # An editable install has two package directories: the sources and the built files.
    for folder in weightcast.quant.__path__:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise ImportError(f"{name} is missing: install the package again (pip install .)")


def _check_memory(status: int, _function: object, _arguments: object) -> int:
    """Pass on the status of a call, unless it had no memory for its buffers (below 1 MB)."""
    if status == NO_MEMORY:
        raise MemoryError("no memory for the buffers of the kernels")
    return status


@cache
def load() -> ctypes.CDLL:
    """Load the shared library that was installed with the package."""
    path = installed(LIBRARY_NAME)
    wanted = os.environ.get("WEIGHTCAST_ISA", "")
    if wanted and wanted not in INSTRUCTION_SETS:
        known = ", ".join(INSTRUCTION_SETS)
        raise CheckpointError(f"the variable WEIGHTCAST_ISA is {wanted!r}; use one of {known}")
    library = ctypes.CDLL(str(path))
    found = library.weightcast_abi_version()
    if found != ABI_VERSION:
        raise ImportError(f"{path} has ABI version {found}, expected {ABI_VERSION}: install again")
    for name in _CHECKED:
        getattr(library, f"weightcast_{name}").errcheck = _check_memory
    library.weightcast_isa.restype = ctypes.c_char_p
    library.weightcast_quantize.argtypes = [
        ctypes.POINTER(_Source),
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.POINTER(_Result),
    ]
    library.weightcast_quantize_least_error.argtypes = [
        ctypes.POINTER(_Source),
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.POINTER(_Result),
    ]
    library.weightcast_grid_tables.restype = ctypes.c_void_p
    library.weightcast_grid_tables.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)]
    library.weightcast_dequantize.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    for quant_type in TYPES.values():
        if not quant_type.has_grid:
            check_build(library, quant_type)
    return library


@cache
def check_build(library: ctypes.CDLL, quant_type: QuantType) -> None:
    """Compare with golden bytes of a type; grids take long to prepare, so theirs wait for use.

    Raises ImportError: a library that makes other bytes must not be used.
    """
    if library.weightcast_self_test(quant_type.ggml_id) != OK:
        raise ImportError(
            f"{library._name} makes wrong {quant_type.name} blocks (instruction set "
            f"{library.weightcast_isa().decode()}): it was miscompiled; install again, or set "
            "WEIGHTCAST_ISA to another one"
        )


def isa() -> str:
    """Name the instruction set in use: avx512, avx2, sse2, neon or scalar."""
    return str(load().weightcast_isa().decode())


def check_matrix(matrix: Matrix) -> None:
    """Assert that a matrix lies within its buffer: a wrong stride would be read past its end."""
    last = (
        matrix.start + (matrix.n_out - 1) * matrix.stride_out + (matrix.n_in - 1) * matrix.stride_in
    )
    assert min(matrix.start, matrix.stride_out, matrix.stride_in) >= 0
    assert last < matrix.data.size
    assert matrix.data.itemsize == SOURCE_TYPES[matrix.dtype].block_bytes
    assert matrix.data.flags.c_contiguous
    assert matrix.data.flags.aligned
    if matrix.scales is not None:
        assert matrix.scales.dtype == np.float32
        assert matrix.scales.shape[1] == matrix.n_out
        assert matrix.scales.strides[1] == 4 or matrix.n_out == 1


def check_bounds(matrix: Matrix, quant_type: QuantType, rows: NDArray[np.uint8]) -> None:
    check_matrix(matrix)
    assert rows.flags.c_contiguous
    assert rows.nbytes >= matrix.n_out * quant_type.row_bytes(matrix.n_in)


def _source(matrix: Matrix) -> _Source:
    """Describe a matrix to the library; it must outlive the description."""
    source = _Source(
        data=matrix.data.ctypes.data + matrix.start * matrix.data.itemsize,
        type=SOURCE_TYPES[matrix.dtype].ggml_id,
        n_out=matrix.n_out,
        n_in=matrix.n_in,
        stride_out=matrix.stride_out,
        stride_in=matrix.stride_in,
    )
    if matrix.scales is not None:
        source.scales = matrix.scales.ctypes.data
        source.groups = matrix.scales.shape[0]
        source.scale_stride = matrix.scales.strides[0] // 4
    return source


def used_importance(
    quant_type: QuantType,
    importance: NDArray[np.float32] | None,
    n_in: int,
    search: Search = GGML,
) -> NDArray[np.float32] | None:
    """Importance [n_in] as a type uses it: none if it ignores it. Raises LayoutError."""
    if not uses_importance(quant_type, search):
        return None
    if importance is None:
        if quant_type.importance == "required":
            raise no_importance(quant_type)
        return None
    return shaped_importance(importance, n_in)


def uses_importance(quant_type: QuantType, search: Search = GGML) -> bool:
    """Tell whether an importance changes the bytes of a type: of any blocks, for least error."""
    if search.is_least_error:
        return not quant_type.is_plain
    return quant_type.importance != "ignored"


def shaped_importance(importance: NDArray[np.float32], n_in: int) -> NDArray[np.float32]:
    """Importance [n_in] as the kernels read it. Raises LayoutError for another shape."""
    if importance.shape != (n_in,):
        raise LayoutError(f"importance of shape {list(importance.shape)} for rows of {n_in} values")
    return np.ascontiguousarray(importance, np.float32)


def quantize_matrix(
    matrix: Matrix,
    quant_type: QuantType,
    dst: NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
    search: Search = GGML,
) -> BlockCounts:
    """Write the rows of a matrix [n_out, n_in] into dst, `row_bytes` each.

    `importance`, float32 [n_in], weighs the errors of the input columns; types that do not use it
    ignore it. `search` is the rule by which scales and codes are chosen. Raises SourceValueError
    for NaN, infinity or a value beyond the type's range, LayoutError if rows do not fill whole
    blocks or the importance is missing or not valid.
    """
    importance = used_importance(quant_type, importance, matrix.n_in, search)
    if matrix.n_out == 0 or matrix.n_in == 0:
        return BlockCounts()
    check_bounds(matrix, quant_type, dst)
    assert dst.flags.writeable
    result = _Result()
    library = load()
    check_build(library, quant_type)
    source = ctypes.byref(_source(matrix))
    factors = None if importance is None else importance.ctypes.data
    rows = (dst.ctypes.data, quant_type.row_bytes(matrix.n_in), ctypes.byref(result))
    if search.is_least_error:
        status = library.weightcast_quantize_least_error(
            source, factors, quant_type.ggml_id, search.effort, *rows
        )
    else:
        status = library.weightcast_quantize(source, factors, quant_type.ggml_id, *rows)
    place = (result.bad_out, result.bad_in)
    if status == NOT_FINITE:
        raise not_finite(matrix.scales is not None, *place)
    counts = BlockCounts(result.exact_blocks, result.requantized_blocks, result.inexact_scales)
    if status == OVERFLOW:
        raise overflowed(quant_type, *place, counts)
    if status == BAD_IMPORTANCE:
        raise bad_importance(result.bad_in)
    if status == BAD_SHAPE:
        raise bad_groups(matrix.n_in)
    assert status == OK, status
    return counts


def not_finite(has_scales: bool, out: int, in_: int) -> SourceValueError:
    """The error for a source that is not finite; with scales, one of those is to blame."""
    problem = "NaN or infinity"
    if has_scales:
        problem = "a scale that is NaN, infinite or 2**121 and more"
    return SourceValueError(problem, out, in_)


def overflowed(quant_type: QuantType, out: int, in_: int, counts: BlockCounts) -> RangeError:
    """The error for a scale of a block, or a value, beyond a type's range."""
    if quant_type.block_elements > 1:
        return ScaleOverflowError(quant_type.name, out, in_, counts)
    return RangeError(f"a value beyond the range of {quant_type.name}", out, in_)


def no_importance(quant_type: QuantType) -> LayoutError:
    """The error for a type that needs importance and gets none."""
    return LayoutError(f"{quant_type.name} cannot be made without importance: give `importance`")


def bad_importance(column: int) -> LayoutError:
    """The error for an importance that cannot weigh errors."""
    return LayoutError(f"importance of column {column} is negative, infinite or NaN")


def bad_groups(n_in: int) -> LayoutError:
    """The error for scales that do not divide a row."""
    return LayoutError(f"{n_in} values along `in` do not divide into the scale groups")


def dequantize_bytes(
    quant_type: QuantType, src: NDArray[np.uint8], n_elements: int
) -> NDArray[np.float32]:
    """Dequantize `n_elements` values stored in `src` (contiguous) to a flat float32 array."""
    assert src.flags.c_contiguous
    assert src.nbytes >= quant_type.row_bytes(n_elements)
    dst = np.empty(n_elements, np.float32)
    library = load()
    check_build(library, quant_type)
    status = library.weightcast_dequantize(
        quant_type.ggml_id, src.ctypes.data, n_elements, dst.ctypes.data
    )
    assert status == OK, status
    return dst


def grid_tables(quant_type: QuantType) -> NDArray[np.uint8]:
    """The tables that the kernels of a type with a grid search, as bytes; none for other types."""
    nbytes = ctypes.c_int64()
    address = load().weightcast_grid_tables(quant_type.ggml_id, ctypes.byref(nbytes))
    if not address:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes.value).from_address(address))
