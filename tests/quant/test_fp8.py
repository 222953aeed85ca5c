"""Floats of 8 bits with scales of least error: never worse, the same bytes however rows are cut."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.quant.families import FAMILIES, gaussian
from weightcast.errors import LayoutError
from weightcast.quant import fp8
from weightcast.quant.fp8 import MXFP8, Fp8Rows, dequantize_fp8, largest_magnitudes, quantize_fp8
from weightcast.quant.search import EFFORTS, Search
from weightcast.quant.types import Fp8Type

ROWS, SQUARES, WHOLE = Fp8Type(), Fp8Type(128, 128), Fp8Type(0, 0)
SEARCHES = tuple(map(Search, EFFORTS))
with_type = pytest.mark.parametrize("fp8_type", [ROWS, SQUARES, WHOLE], ids=lambda t: t.label)


def errors_under_scales(
    x: NDArray[np.float32],
    made: Fp8Rows,
    fp8_type: Fp8Type,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Sum importance * (y - x)^2 under each scale, in float64."""
    squares = (dequantize_fp8(made, fp8_type).astype(np.float64) - x) ** 2
    if importance is not None:
        squares *= importance
    high, wide = fp8_type.rows or len(x), fp8_type.columns or x.shape[1]
    by_rows = np.add.reduceat(squares, range(0, len(x), high), axis=0)
    return np.add.reduceat(by_rows, range(0, x.shape[1], wide), axis=1)


@with_type
@settings(max_examples=60)
@given(
    n_out=st.integers(1, 200),
    n_in=st.integers(1, 300),
    family=st.sampled_from(sorted(FAMILIES)),
    power=st.integers(-30, 30),
    search=st.sampled_from(SEARCHES),
    kind=st.sampled_from(["none", "zeros", "wide"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_scale_is_worse(n_out, n_in, family, power, search, kind, seed, fp8_type):
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore", under="ignore"):
        x = FAMILIES[family](rng, (n_out, max(n_in, 20)))[:, :n_in] * 10.0**power
        x = np.clip(x, -3e38, 3e38).astype(np.float32)
    importance = None
    if kind != "none":
        importance = (10 ** rng.uniform(-30, 30, n_in)).astype(np.float32)
        importance[rng.random(n_in) < (0.5 if kind == "zeros" else 0)] = 0
    plain = quantize_fp8(x, fp8_type, importance)
    made = quantize_fp8(x, fp8_type, importance, search)
    assert np.all(made.scales >= plain.scales)
    assert np.all(made.scales <= 2 * plain.scales)
    usual, found = (errors_under_scales(x, m, fp8_type, importance) for m in (plain, made))
    assert np.all(found <= usual * (1 + 1e-9))


@with_type
def test_gaussian_weights_gain(fp8_type):
    x = gaussian(np.random.default_rng(50), (256, 512))
    importance = np.linspace(0, 2, 512, dtype=np.float32)
    for weights in (None, importance):
        plain = errors_under_scales(x, quantize_fp8(x, fp8_type, weights), fp8_type, weights)
        before = plain.sum()
        for search in SEARCHES:
            made = quantize_fp8(x, fp8_type, weights, search)
            found = errors_under_scales(x, made, fp8_type, weights).sum()
            assert found <= before
            before = found
        assert before < 0.999 * plain.sum()


@with_type
@pytest.mark.parametrize("tile", [1, 1 << 10, 1 << 14, 1 << 30])
def test_tiles_change_no_byte(tile, fp8_type):
    x = gaussian(np.random.default_rng(51), (300, 400))
    importance = np.linspace(0, 2, 400, dtype=np.float32)
    wanted = quantize_fp8(x, fp8_type, importance, Search(2))
    with mock.patch.object(fp8, "_TILE", tile):
        found = quantize_fp8(x, fp8_type, importance, Search(2))
    assert np.array_equal(found.scales, wanted.scales)
    assert np.array_equal(found.weights.view(np.uint8), wanted.weights.view(np.uint8))


@pytest.mark.parametrize(("fp8_type", "step"), [(ROWS, 1), (ROWS, 7), (SQUARES, 128)])
def test_rows_apart_are_as_rows_together(fp8_type, step):
    x = gaussian(np.random.default_rng(52), (256, 384))
    whole = quantize_fp8(x, fp8_type, None, Search(3))
    parts = [quantize_fp8(x[n : n + step], fp8_type, None, Search(3)) for n in range(0, 256, step)]
    for name in ("weights", "scales"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tobytes() == getattr(whole, name).tobytes()


def test_mxfp8_is_left_as_it_is():
    x = gaussian(np.random.default_rng(53), (9, 96))
    plain, made = quantize_fp8(x, MXFP8), quantize_fp8(x, MXFP8, None, Search(3))
    assert np.array_equal(plain.scales, made.scales)
    assert largest_magnitudes(np.abs(x), MXFP8).shape == plain.scales.shape


def test_values_that_are_not_finite_are_refused():
    x = np.full((2, 32), np.inf, np.float32)
    with pytest.raises(LayoutError, match="NaN or infinity"):
        quantize_fp8(x, ROWS, None, Search(1))
