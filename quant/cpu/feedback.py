"""Binding of the C++ kernels for error feedback (kernels/weightcast.h) through ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cpu import library

_STRIP: Final = 8  # rows that the kernels' working memory is in multiples of


class _Factor(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("order", ctypes.c_void_p), ("n", ctypes.c_int64)]


class _Grid(ctypes.Structure):
    _fields_ = [
        ("steps", ctypes.c_void_p),
        ("lows", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("group_size", ctypes.c_int64),
        ("n_levels", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class Factor:
    """Second moments of a matrix's inputs, factored: float64 [in, in], and the columns' order.

    Row k of `values` is input column `order[k]`, int64 [in].
    """

    values: NDArray[np.float64]
    order: NDArray[np.int64]

    @property
    def n_in(self) -> int:
        return len(self.order)


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that codes [rows, in] stand for: steps * level + lows, float32 [rows, groups].

    Levels are 0 to `n_levels` - 1, or `levels`, float32, ascending.
    """

    steps: NDArray[np.float32]
    lows: NDArray[np.float32] | None
    n_levels: int
    levels: NDArray[np.float32] | None = None


def factor_hessian(moments: NDArray[np.float64]) -> None:
    """Factor moments [in, in] in place, as weightcast_factor_hessian does.

    Raises LayoutError if they are not positive definite.
    """
    n = len(moments)
    assert moments.shape == (n, n)
    assert moments.dtype == np.float64
    assert moments.flags.c_contiguous
    assert moments.flags.writeable
    status = _load().weightcast_factor_hessian(moments.ctypes.data, n)
    if status == library.NOT_DEFINITE:
        raise LayoutError("not positive semidefinite")
    assert status == library.OK, status


def round_with_feedback(
    weights: NDArray[np.float32],
    factor: Factor,
    grid: Grid,
    codes: NDArray[np.uint8],
    *,
    choose: bool,
) -> NDArray[np.float64]:
    """Choose codes [rows, in] in place, if asked to; give what the errors of each row cost."""
    n_out, n_in = weights.shape
    groups = grid.steps.shape[1]
    # The library trusts its arguments.
    for array in (weights, grid.steps, grid.lows, grid.levels, factor.values, factor.order, codes):
        assert array is None or array.flags.c_contiguous
    assert weights.dtype == grid.steps.dtype == np.float32
    assert factor.values.shape == (n_in, n_in)
    assert codes.shape == weights.shape
    assert codes.dtype == np.uint8
    assert grid.steps.shape == (n_out, groups)
    assert n_in % groups == 0
    assert grid.lows is None or grid.lows.shape == grid.steps.shape
    assert grid.lows is None or grid.lows.dtype == np.float32
    assert grid.levels is None or grid.levels.shape == (grid.n_levels,)
    assert codes.max(initial=0) < grid.n_levels
    work = np.empty(-(-n_out // _STRIP) * _STRIP * n_in)
    costs = np.empty(n_out)
    described = _Grid(
        grid.steps.ctypes.data,
        None if grid.lows is None else grid.lows.ctypes.data,
        None if grid.levels is None else grid.levels.ctypes.data,
        n_in // groups,
        grid.n_levels,
        0,
    )
    status = _load().weightcast_round_with_feedback(
        weights.ctypes.data,
        n_out,
        ctypes.byref(_Factor(factor.values.ctypes.data, factor.order.ctypes.data, n_in)),
        ctypes.byref(described),
        choose,
        codes.ctypes.data,
        work.ctypes.data,
        costs.ctypes.data,
    )
    assert status == library.OK, status
    return costs


def _load() -> ctypes.CDLL:
    """Load the library, with the types of what is called here."""
    loaded = library.load()
    argtypes: object = loaded.weightcast_factor_hessian.argtypes
    if argtypes is not None:
        return loaded
    pointer = ctypes.c_void_p
    loaded.weightcast_factor_hessian.argtypes = [pointer, ctypes.c_int64]
    loaded.weightcast_round_with_feedback.argtypes = [
        pointer,
        ctypes.c_int64,
        ctypes.POINTER(_Factor),
        ctypes.POINTER(_Grid),
        ctypes.c_int32,
        pointer,
        pointer,
        pointer,
    ]
    return loaded
