"""Error feedback: less cost than the search alone, the same bytes everywhere, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quant import instruction_sets
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize, quantize
from weightcast.quant.cpu.feedback import Factor, Grid, round_with_feedback
from weightcast.quant.feedback import factor, has_feedback, improve_blocks
from weightcast.quant.grids import GRIDS, as_blocks
from weightcast.quant.host import matrix_of
from weightcast.quant.names import weight_type_named
from weightcast.quant.types import TYPES, GroupType

N_IN = 512
GROUPS = ["int4-g32", "int4-g128-asym", "int4-channel", "int8-g128", "int8-g64-asym"]
ALL = [*GRIDS, *GROUPS]


def inputs(n_in: int, seed: int = 0) -> np.ndarray:
    """Draw inputs whose columns go together, some of them large, as those of models are."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(n_in) + rng.standard_normal((n_in, n_in)) / 16
    large = np.exp(rng.standard_normal(n_in))
    return (rng.standard_normal((3 * n_in, n_in)) * large @ mixed).astype(np.float32)


def hessian_of(x: np.ndarray) -> np.ndarray:
    return (x.T @ x).astype(np.float32)


X = inputs(N_IN)
HESSIAN = hessian_of(X)
WEIGHTS = np.random.default_rng(1).standard_normal((37, N_IN)).astype(np.float32) * np.float32(0.02)


def costs(weights: np.ndarray, made: Any, name: str, hessian: np.ndarray) -> np.ndarray:
    """The cost of each row's errors with damped second moments."""
    damped = hessian.astype(np.float64)
    damped[np.diag_indices_from(damped)] += 0.01 * np.diag(hessian).mean()
    errors = np.asarray(dequantize(made, name), np.float64) - weights
    return np.einsum("oi,ij,oj->o", errors, damped, errors)


@pytest.mark.parametrize("name", ALL)
def test_feedback_costs_much_less_than_importance(name: str) -> None:
    plain = quantize(WEIGHTS, name, np.diag(HESSIAN).copy())
    made = quantize(WEIGHTS, name, hessian=HESSIAN)
    before, after = (costs(WEIGHTS, q, name, HESSIAN) for q in (plain, made))
    assert (after < before).all()
    assert after.sum() < 0.6 * before.sum()


@pytest.mark.parametrize("name", ALL)
def test_errors_of_products_are_less(name: str) -> None:
    """On other inputs than those that the moments are of."""
    others = inputs(2 * N_IN, seed=5)[:, :N_IN] @ np.linalg.cholesky(HESSIAN).T
    plain = quantize(WEIGHTS, name, np.diag(HESSIAN).copy())
    made = quantize(WEIGHTS, name, hessian=HESSIAN)
    before, after = (
        np.square(others @ (np.asarray(dequantize(q, name)) - WEIGHTS).T).sum()
        for q in (plain, made)
    )
    assert after < 0.7 * before


@given(
    st.sampled_from(ALL),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 40, 3 * 256]),
    st.sampled_from([1e-6, 0.02, 30.0]),
)
@settings(max_examples=40, deadline=None)
def test_no_row_costs_more(name: str, rows: int, seed: int, tokens: int, size: float) -> None:
    """Also where few tokens say little, and with outliers and zeros among the weights."""
    rng = np.random.default_rng(seed)
    hessian = hessian_of(inputs(256, seed)[:tokens])
    weights = (size * rng.standard_normal((rows, 256)) ** 3).astype(np.float32)
    weights[rng.random(weights.shape) < 0.2] = 0
    plain = quantize(weights, name, np.ldexp(np.diag(hessian), _exponent(hessian)))
    made = quantize(weights, name, hessian=hessian)
    before, after = (costs(weights, q, name, hessian) for q in (plain, made))
    assert (after <= before * (1 + 1e-5)).all()


