"""Plain float outputs equal a numpy computation bit for bit, from every source at any strides.

What cannot be converted is refused with its place: NaN, infinity, bad scales, bad group counts.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quant.families import grok_like, random_finite
from tests.quant.kernel_types import least_importance
from tests.quant.sources import DTYPES, LAYOUTS, place, products, quantized
from weightcast.errors import LayoutError
from weightcast.quant.arrays import quantize
from weightcast.quant.cpu.library import BlockCounts, SourceValueError
from weightcast.quant.types import Q8_0, TYPES

PLAIN = ("F32", "F16", "BF16")
LIMITS = {"F32": 3.4e38, "F16": 6e4, "BF16": 3.3e38}  # below what rounds to infinity in any
BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
many = settings(max_examples=20)
layouts = st.sampled_from(LAYOUTS)
sizes = st.integers(1, 130)
seeds = st.integers(0, 2**32 - 1)


def random_source(rng: np.random.Generator, shape, dtype: str, target: str) -> np.ndarray:
    """Draw values of every magnitude that both the source's dtype and the target can hold."""
    limit = np.float32(min(LIMITS[dtype], LIMITS[target]))
    x = np.where(rng.random(shape) < 0.5, random_finite(rng, shape), grok_like(rng, shape))
    return np.clip(x, -limit, limit).astype(DTYPES[dtype])


def assert_bits(rows: np.ndarray, x: np.ndarray, target: str) -> None:
    """rows: what was made; x: the float32 values [n_out, n_in] that it should hold."""
    expected = np.ascontiguousarray(x.astype(DTYPES[target])).view(BITS[target])
    assert np.count_nonzero(rows.view(BITS[target]) != expected) == 0


@pytest.mark.parametrize("target", PLAIN)
@pytest.mark.parametrize("dtype", PLAIN)
@many
@given(n_out=sizes, n_in=sizes, layout=layouts, seed=seeds)
def test_from_floats(n_out, n_in, layout, seed, dtype, target, isa):
    x = place(random_source(np.random.default_rng(seed), (n_out, n_in), dtype, target), layout)
    rows, counts = quantized(x, TYPES[target])
    assert_bits(rows, x.astype(np.float32), target)
    assert counts == BlockCounts()


@pytest.mark.parametrize("target", PLAIN)
@many
@given(
    n_out=sizes,
    group_rows=st.integers(1, 40),
    groups=st.sampled_from([1, 2, 3, 8]),
    layout=layouts,
    seed=seeds,
)
def test_from_codes(n_out, group_rows, groups, layout, seed, target, isa):
    rng = np.random.default_rng(seed)
    codes = place(rng.integers(-128, 128, (n_out, group_rows * groups)).astype(np.int8), layout)
    high = {"F32": 36, "F16": 2.7, "BF16": 36}[target]  # 128 * 10^high is in the target's range
    scales = 10 ** rng.uniform(-45, high, (groups, n_out)) * rng.choice([-1, 1], (groups, n_out))
    scales = scales.astype(np.float32)
    rows, counts = quantized(codes, TYPES[target], scales)
    assert_bits(rows, products(codes, scales), target)
    assert counts == BlockCounts()


@pytest.mark.parametrize("target", PLAIN)
@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("order", ["C", "F", "steps"])
def test_planes(order, dtype, target, isa):
    x = random_source(np.random.default_rng(6), (5, 67, 35), dtype, target)
    if order == "F":
        x = np.asfortranarray(x)
    elif order == "steps":
        x = np.repeat(np.repeat(np.repeat(x, 2, axis=0), 3, axis=1), 4, axis=2)[::2, ::3, ::4]
    assert_bits(quantize(x, target), x.astype(np.float32), target)


def test_repeated_rows_and_columns(isa):
    # Stride 0, as numpy.broadcast_to makes it.
    row, column = np.arange(33, dtype=np.float32), np.arange(67, dtype=np.float32)[:, None]
    for x in (np.broadcast_to(row, (67, 33)), np.broadcast_to(column, (67, 33))):
        assert_bits(quantize(x, "F32"), x, "F32")


# Refusals


def three_blocks(target: str) -> int:
    return 3 * max(32, TYPES[target].block_elements)


def assert_refused(x, target, place_of_it, scales=None, match="NaN or infinity") -> None:
    quant_type = TYPES[target]
    with pytest.raises(SourceValueError, match=match) as caught:
        quantized(x, quant_type, scales, least_importance(quant_type, x.shape[1]))
    assert (caught.value.out, caught.value.in_) == place_of_it
    assert str(list(place_of_it)) in str(caught.value)


# A source's dtype and layout, and a type, meet in the loaded tile alone: no product is needed.
@pytest.mark.parametrize("target", TYPES)
@settings(max_examples=12)
@given(
    dtype=st.sampled_from(PLAIN),
    n_out=sizes,
    n_blocks=st.integers(1, 4),
    value=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
    layout=layouts,
    data=st.data(),
)
def test_not_finite(dtype, n_out, n_blocks, value, layout, data, target, isa):
    n_in = 32 * n_blocks if target in PLAIN else TYPES[target].block_elements * n_blocks
    x = np.ones((n_out, n_in), DTYPES[dtype])
    out = data.draw(st.integers(0, n_out - 1))
    in_ = data.draw(st.integers(0, n_in - 1))
    x[out, in_] = value
    assert_refused(place(x, layout), target, (out, in_))


