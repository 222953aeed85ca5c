"""Nested operations on stored arrays, beside numpy's on the values that these hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.converters.graph.operations import Files, draw_known
from tests.converters.graph.slabs import bits, check_slabs
from weightcast.converters.graph import load_float32, matrices

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.data_too_large]
)


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
