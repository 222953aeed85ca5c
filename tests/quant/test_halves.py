"""float16 and bfloat16 to and from float32 equal numpy, ml_dtypes and ggml, bit for bit.

Narrowing rounds to nearest even and refuses what would become infinity.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.quant import oracle
from tests.quant.families import BFLOAT16, random_finite
from tests.quant.sources import DTYPES, place
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize, quantize

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)
# The least magnitude that rounds to infinity: half a step above the largest half.
OVERFLOWS = {
    "F16": np.float32(65520),
    "BF16": np.array(0x7F7F8000, np.uint32).view(np.float32),
}
HALVES = pytest.mark.parametrize("name", ["F16", "BF16"])


def widened(bits: np.ndarray, name: str) -> np.ndarray:
    return bits.view(DTYPES[name]).astype(np.float32)


def narrowed(x: np.ndarray, name: str) -> np.ndarray:
    return quantize(x, name).view(np.uint16)


def finite_halves(name: str) -> np.ndarray:
    return ALL_HALVES[np.isfinite(widened(ALL_HALVES, name))]


def boundaries(name: str) -> np.ndarray:
    """Midpoints between neighbouring halves, and the float32 on either side of each."""
    positive = widened(finite_halves(name)[: len(finite_halves(name)) // 2], name)
    assert (np.diff(positive) > 0).all()
    middle = ((positive[:-1].astype(np.float64) + positive[1:]) / 2).astype(np.float32)
    sides = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    magnitudes = np.concatenate([*sides, [np.nextafter(OVERFLOWS[name], np.float32(0))]])
    return np.concatenate([magnitudes, -magnitudes])


def in_range(name: str) -> np.ndarray:
    """Random float32 bit patterns that do not overflow, and all exponents of the small ones."""
    rng = np.random.default_rng(1)
    wild = random_finite(rng, (1 << 17,))
    small = random_finite(rng, (1 << 17,)).view(np.uint32) & 0x87FFFFFF  # below 2^-111
    exponents = rng.integers(0x60, 0x90, 1 << 17).astype(np.uint32) << 23  # 2^-31 to 2^16
    middling = random_finite(rng, (1 << 17,)).view(np.uint32) & 0x807FFFFF | exponents
    x = np.concatenate([wild, small.view(np.float32), middling.view(np.float32)])
    return x[np.abs(x) < OVERFLOWS[name]]


@HALVES
@pytest.mark.parametrize("through", ["blocks", "source"])
def test_every_half_widens_exactly(name, through, isa):
    if through == "blocks":
        bits = ALL_HALVES
        x = dequantize(bits.view(np.uint8), name)
    else:
        bits = finite_halves(name)
        x = quantize(bits.view(DTYPES[name]), "F32").view(np.float32)
    expected = widened(bits, name)
    nan = np.isnan(expected)
    assert np.isnan(x[nan]).all()
    assert np.array_equal(x[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@HALVES
def test_every_half_survives_a_round_trip(name, isa):
    bits = finite_halves(name)
    assert np.array_equal(narrowed(dequantize(bits.view(np.uint8), name), name), bits)


@HALVES
@pytest.mark.parametrize("values", [boundaries, in_range])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_narrowing_rounds_to_nearest_even(name, values, layout, isa):
    x = values(name)
    x = x[: x.size // 8 * 8].reshape(-1, 8)
    expected = x.astype(DTYPES[name]).view(np.uint16)
    assert np.array_equal(narrowed(place(x, layout), name), expected)


@HALVES
@pytest.mark.parametrize("values", [boundaries, in_range])
def test_ggml_agrees(name, values, isa):
    x = values(name)
    assert np.array_equal(narrowed(x, name), oracle.narrow(x, {"F16": 1, "BF16": 30}[name]))
    bits = finite_halves(name)
    theirs = oracle.widen(bits, {"F16": 1, "BF16": 30}[name])
    ours = dequantize(bits.view(np.uint8), name)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_values_worked_by_hand(isa):
    # 1 + 2^-11 is halfway from 1 to the next float16: to even, down; 1 + 3 * 2^-11: to even, up.
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 2**-25 * 1.5, 65519, -0.0], np.float32)
    assert narrowed(x, "F16").tolist() == [0x3C00, 0x3C02, 0x0000, 0x0001, 0x7BFF, 0x8000]
    # bfloat16 has 7 bits of fraction.
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 2**-134, 2**-134 * 1.5, -0.0], np.float32)
    assert narrowed(x, "BF16").tolist() == [0x3F80, 0x3F82, 0x0000, 0x0001, 0x8000]


@HALVES
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 40), (130, 33)])
def test_overflow_is_refused_with_its_place(name, sign, shape, isa):
    limit = OVERFLOWS[name]
    for value in (limit, np.nextafter(limit, np.float32(np.inf)), np.finfo(np.float32).max):
        for out, in_ in {(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)}:
            x = np.ones(shape, np.float32)
            x[out, in_] = sign * value
            place = rf"\[{out}, {in_}\]"
            with pytest.raises(LayoutError, match=f"beyond the range of {name} at {place}"):
                quantize(x, name)


def test_bfloat16_beyond_float16_is_refused(isa):
    x = np.full((2, 3), 65536, BFLOAT16)
    with pytest.raises(LayoutError, match=r"beyond the range of F16 at \[0, 0\]"):
        quantize(x, "F16")
