"""Binding of the C++ kernels for groups (kernels/weightcast.h): integers with scales along rows."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu import library
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.metrics import MOMENTS, Baseline
from weightcast.quant.types import SOURCE_TYPES

EFFORTS: Final = range(4)  # WEIGHTCAST_GROUP_EFFORTS


class _GroupType(ctypes.Structure):
    _fields_ = [
        ("bits", ctypes.c_int32),
        ("symmetric", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("search", ctypes.c_int32),
        ("group_size", ctypes.c_int64),
    ]


class _Groups(ctypes.Structure):
    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
    ]


class InexactScaleError(library.SourceValueError):
    """A scale that the type asked for cannot hold, at the first value of its group."""


class NotCarriedError(library.SourceValueError):
    """A group that should hold the source's code and scale, and does not, at its first value."""


def group_type(
    bits: int, group_size: int, symmetric: bool, scale_dtype: str, effort: int
) -> _GroupType:
    """Describe groups to the kernels; `group_size` is a number of values, never 0.

    `effort` is from 0, no search, to 3.
    """
    assert effort in EFFORTS
    return _GroupType(
        bits=bits,
        symmetric=symmetric,
        scale_type=SOURCE_TYPES[scale_dtype].ggml_id,
        search=effort,
        group_size=group_size,
    )


def _as_groups(
    codes: NDArray[np.uint8], scales: NDArray[Any], zero_points: NDArray[np.uint8] | None
) -> _Groups:
    # The library trusts its arguments.
    for array in (codes, scales, zero_points):
        assert array is None or (array.flags.c_contiguous and array.flags.aligned)
    assert codes.dtype == np.uint8
    assert zero_points is None or zero_points.dtype == np.uint8
    assert zero_points is None or zero_points.shape == scales.shape
    return _Groups(
        codes=codes.ctypes.data,
        scales=scales.ctypes.data,
        zero_points=None if zero_points is None else zero_points.ctypes.data,
        groups=scales.shape[1],
    )


def make(
    matrix: Matrix,
    made: _GroupType,
    importance: NDArray[np.float32] | None,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None,
    *,
    carry: bool = False,
) -> None:
    """Fill codes [n_out, n_in], scales and zero points [n_out, groups] from a matrix.

    `carry`: int8 codes and their scales as they are. Raises SourceValueError and LayoutError.
    """
    if matrix.n_out == 0 or matrix.n_in == 0:
        return
    groups = _room(matrix, made, codes, scales, zero_points)
    source, result = library._source(matrix), library._Result()
    last = (ctypes.byref(made), ctypes.byref(groups), ctypes.byref(result))
    if carry:
        status = load().weightcast_carry_groups(ctypes.byref(source), *last)
    else:
        factors = None if importance is None else importance.ctypes.data
        status = load().weightcast_quantize_groups(ctypes.byref(source), factors, *last)
    if status != library.OK:
        raise _error(status, matrix, made, result)


def make_and_measure(
    matrix: Matrix,
    made: _GroupType,
    importance: NDArray[np.float32] | None,
    baseline: Baseline,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None,
) -> NDArray[np.void]:
    """Do as `make` and `measure` do, in one call: MOMENTS [n_out]; raises as they do."""
    moments = np.zeros(matrix.n_out, MOMENTS)
    if matrix.n_out == 0 or matrix.n_in == 0:
        return moments
    groups, result = _room(matrix, made, codes, scales, zero_points), library._Result()
    status = load().weightcast_quantize_and_measure_groups(
        ctypes.byref(library._source(matrix)),
        None if importance is None else importance.ctypes.data,
        baseline.value,
        ctypes.byref(made),
        ctypes.byref(groups),
        moments.ctypes.data,
        ctypes.byref(result),
    )
    if status != library.OK:
        raise _error(status, matrix, made, result)
    return moments


