"""Nested operations on stored arrays, beside numpy's on the values that these hold."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.converters.graph.operations import Files, draw_known
from tests.converters.graph.slabs import bits, check_slabs
from weightcast.converters.graph import matrices, reshaped
from weightcast.converters.graph.read import load_float32, read_slab
from weightcast.quant.backend import as_matrix
from weightcast.quant.cpu.library import Matrix, ScaleOverflowError, quantize_matrix
from weightcast.quant.types import BF16, Q4_0, Q4_K, Q5_1, Q6_K, Q8_0, QuantType

TYPES_MADE = (BF16, Q4_0, Q5_1, Q8_0, Q4_K, Q6_K)

SETTINGS = settings(max_examples=150, suppress_health_check=[HealthCheck.data_too_large])


@SETTINGS
@given(data=st.data())
def test_values_are_numpys(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_known(data.draw, Files(Path(folder), rng), rng)
        found = load_float32(known.tensor)
        assert found.shape == known.values.shape
        np.testing.assert_array_equal(bits(found), bits(known.values))


@SETTINGS
@given(data=st.data())
def test_slabs_of_every_size(data: st.DataObject) -> None:
    """All rows by slabs and pieces of some size: what a slab takes is what it says."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_known(data.draw, Files(Path(folder), rng), rng)
        views = matrices(known.tensor)
        planes = known.values.reshape(len(views), *views[0].shape)
        for view, plane in zip(views, planes, strict=True):
            rows = data.draw(st.integers(1, view.shape[0]))
            check_slabs(view, plane, rows, data.draw(st.integers(1, rows)))


@SETTINGS
@given(data=st.data())
def test_slabs_fit_their_limit(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_known(data.draw, Files(Path(folder), rng), rng)
        for view in matrices(known.tensor):
            n_out = view.shape[0]
            limit = data.draw(st.integers(1, 2 * view.slab_bytes(0, n_out)))
            rows = view.rows_per_slab(limit)
            assert 1 <= rows <= n_out
            starts = range(0, n_out, rows)
            most = max(view.slab_bytes(out0, min(out0 + rows, n_out)) for out0 in starts)
            assert most <= limit or rows == 1 or rows == min(64, n_out)
            if view.slab_bytes(0, n_out) <= limit:
                assert rows == n_out


@SETTINGS
@given(data=st.data())
def test_quantized_as_numpys_values(data: st.DataObject) -> None:
    """The bytes of a type are those that it makes of the values as numpy has them."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_known(data.draw, Files(Path(folder), rng), rng, last=(32, 64, 256))
        length = max((n for n in (32, 64, 256) if known.values.size % n == 0), default=None)
        assume(length is not None)
        shape = known.values.size // length, length
        tensor, values = reshaped(known.tensor, shape), known.values.reshape(shape)
        (view,) = matrices(tensor)
        kind = data.draw(st.sampled_from([t for t in TYPES_MADE if t.fits(length)]))
        if kind == Q8_0 and view.group_size is not None:
            kind = Q4_0  # codes are carried: no rounded values are made of them
        rows = data.draw(st.integers(-(-shape[0] // 4), shape[0]))
        for out0 in range(0, shape[0], rows):
            out1 = min(out0 + rows, shape[0])
            buffer = memoryview(bytearray(view.slab_bytes(out0, out1)))
            matrix = as_matrix(read_slab(view, out0, out1, buffer).matrix(0, out1 - out0))
            plain = np.ascontiguousarray(values[out0:out1]).reshape(-1)
            expected = Matrix(plain, "F32", out1 - out0, length, length, 1)
            np.testing.assert_array_equal(quantized(matrix, kind), quantized(expected, kind))


def quantized(matrix: Matrix, kind: QuantType) -> NDArray[np.uint8]:
    made = np.empty(matrix.n_out * kind.row_bytes(matrix.n_in), np.uint8)
    with contextlib.suppress(ScaleOverflowError):  # affine maps make large values; blocks are there
        quantize_matrix(matrix, kind, made)
    return made
