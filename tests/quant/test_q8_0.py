"""Q8_0 blocks: zero bytes differ from ggml for floats; int8 codes are carried without loss.

A block of int8 codes keeps its codes where it has one scale and float16 holds that scale exactly;
elsewhere it has the bytes that ggml makes of code * scale.
"""

from __future__ import annotations

import ctypes
from itertools import product

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.quant import oracle
from tests.quant.codes import SCALES, mixed, random_codes
from tests.quant.families import FAMILIES
from tests.quant.instruction_sets import using
from tests.quant.sources import DTYPES, LAYOUTS, matrix, place, products, quantized, source_of
from weightcast.quant.cpu.library import BlockCounts, ScaleOverflowError, quantize_matrix
from weightcast.quant.types import Q8_0

many = settings(max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def assert_as_ggml(libraries: dict[str, ctypes.CDLL], x: np.ndarray) -> None:
    """x: [n_out, n_in] of a float dtype, at any strides."""
    expected = oracle.quantize(x.astype(np.float32), oracle.Q8_0)
    for isa, loaded in libraries.items():
        with using(loaded):
            rows, counts = quantized(x, Q8_0)
        assert np.count_nonzero(rows != expected) == 0, isa
        assert counts == BlockCounts(requantized=x.size // 32)


# Float sources


@pytest.mark.parametrize("family", FAMILIES)
def test_floats_as_ggml(family, libraries):
    x = FAMILIES[family](np.random.default_rng(2), (131, 192))
    for dtype, layout in product(DTYPES, LAYOUTS):
        assert_as_ggml(libraries, place(source_of(x, dtype), layout))


@many
@given(
    n_out=st.integers(1, 200),
    n_blocks=st.integers(1, 5),
    family=st.sampled_from(sorted(FAMILIES)),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds,
)
def test_shapes_as_ggml(n_out, n_blocks, family, dtype, layout, seed, libraries):
    x = FAMILIES[family](np.random.default_rng(seed), (n_out, 32 * n_blocks))
    assert_as_ggml(libraries, place(source_of(x, dtype), layout))


@many
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(32)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_values_as_ggml(x, libraries):
    assert_as_ggml(libraries, x)


def test_every_tie_rounds_away_from_zero(isa):
    # The maximum 127 makes d = 1, so codes are the values, rounded: 0.5 to 1, -0.5 to -1.
    halves = np.arange(-126.5, 127, 1, dtype=np.float32)
    x = np.zeros((halves.size, 32), np.float32)
    x[:, 0], x[:, 1], x[:, 2] = 127, halves, np.nextafter(halves, np.float32(0))
    rows, _ = quantized(x, Q8_0)
    codes = rows[:, 2:].view(np.int8)
    assert np.array_equal(codes[:, 1], halves + np.copysign(0.5, halves))
    assert np.array_equal(codes[:, 2], halves - np.copysign(0.5, halves))


def test_block_worked_by_hand(isa):
    # max |x| = 254, so d = 2 (float16 0x4000) and the codes are x / 2: 254 -> 127, -3 -> -2.
    x = np.array([[254, -254, 2, -3, 1] + [0] * 27], np.float32)
    rows, counts = quantized(x, Q8_0)
    assert rows.tobytes() == bytes([0x00, 0x40, 127, 129, 1, 254, 1]) + bytes(27)
    assert counts == BlockCounts(requantized=1)


# Int8 sources


def exact_in_float16(scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return scales.astype(np.float16).astype(np.float32) == scales


def kept_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Which blocks [n_out, n_blocks] keep their codes: one group, a scale exact in float16."""
    group_rows = codes.shape[1] // scales.shape[0]
    first = np.arange(0, codes.shape[1], 32) // group_rows
    last = np.arange(31, codes.shape[1], 32) // group_rows
    return (first == last) & exact_in_float16(scales).T[:, first]


def expected_rows(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Build every block both ways with numpy and ggml, then choose block by block."""
    n_out, n_in = codes.shape
    group_rows = n_in // scales.shape[0]
    carried = np.empty((n_out, n_in // 32, 34), np.uint8)
    with np.errstate(over="ignore"):
        d = scales.astype(np.float16).T[:, np.arange(0, n_in, 32) // group_rows]
    carried[..., :2] = np.ascontiguousarray(d)[..., None].view(np.uint8)
    carried[..., 2:] = np.ascontiguousarray(codes).view(np.uint8).reshape(n_out, -1, 32)
    made = oracle.quantize(products(codes, scales), oracle.Q8_0).reshape(carried.shape)
    kept = kept_blocks(codes, scales)[..., None]
    return np.where(kept, carried, made).reshape(n_out, -1)


def assert_codes(libraries: dict[str, ctypes.CDLL], codes: np.ndarray, scales: np.ndarray) -> None:
    """codes: int8 [n_out, n_in] at any strides; scales: float32 [groups, n_out]."""
    expected = expected_rows(codes, scales)
    kept = kept_blocks(codes, scales)
    for isa, loaded in libraries.items():
        with using(loaded):
            rows, counts = quantized(codes, Q8_0, scales)
        assert np.count_nonzero(rows != expected) == 0, isa
        assert counts == BlockCounts(
            exact=np.count_nonzero(kept),
            requantized=np.count_nonzero(~kept),
            inexact_scales=np.count_nonzero(~exact_in_float16(scales)),
        )
    # The lossless claim itself, with ggml's own Python as the judge.
    carried = rows.reshape(*kept.shape, 34)[kept]
    source = products(codes, scales).reshape(*kept.shape, 32)[kept]
    values = gguf.quants.dequantize(carried, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(values.view(np.uint32), source.view(np.uint32))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    ("n_in", "groups"),
    [(192, 1), (192, 2), (256, 8), (160, 2), (96, 8), (32, 8)],
    ids=["one_group", "two", "a_block_each", "straddling", "short", "eight_in_a_block"],
)
def test_codes(n_in, groups, scales, libraries):
    rng = np.random.default_rng(3)
    for layout in LAYOUTS:
        codes = place(random_codes(rng, (131, n_in)), layout)
        assert_codes(libraries, codes, SCALES[scales](rng, (groups, 131)))


@many
@given(
    n_out=st.integers(1, 200),
    n_blocks=st.integers(1, 10),
    groups=st.sampled_from([1, 2, 8]),
    scales=st.sampled_from(sorted(SCALES)),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds,
)
def test_shapes_of_codes(n_out, n_blocks, groups, scales, layout, seed, libraries):
    rng = np.random.default_rng(seed)
    codes = place(random_codes(rng, (n_out, 32 * n_blocks)), layout)
    assert_codes(libraries, codes, SCALES[scales](rng, (groups, n_out)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_inexact_column_spares_its_neighbours(layout, isa):
    codes = place(random_codes(np.random.default_rng(4), (70, 64)), layout)
    scales = np.full((1, 70), 0.25, np.float32)
    scales[0, 66] = 0.1  # float16 is 0.0999755859375
    rows, counts = quantized(codes, Q8_0, scales)
    assert counts == BlockCounts(exact=69 * 2, requantized=2, inexact_scales=1)
    carried = np.concatenate([np.full((70, 2, 2), [0x00, 0x34]), np.zeros((70, 2, 32))], axis=2)
    carried[..., 2:] = codes.view(np.uint8).reshape(70, 2, 32)
    spared = np.arange(70) != 66
    assert np.array_equal(rows[spared], carried.astype(np.uint8).reshape(70, -1)[spared])


def test_scales_may_be_rows_of_a_wider_array(libraries):
    rng = np.random.default_rng(5)
    codes = random_codes(rng, (70, 64))
    wide = mixed(rng, (5, 90))
    assert_codes(libraries, codes, wide[1:5:2, 11:81])


def test_rows_hold_nothing_of_what_was_there_before(isa):
    codes = np.zeros((65, 32), np.int8)
    rows, _ = quantized(codes, Q8_0, np.ones((1, 65), np.float32))
    assert rows.tobytes() == (b"\x00\x3c" + bytes(32)) * 65


def test_a_scale_beyond_float16_is_refused_with_its_block(isa):
    """ggml writes an infinite scale there; so do we, but not without a word."""
    x = np.ones((70, 96), np.float32)
    x[67, 40] = 1e8
    rows = np.zeros((70, 102), np.uint8)
    with pytest.raises(ScaleOverflowError) as caught:
        quantize_matrix(matrix(x), Q8_0, rows)
    assert (caught.value.out, caught.value.in_) == (67, 32)
    np.testing.assert_array_equal(rows, oracle.quantize(x, oracle.Q8_0))