def _exponent(hessian: np.ndarray) -> int:
    return 1 - int(np.frexp(np.diag(hessian).max())[1])


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_those_of_the_kernels(name: str) -> None:
    quant_type, taken = TYPES[name], GRIDS[name]
    weights = WEIGHTS[:5].copy()
    weights[1, :300], weights[0, 3] = 0, 2
    rows = quantize(weights, name, np.ones(N_IN, np.float32))
    blocks = as_blocks(rows, quant_type)
    codes, grid = taken.take(blocks), taken.grid(blocks, len(rows))
    levels = np.arange(grid.n_levels, dtype=np.float32) if grid.levels is None else grid.levels
    span = N_IN // grid.steps.shape[1]
    values = grid.steps.repeat(span, 1) * levels[codes.reshape(weights.shape)]
    if grid.lows is not None:
        values += grid.lows.repeat(span, 1)
    np.testing.assert_allclose(values, dequantize(rows, name), rtol=1e-6, atol=1e-9)
    before = dequantize(rows, name)
    taken.put(blocks, codes)
    np.testing.assert_array_equal(dequantize(rows, name), before)
    others = np.random.default_rng(2).integers(0, grid.n_levels, codes.shape).astype(np.uint8)
    taken.put(blocks, others)
    np.testing.assert_array_equal(taken.take(blocks), others)


