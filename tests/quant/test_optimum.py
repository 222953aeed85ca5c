"""The least-error search against all scales there are, in types whose blocks have one scale."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.quant.sources import quantized
from weightcast.quant.cpu.library import dequantize_bytes
from weightcast.quant.search import Search
from weightcast.quant.types import TYPES

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4_VALUES = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
# The values of the codes, ascending, and the largest of them.
VALUES = {
    "Q4_0": range(-8, 8),
    "Q5_0": range(-16, 16),
    "Q8_0": range(-128, 128),
    "IQ4_NL": IQ4_VALUES,
    "Q1_0": (-1, 1),
    "Q2_0": range(-1, 3),
    "TQ1_0": range(-1, 2),
    "TQ2_0": range(-1, 2),
    "MXFP4": FP4_VALUES,
    "NVFP4": FP4_VALUES,
}
# By how much the root mean square error may exceed the least possible, for each effort. The errors
# of Q8_0 at neighbouring scales are all but random: the least of thousands takes as many tries.
EXCESS = {
    "Q8_0": (0.20, 0.15, 0.06),
    "Q2_0": (0.04, 0.01, 2e-3),
    "TQ1_0": (0.01, 0.01, 1e-3),
    "TQ2_0": (0.01, 0.01, 1e-3),
    "NVFP4": (0.02, 5e-3, 1e-3),
    "MXFP4": (1e-6, 1e-6, 1e-6),
}
USUAL_EXCESS = (0.015, 5e-3, 1e-3)


def scales_of(name: str, largest: float) -> np.ndarray:
    """List the scales that can be stored, but for those far too small or too large."""
    if name == "MXFP4":
        return 2.0 ** np.arange(-30, 20) / 2
    if name == "NVFP4":
        return np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64) / 2
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    top = max(map(abs, VALUES[name]))
    halves = halves[(halves > 0.01 * largest / top) & (halves < 4 * largest / top)]
    return halves if -VALUES[name][0] == VALUES[name][-1] else np.concatenate([halves, -halves])


def least_errors(name: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Give the least weighted error of each row [rows, n] over all scales."""
    values = np.array(VALUES[name], np.float64)
    middles = (values[1:] + values[:-1]) / 2
    least = np.full(len(x), np.inf)
    for scale in scales_of(name, np.abs(x).max()):
        with np.errstate(all="ignore"):
            codes = np.searchsorted(middles, np.nan_to_num(x / scale))
        least = np.minimum(least, (scale * values[codes] - x) ** 2 @ w)
    return least


def drawn(family: str, shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(7)
    normal = family == "normal"
    x = rng.standard_normal(shape) if normal else rng.standard_t(4, shape)
    return (0.3 * x).astype(np.float32)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("family", ["normal", "heavy"])
@pytest.mark.parametrize("name", VALUES)
def test_search_is_near_the_optimum(name, family, weighed):
    quant_type = next(t for t in TYPES.values() if t.name == name)
    n_in = quant_type.block_elements
    x = drawn(family, (24, n_in))
    rng = np.random.default_rng(8)
    importance = (rng.chisquare(1, n_in) + 0.01).astype(np.float32) if weighed else None
    w = np.ones(n_in) if importance is None else importance.astype(np.float64)
    n = 16 if name == "NVFP4" else n_in  # values that share a scale
    parts = [slice(i, i + n) for i in range(0, n_in, n)]
    least = sum(least_errors(name, x[:, p].astype(np.float64), w[p]) for p in parts)
    for effort, excess in zip((1, 2, 3), EXCESS.get(name, USUAL_EXCESS), strict=True):
        rows, _ = quantized(x, quant_type, None, importance, Search(effort))
        y = dequantize_bytes(quant_type, rows.reshape(-1), x.size).reshape(x.shape)
        errors = (y.astype(np.float64) - x) ** 2 @ w
        assert (errors > least * (1 - 1e-5)).all()
        assert np.sqrt(errors.sum() / least.sum()) <= 1 + excess, effort