@pytest.mark.parametrize("dtype", PLAIN)
def test_not_finite_in_every_tail_position(dtype, isa):
    for out, in_ in np.ndindex(3, 5):
        x = np.zeros((67, 37), DTYPES[dtype])
        x[64 + out, 32 + in_] = np.nan
        assert_refused(x, "F32", (64 + out, 32 + in_))


@pytest.mark.parametrize("target", TYPES)
def test_of_many_one_is_named(target, isa):
    n_in = three_blocks(target)
    x = np.ones((130, n_in), np.float32)
    x[5, 40], x[3, n_in - 6], x[100, 2], x[129, n_in - 1] = np.nan, np.inf, np.nan, -np.inf
    with pytest.raises(SourceValueError) as caught:
        quantized(x, TYPES[target], None, least_importance(TYPES[target], n_in))
    assert not np.isfinite(x[caught.value.out, caught.value.in_])


@pytest.mark.parametrize("dtype", PLAIN)
def test_values_outside_the_matrix_do_not_matter(dtype, isa):
    wide = np.full((67 * 2, 64 * 2), np.nan, DTYPES[dtype])
    x = wide[::2, 1::2]
    x[...] = 1
    rows, _ = quantized(x, TYPES["F32"])
    assert (rows.view(np.float32) == 1).all()
    rows, _ = quantized(x, Q8_0)
    assert (rows.reshape(67, 2, 34)[..., 2:] == 127).all()


@pytest.mark.parametrize("target", TYPES)
def test_bad_scales(target, isa):
    n_in = three_blocks(target)
    values = (np.nan, np.inf, -np.inf, 2.0**121, -(2.0**121), 3e38)
    for number, scale in enumerate(values):  # which are looked at before any code is
        codes = place(np.zeros((70, n_in), np.int8), LAYOUTS[number % 3])
        for group, out in [(0, 0), (0, 69), (2, 0), (1, 64), (2, 69)]:
            scales = np.ones((3, 70), np.float32)
            scales[group, out] = scale
            offender = (out, group * n_in // 3)
            assert_refused(codes, target, offender, scales, match="a scale that is NaN")


def test_largest_scale(isa):
    scale = np.nextafter(np.float32(2**121), np.float32(0))
    codes = np.array([[-128, 127]], np.int8)
    rows, _ = quantized(codes, TYPES["F32"], np.full((1, 1), scale, np.float32))
    assert rows.view(np.float32).tolist() == [[-128 * float(scale), float(np.float32(127) * scale)]]


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_overflow_of_code_times_scale(target, isa):
    codes = np.ones((70, 66), np.int8)
    codes[68, 64] = -100
    scales = np.full((2, 70), {"F16": 1e3, "BF16": 1.0}[target], np.float32)
    if target == "BF16":
        # 128 times the largest scale is the largest float32, which bfloat16 rounds to infinity.
        codes[68, 64] = -128
        scales[1, 68] = np.nextafter(np.float32(2**121), np.float32(0))
    assert_refused(codes, target, (68, 64), scales, match=f"beyond the range of {target}")


# Shapes are looked at before any instruction set: the best one stands for all.


@pytest.mark.parametrize("target", TYPES)
def test_groups_must_divide_the_rows(target):
    for groups in (3, 5, 512, 1024):
        codes, scales = np.zeros((4, 256), np.int8), np.ones((groups, 4), np.float32)
        with pytest.raises(LayoutError, match="256 values along `in` do not divide"):
            quantized(codes, TYPES[target], scales, least_importance(TYPES[target], 256))


@pytest.mark.parametrize("target", TYPES)
def test_codes_need_scales(target):
    codes, importance = np.zeros((4, 256), np.int8), least_importance(TYPES[target], 256)
    with pytest.raises(LayoutError, match="do not divide"):
        quantized(codes, TYPES[target], None, importance)


def test_rows_must_fill_blocks():
    with pytest.raises(LayoutError, match="33 values does not fill Q8_0 blocks of 32"):
        quantized(np.zeros((4, 33), np.float32), Q8_0)


# Nothing to do


@pytest.mark.parametrize("target", TYPES)
def test_empty(target, isa):
    shapes = ((0, 256), (3, 0), (0, 0), (2, 0, 256), (0, 3, 256), (2, 3, 0), (0,))
    for dtype, shape in product(PLAIN, shapes):
        importance = least_importance(TYPES[target], shape[-1])
        rows = quantize(np.empty(shape, DTYPES[dtype]), target, importance)
        assert rows.shape == (*shape[:-1], TYPES[target].row_bytes(shape[-1]))
        assert rows.dtype == np.uint8