def reference(
    weights: np.ndarray, hessian: np.ndarray, steps: np.ndarray, lows: np.ndarray, top: int
) -> np.ndarray:
    """GPTQ as its paper has it, by the inverse of the damped second moments, largest first."""
    damped = hessian.astype(np.float64)
    damped[np.diag_indices_from(damped)] += 0.01 * np.diag(hessian).mean()
    order = np.argsort(np.diag(hessian), kind="stable")[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = weights.astype(np.float64)[:, order]
    codes = np.zeros(weights.shape, np.uint8)
    for k, column in enumerate(order):
        step, low = steps[:, column], lows[:, column]
        code = np.clip(np.floor((left[:, k] - low) / step + 0.5), 0, top)
        codes[:, column] = code
        error = (left[:, k] - (step * code + low)) / upper[k, k]
        left[:, k:] -= np.outer(error, upper[k, k:])
    return codes


@pytest.mark.parametrize(("n_out", "n_in"), [(1, 32), (5, 96), (17, 160), (9, 512)])
def test_codes_are_those_of_the_paper(n_out: int, n_in: int) -> None:
    rng = np.random.default_rng(n_in)
    hessian = hessian_of(inputs(n_in, 7))
    weights = rng.standard_normal((n_out, n_in)).astype(np.float32)
    steps = np.abs(weights).reshape(n_out, -1, 32).max(2) / np.float32(7.5)
    grid = Grid(steps, -8 * steps, 16)
    codes = np.zeros(weights.shape, np.uint8)
    found = round_with_feedback(weights, factor(hessian), grid, codes, choose=True)
    wide = [values.repeat(32, 1).astype(np.float64) for values in (steps, -8 * steps)]
    expected = reference(weights, hessian, *wide, 15)
    assert (codes == expected).mean() > 0.99  # ties that rounding decides spread
    errors = weights - (wide[0] * codes + wide[1])
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(n_in)
    np.testing.assert_allclose(found, np.einsum("oi,ij,oj->o", errors, damped, errors), rtol=1e-5)


def test_a_factor_stands_for_the_damped_moments() -> None:
    found = factor(HESSIAN, damping=0.05)
    lower = np.tril(found.values, -1) + np.eye(N_IN)
    product = lower * np.diag(found.values) @ lower.T
    expected = HESSIAN + 0.05 * np.diag(HESSIAN).mean() * np.eye(N_IN)
    np.testing.assert_allclose(product, expected[np.ix_(found.order, found.order)], rtol=1e-5)
    assert (np.diff(np.diag(HESSIAN)[found.order]) >= 0).all()


def test_every_instruction_set_makes_the_same_bytes(libraries: dict[str, Any]) -> None:
    made = []
    for loaded in libraries.values():
        with instruction_sets.using(loaded):
            by = factor(HESSIAN)
            rows = quantize(WEIGHTS, "Q4_K", hessian=HESSIAN)
            codes = quantize(WEIGHTS, "int4-g128-asym", hessian=HESSIAN).codes
        made.append((by.values.tobytes(), rows.tobytes(), codes.tobytes()))
    assert len(set(made)) == 1


@pytest.mark.parametrize("name", ["Q4_K", "NVFP4", "int4-g128"])
def test_rows_do_not_depend_on_those_around_them(name: str) -> None:
    whole = np.asarray(dequantize(quantize(WEIGHTS, name, hessian=HESSIAN), name))
    for rows in (slice(0, 1), slice(3, 12), slice(30, 37)):
        part = dequantize(quantize(WEIGHTS[rows], name, hessian=HESSIAN), name)
        np.testing.assert_array_equal(np.asarray(part), whole[rows])


def test_rows_are_cut_into_parts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(WEIGHTS, "Q4_K", hessian=HESSIAN)
    monkeypatch.setattr("weightcast.quant.feedback._LEAST_ROWS", 5)
    monkeypatch.setattr("weightcast.quant.feedback._WORK_VALUES", 1)
    np.testing.assert_array_equal(quantize(WEIGHTS, "Q4_K", hessian=HESSIAN), whole)


@pytest.mark.parametrize("name", ["Q8_0", "F16", "IQ3_S", "TQ2_0", "fp8"])
def test_types_without_feedback_ignore_it(name: str) -> None:
    assert not has_feedback(weight_type_named(name))
    importance = np.ldexp(np.diag(HESSIAN), _exponent(HESSIAN))
    made, plain = (
        np.asarray(dequantize(q, name))
        for q in (quantize(WEIGHTS, name, hessian=HESSIAN), quantize(WEIGHTS, name, importance))
    )
    np.testing.assert_array_equal(made, plain)


def test_each_matrix_has_moments_of_its_own() -> None:
    weights = np.stack([WEIGHTS, WEIGHTS, WEIGHTS])
    other = hessian_of(inputs(N_IN, 8))
    nothing = np.zeros_like(other)
    made = quantize(weights, "Q4_K", hessian=np.stack([HESSIAN, other, nothing]))
    for matrix, hessian in zip(made[:2], (HESSIAN, other), strict=True):
        np.testing.assert_array_equal(matrix, quantize(WEIGHTS, "Q4_K", hessian=hessian))
    alike = quantize(WEIGHTS, "Q4_K", np.ones(N_IN))  # no token came by
    np.testing.assert_array_equal(made[2], alike)
    same = quantize(weights, "int4-g128", hessian=HESSIAN)
    np.testing.assert_array_equal(same.codes[0], same.codes[2])


def test_torch_in_gives_torch_out() -> None:
    given = torch.from_numpy(WEIGHTS), torch.from_numpy(HESSIAN).double()
    made = quantize(given[0], "Q4_K", hessian=given[1])
    np.testing.assert_array_equal(made.numpy(), quantize(WEIGHTS, "Q4_K", hessian=HESSIAN))


def test_importance_that_is_given_decides_the_scales() -> None:
    importance = np.random.default_rng(4).random(N_IN).astype(np.float32)
    made = quantize(WEIGHTS, "int4-g128", importance, hessian=HESSIAN)
    searched = quantize(WEIGHTS, "int4-g128", importance)
    np.testing.assert_array_equal(made.scales, searched.scales)
    assert (made.codes != searched.codes).any()


@pytest.mark.parametrize(
    ("hessian", "problem"),
    [
        (HESSIAN[:5], r"second moments of shape \[5, 512\] for an array of \[37, 512\]"),
        (HESSIAN * np.nan, "NaN or infinity on the diagonal"),
        (-HESSIAN, "a second moment is negative"),
        (np.tril(HESSIAN), "not symmetric"),
        (np.where(np.eye(N_IN, k=3) + np.eye(N_IN, k=-3) > 0, np.nan, HESSIAN), "or NaN"),
        (np.zeros_like(HESSIAN), "all second moments are 0"),
        (np.full_like(HESSIAN, -1) + 2 * np.eye(N_IN, dtype="f4"), "not positive semidefinite"),
        ("moments", "cannot use str"),
        (HESSIAN.astype(complex), "real numbers"),
    ],
)
def test_what_is_no_second_moments_is_refused(hessian: Any, problem: str) -> None:
    with pytest.raises(LayoutError, match=problem):
        quantize(WEIGHTS, "Q4_K", hessian=hessian)


def test_a_factor_of_another_size_is_refused() -> None:
    by = Factor(np.eye(256), np.arange(256))
    rows = quantize(WEIGHTS, "Q4_K").reshape(-1)
    with pytest.raises(LayoutError, match="second moments of 256 inputs for rows of 512 values"):
        improve_blocks(matrix_of(WEIGHTS), TYPES["Q4_K"], rows, by)


def test_groups_alone_of_types_with_scales_apart_have_feedback() -> None:
    assert has_feedback(GroupType(4, 128))
    assert has_feedback(TYPES["NVFP4"])
