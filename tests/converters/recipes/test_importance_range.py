"""Importance that float32 sums cannot keep: where each type begins to lose, and what raises it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from weightcast.converters.recipes.importance import IN_RANGE
from weightcast.formats.gguf.imatrix import raise_row
from weightcast.quant.types import TYPES

Floats = NDArray[np.float32]
USED = [name for name, found in TYPES.items() if found.importance != "ignored"]


def sample(rms: float) -> tuple[Floats, Floats]:
    """Weights [4, 512], and importance [512] with a mean of 1."""
    rng = np.random.default_rng(7)
    weights = (rng.standard_normal((4, 512)) * rms).astype(np.float32)
    importance = rng.chisquare(2, 512) + 0.01
    return weights, (importance / importance.mean()).astype(np.float32)


def sqnr(weights: Floats, importance: Floats, power: int, type_name: str) -> float:
    """Quantize with an importance 10^power times as large; decibels, weighted by the usual one."""
    given = (importance * 10.0**power).astype(np.float32)
    try:
        blocks = weightcast.quantize(weights, type_name, importance=given)
    except weightcast.LayoutError:
        return -np.inf  # scales beyond float16
    values = weightcast.dequantize(blocks, type_name).astype(np.float64)
    noise = float((importance * (values - weights) ** 2).sum())
    return 10 * np.log10(float((importance * weights.astype(np.float64) ** 2).sum()) / noise)


def test_every_type_that_uses_importance_has_a_range() -> None:
    assert IN_RANGE.keys() == set(USED)


@pytest.mark.parametrize("type_name", USED)
def test_importance_beyond_float32_sums(type_name: str) -> None:
    """At the limits nothing is lost, three powers of ten further it is.

    But IQ2_XXS loses no 0.1 dB by importance that is too large, before it becomes infinite.
    """
    least, most = IN_RANGE[type_name]
    for rms, limit, outwards in ((0.005, least, -1), (1.0, most, 1)):
        weights, importance = sample(rms)
        usual = sqnr(weights, importance, 0, type_name)
        assert sqnr(weights, importance, limit, type_name) > usual - 0.1
        if (type_name, outwards) != ("IQ2_XXS", 1):
            assert sqnr(weights, importance, limit + 3 * outwards, type_name) < usual - 0.1


@pytest.mark.parametrize("type_name", USED)
@pytest.mark.parametrize("power", [-40, -3, 1, 37])
def test_a_power_of_two_changes_no_bit(type_name: str, power: int) -> None:
    weights, importance = sample(0.05)
    given = np.ldexp(importance, power)
    wanted = weightcast.quantize(weights, type_name, importance=importance)
    raise_row(given, 1e-9)
    np.testing.assert_array_equal(weightcast.quantize(weights, type_name, importance=given), wanted)


def test_a_row_is_scaled_and_then_raised() -> None:
    row = np.array([3e-25, 1e-25, 0, 1e-36], np.float32)
    before = row.copy()
    raise_row(row, 1e-6)
    scale = row[0] / before[0]
    assert 1 <= row.max() < 2
    assert np.frexp(scale)[0] == 0.5  # a power of two
    np.testing.assert_array_equal(row[:2], before[:2] * scale)
    mean = (before.astype(np.float64) * scale).mean()
    np.testing.assert_array_equal(row[2:], np.float32(1e-6 * mean))


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1.0, 3.4e38])
def test_any_row_can_be_raised(largest: float) -> None:
    row = np.array([largest, 0], np.float32)
    raise_row(row, 1.0)
    assert 1 <= row[0] < 2
    assert row[1] == row[0] / 2


def test_nothing_is_known_of_zeros() -> None:
    row = np.zeros(3, np.float32)
    raise_row(row, 1e-6)
    np.testing.assert_array_equal(row, 1)
