"""Low-rank products added to tensors, beside numpy's sums, through the other operations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.converters.graph.operations import (
    Files,
    Known,
    draw_operation,
    draw_source,
    float_values,
    floats,
)
from tests.converters.graph.slabs import bits, check_slabs
from weightcast.converters.graph import (
    Rows,
    StoredMatrix,
    Tensor,
    interleaved_halves,
    matrices,
    stored,
    stored_as,
    stored_bytes,
    take,
    transposed,
    with_low_rank,
)
from weightcast.converters.graph.gather import add_product
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.sums import Sum
from weightcast.errors import LayoutError

SETTINGS = settings(max_examples=150, suppress_health_check=[HealthCheck.data_too_large])


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """b [..., out, rank] @ a [..., rank, in], each step in float32, in the order of the rank."""
    total = b[..., :, 0:1] * a[..., 0:1, :]
    for rank in range(1, a.shape[-2]):
        total = total + b[..., :, rank : rank + 1] * a[..., rank : rank + 1, :]
    return total


def draw_sum(draw: st.DrawFn, files: Files, rng: np.random.Generator) -> Known:
    """A matrix or a stack of some, with one to three products added."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    known = draw_source(draw, files, rng, shape)
    tensor, values = known.tensor, known.values
    *lead, n_out, n_in = shape
    for _ in range(draw(st.integers(1, 3))):
        rank, dtype = draw(st.integers(1, 4)), draw(st.sampled_from(["F32", "F16", "BF16"]))
        a = floats(files, rng, (*lead, rank, n_in), dtype)
        b = floats(files, rng, (*lead, n_out, rank), dtype)
        by = draw(st.sampled_from([1.0, 0.5, -0.3, 2.7, 0.0]))
        tensor = with_low_rank(tensor, a.tensor, b.tensor, by)
        values = values + product(a.values, b.values) * np.float32(by)
    return Known(tensor, values)


def drawn_matrices(tensor: Tensor) -> tuple[StoredMatrix, ...]:
    """Resolve a tensor, if its rows do not go through the matrices of a stack."""
    try:
        return matrices(tensor)
    except LayoutError as problem:
        assume("lies across several matrices" not in str(problem))
        raise


@SETTINGS
@given(data=st.data())
def test_values_are_numpys_and_slabs_of_every_size_agree(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        files = Files(Path(folder), rng)
        known = draw_sum(data.draw, files, rng)
        for _ in range(data.draw(st.integers(0, 5))):
            known = draw_operation(data.draw, files, rng, known)
        views = drawn_matrices(known.tensor)
        found = load_float32(known.tensor)
        # Scaling a sum is scaling both summands, which may round otherwise.
        np.testing.assert_allclose(found, known.values, rtol=1e-5, atol=1e-4)
        planes = found.reshape(len(views), *views[0].shape)
        for view, plane in zip(views, planes, strict=True):
            rows = data.draw(st.integers(1, view.shape[0]))
            check_slabs(view, plane, rows, data.draw(st.integers(1, rows)))


@SETTINGS
@given(data=st.data())
def test_sums_are_numpys_to_the_bit(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_sum(data.draw, Files(Path(folder), rng), rng)
        np.testing.assert_array_equal(bits(load_float32(known.tensor)), bits(known.values))


@SETTINGS
@given(data=st.data())
def test_slabs_fit_their_limit(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        known = draw_sum(data.draw, Files(Path(folder), rng), rng)
        for view in matrices(known.tensor):
            assert isinstance(view, Sum)
            n_out = view.shape[0]
            limit = data.draw(st.integers(1, 2 * view.slab_bytes(0, n_out)))
            rows = view.rows_per_slab(limit)
            assert 1 <= rows <= n_out
            a_bytes = 4 * sum(a.shape[0] * a.shape[1] for held, _ in view.added for a in held.a)
            assert view.slab_bytes(0, rows) <= max(limit, 2 * a_bytes) or rows == 1


@pytest.mark.parametrize("shape", [(1, 1), (17, 2049), (40, 300)])
def test_products_do_not_depend_on_tiles(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    left, right = float_values(rng, (shape[0], 7)), float_values(rng, (7, shape[1]))
    whole = float_values(rng, shape)
    expected = whole + product(right, left) * np.float32(0.3)
    add_product(whole, left, right, 0.3)
    np.testing.assert_array_equal(bits(whole), bits(expected))


def test_heads_of_a_sum_are_interleaved_as_of_its_factor(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    files = Files(tmp_path, rng)
    base, a, b = (floats(files, rng, shape, "F32") for shape in ((16, 6), (3, 6), (16, 3)))
    summed = with_low_rank(base.tensor, a.tensor, b.tensor, 0.5)
    apart = with_low_rank(
        interleaved_halves(base.tensor, 2), a.tensor, interleaved_halves(b.tensor, 2), 0.5
    )
    found = load_float32(interleaved_halves(summed, 2))
    np.testing.assert_array_equal(bits(found), bits(load_float32(apart)))


def test_one_matrix_of_a_stack_reads_its_own_factors(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    files = Files(tmp_path, rng)
    base, a, b = (floats(files, rng, s, "F16") for s in ((3, 5, 4), (3, 2, 4), (3, 5, 2)))
    summed = with_low_rank(base.tensor, a.tensor, b.tensor, 1.0)
    (view,) = matrices(transposed(take(summed, 1)))
    assert isinstance(view, Sum)
    expected = (base.values[1] + product(a.values[1], b.values[1])).T
    found = load_float32(transposed(take(summed, 1)))
    np.testing.assert_array_equal(bits(found), bits(expected))
    assert stored_as(summed) == "F16"
    assert stored_bytes(summed) == base.values.size * 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    files = Files(tmp_path, rng)
    base, a, b = (floats(files, rng, s, "F32").tensor for s in ((5, 4), (2, 4), (5, 2)))
    with pytest.raises(LayoutError, match=r"w \[5, 4\] does not fit factors"):
        with_low_rank(base, transposed(a), b, 1.0)
    with pytest.raises(LayoutError, match="beyond float32"):
        with_low_rank(base, a, b, float("inf"))
    with pytest.raises(LayoutError, match="parts of it are sums"):
        with_low_rank(transposed(with_low_rank(base, a, b, 1.0)), transposed(b), transposed(a), 1)
    array = files.array(float_values(rng, (5, 4)), "F32", order=(0, 1))
    rows = Tensor("w", (5, 4), "F32", Rows(stored("w", array), 2))
    with pytest.raises(LayoutError, match="is no matrix"):
        with_low_rank(rows, a, b, 1.0)


def test_a_sum_describes_its_factors(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    files = Files(tmp_path, rng)
    base, a, b = (floats(files, rng, s, "F32").tensor for s in ((5, 4), (2, 4), (5, 2)))
    described = with_low_rank(base, a, b, 0.5).describe()["origin"]
    assert described["operation"] == "addlowrank"
    assert described["multipliers"] == [0.5]
    assert [source["shape"] for source in described["sources"]] == [[5, 4], [2, 4], [5, 2]]
