"""Binding of the C++ kernels that measure errors: blocks beside their source (weightcast.h)."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu import library
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.metrics import MOMENTS, Baseline, Errors, of_moments
from weightcast.quant.types import QuantType


def measure_matrix(
    matrix: Matrix,
    quant_type: QuantType,
    rows: NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
    baseline: Baseline = Baseline.STORED,
) -> Errors:
    """Compare a matrix [n_out, n_in] with rows of blocks that were made of it, `row_bytes` each.

    Gives an entry for each row. `importance`, float32 [n_in], weighs the weighted sums. NaN and
    infinity are no failure here. Raises LayoutError if rows do not fill whole blocks or scales do
    not divide them.
    """
    moments = measure_moments(matrix, quant_type, rows, importance, baseline)
    return of_moments(moments, matrix.n_in)


def measure_moments(
    matrix: Matrix,
    quant_type: QuantType,
    rows: NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
    baseline: Baseline = Baseline.STORED,
) -> NDArray[np.void]:
    """Do as `measure_matrix` does, to plain MOMENTS [n_out]."""
    row_bytes = quant_type.row_bytes(matrix.n_in)
    if importance is not None:
        importance = library.shaped_importance(importance, matrix.n_in)
    moments = np.zeros(matrix.n_out, MOMENTS)
    if moments.size and matrix.n_in:
        library.check_bounds(matrix, quant_type, rows)
        library.check_build(library.load(), quant_type)
        status = _load().weightcast_measure(
            ctypes.byref(library._source(matrix)),
            None if importance is None else importance.ctypes.data,
            baseline.value,
            quant_type.ggml_id,
            rows.ctypes.data,
            row_bytes,
            moments.ctypes.data,
        )
        if status == library.BAD_SHAPE:
            raise library.bad_groups(matrix.n_in)
        assert status == library.OK, status
    return moments


@cache
def _load() -> ctypes.CDLL:
    """Load the library, with the types of what is called here."""
    loaded = library.load()
    loaded.weightcast_measure.argtypes = [
        ctypes.POINTER(library._Source),
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return loaded