def _room(
    matrix: Matrix,
    made: _GroupType,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None,
) -> _Groups:
    """Describe the arrays that the groups of a matrix are made in. Raises LayoutError."""
    library.check_matrix(matrix)
    assert codes.shape == (matrix.n_out, matrix.n_in)
    assert scales.shape == (matrix.n_out, matrix.n_in // made.group_size)
    assert scales.itemsize == (4 if made.scale_type == SOURCE_TYPES["F32"].ggml_id else 2)
    assert bool(made.symmetric) == (zero_points is None)
    return _as_groups(codes, scales, zero_points)


def check_carried(
    matrix: Matrix, made: _GroupType, codes: NDArray[np.uint8], scales: NDArray[Any]
) -> None:
    """Raise NotCarriedError unless codes and scales are those of an int8 matrix."""
    if matrix.n_out == 0 or matrix.n_in == 0:
        return
    library.check_matrix(matrix)
    source, groups, result = (
        library._source(matrix),
        _as_groups(codes, scales, None),
        library._Result(),
    )
    status = load().weightcast_check_carried(
        ctypes.byref(source), ctypes.byref(made), ctypes.byref(groups), ctypes.byref(result)
    )
    if status != library.OK:
        raise _error(status, matrix, made, result)


def measure(
    matrix: Matrix,
    made: _GroupType,
    groups: tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint8] | None],
    importance: NDArray[np.float32] | None,
    baseline: Baseline,
) -> NDArray[np.void]:
    """Compare a matrix with codes, scales and zero points: MOMENTS [n_out]. Raises LayoutError."""
    moments = np.zeros(matrix.n_out, MOMENTS)
    if matrix.n_out == 0 or matrix.n_in == 0:
        return moments
    library.check_matrix(matrix)
    assert groups[0].shape == (matrix.n_out, matrix.n_in)
    status = load().weightcast_measure_groups(
        ctypes.byref(library._source(matrix)),
        None if importance is None else importance.ctypes.data,
        baseline.value,
        ctypes.byref(made),
        ctypes.byref(_as_groups(*groups)),
        moments.ctypes.data,
    )
    if status == library.BAD_SHAPE:
        raise library.bad_groups(matrix.n_in)
    assert status == library.OK, status
    return moments


def _error(status: int, matrix: Matrix, made: _GroupType, result: library._Result) -> LayoutError:
    place = (result.bad_out, result.bad_in)
    scale_dtype = next(t.name for t in SOURCE_TYPES.values() if t.ggml_id == made.scale_type)
    if status == library.NOT_FINITE:
        return library.not_finite(matrix.scales is not None, *place)
    if status == library.OVERFLOW:
        return scale_overflow(scale_dtype, *place)
    if status == library.INEXACT_SCALE:
        assert matrix.scales is not None
        scale_group = result.bad_in // (matrix.n_in // matrix.scales.shape[0])
        scale = matrix.scales[scale_group, result.bad_out]
        return InexactScaleError(f"scale {scale!s} is not exact in {scale_dtype}", *place)
    if status == library.NOT_CARRIED:
        return NotCarriedError("made of int8, but another code or scale", *place)
    if status == library.BAD_IMPORTANCE:
        return library.bad_importance(result.bad_in)
    assert status == library.BAD_SHAPE, status
    return library.bad_groups(matrix.n_in)


def scale_overflow(scale_dtype: str, out: int, in_: int) -> library.RangeError:
    """The error for a scale beyond its dtype, at the first value of its group."""
    return library.RangeError(f"values too large for a scale of {scale_dtype}", out, in_)


def dequantize(
    made: _GroupType,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None,
) -> NDArray[np.float32]:
    """Multiply codes [rows, in], less their zero points, by the scales of their groups."""
    dst = np.empty(codes.shape, np.float32)
    groups = _as_groups(codes, scales, zero_points)
    status = load().weightcast_dequantize_groups(
        ctypes.byref(made), ctypes.byref(groups), *codes.shape, dst.ctypes.data
    )
    assert status == library.OK, status
    return dst


def load() -> ctypes.CDLL:
    """Load the library, with the types of what is called here."""
    loaded = library.load()
    argtypes: object = loaded.weightcast_dequantize_groups.argtypes
    if argtypes is None:
        pointer, structure = ctypes.c_void_p, ctypes.POINTER
        groups = (structure(_GroupType), structure(_Groups))
        source, result = structure(library._Source), structure(library._Result)
        loaded.weightcast_quantize_groups.argtypes = [source, pointer, *groups, result]
        loaded.weightcast_quantize_and_measure_groups.argtypes = [
            source,
            pointer,
            ctypes.c_int32,
            *groups,
            pointer,
            result,
        ]
        loaded.weightcast_carry_groups.argtypes = [source, *groups, result]
        loaded.weightcast_check_carried.argtypes = [source, *groups, result]
        loaded.weightcast_measure_groups.argtypes = [
            source,
            pointer,
            ctypes.c_int32,
            *groups,
            pointer,
        ]
        loaded.weightcast_dequantize_groups.argtypes = [
            *groups,
            ctypes.c_int64,
            ctypes.c_int64,
            pointer,
        ]
    return loaded
