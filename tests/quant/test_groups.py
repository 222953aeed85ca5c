"""Groups against a reference in numpy, against brute force, and against what they promise."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from tests.quant import group_reference
from tests.quant.families import FAMILIES
from tests.quant.instruction_sets import using
from tests.quant.sources import LAYOUTS, matrix, place, products, source_of
from weightcast.errors import LayoutError
from weightcast.quant.cpu.groups import EFFORTS, InexactScaleError, NotCarriedError
from weightcast.quant.cpu.library import Matrix, RangeError, SourceValueError
from weightcast.quant.groups import (
    SCALE_DTYPES,
    Groups,
    carry_groups,
    check_carried,
    dequantize_groups,
    quantize_groups,
)
from weightcast.quant.types import GroupType

TYPES = [
    GroupType(bits, size, symmetric, scale_dtype)
    for bits, symmetric, (size, scale_dtype) in itertools.product(
        (4, 8), (True, False), ((32, "F32"), (64, "F16"), (128, "BF16"), (0, "BF16"))
    )
]
TYPE_IDS = [f"int{t.bits}-{t.group_size}-{t.symmetric}-{t.scale_dtype}" for t in TYPES]
ROUNDING = 1 + 1e-5  # of errors as float32 sums


def same(a: Groups, b: Groups) -> bool:
    """Whether all bytes are equal."""
    assert (a.zero_points is None) == (b.zero_points is None)
    pairs = [(a.codes, b.codes), (a.scales, b.scales)]
    if a.zero_points is not None and b.zero_points is not None:
        pairs.append((a.zero_points, b.zero_points))
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


def errors_of(groups, group_type, values, importance=None):
    """Weighted squared errors of groups, float64 [rows, groups]."""
    with np.errstate(over="ignore"):
        squares = (dequantize_groups(groups, group_type).astype(np.float64) - values) ** 2
    weighed = squares * (1 if importance is None else importance)
    return weighed.reshape(*groups.scales.shape, -1).sum(2)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def importance_of(n_in, seed=5):
    """Draw factors over five orders of magnitude; a quarter are zero."""
    rng = np.random.default_rng(seed)
    factors = (10 ** rng.uniform(-3, 2, n_in)).astype(np.float32)
    return np.where(rng.random(n_in) < 0.25, np.float32(0), factors)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("group_type", TYPES, ids=TYPE_IDS)
def test_equals_reference(libraries, group_type, effort):
    rng = np.random.default_rng(1)
    n_out, n_in = 5, 384
    for name, family in list(FAMILIES.items())[:: 4 if effort == 3 else 1]:
        values = family(rng, (n_out, n_in))
        for importance in (None, importance_of(n_in)):
            expected = group_reference.quantize(values, group_type, importance, effort=effort)
            for isa, loaded in libraries.items():
                with using(loaded):
                    if np.isfinite(expected.scales).all():
                        made = quantize_groups(
                            matrix(values), group_type, importance, effort=effort
                        )
                        assert same(made, expected), (name, isa)
                        continue
                    with pytest.raises(RangeError) as refused:
                        quantize_groups(matrix(values), group_type, importance, effort=effort)
                bad = np.argwhere(~np.isfinite(expected.scales))
                size = group_type.group_size or n_in
                assert [refused.value.out, refused.value.in_ // size] in bad.tolist()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [0, 32, 96, 160, 256, 320, 2048])
def test_sizes_equal_reference(libraries, size, symmetric):
    """Groups of less and more than a tile, in tails of columns of every width."""
    n_in = 2048 if size in (0, 2048) else 3 * size
    group_type = GroupType(4, size, symmetric)
    for n_out, layout in ((3, "out_in"), (70, "in_out")):
        values = place(drawn((n_out, n_in), size), layout)
        for importance in (None, importance_of(n_in)):
            expected = group_reference.quantize(values, group_type, importance)
            for isa, loaded in libraries.items():
                with using(loaded):
                    made = quantize_groups(matrix(values), group_type, importance)
                assert same(made, expected), isa


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "I8"])
def test_sources(libraries, dtype, layout):
    n_out, n_in = 261, 640
    scales = None
    if dtype == "I8":
        rng = np.random.default_rng(2)
        codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
        scales = rng.uniform(1e-4, 1e-2, (5, n_out)).astype(np.float32)
        source, values = place(codes, layout), products(codes, scales)
    else:
        source = place(source_of(drawn((n_out, n_in)), dtype), layout)
        values = source.astype(np.float32)
    for group_type in (GroupType(4, 128), GroupType(8, 320, symmetric=False)):
        expected = group_reference.quantize(np.ascontiguousarray(values), group_type)
        for isa, loaded in libraries.items():
            with using(loaded):
                made = quantize_groups(matrix(source, scales), group_type)
            assert same(made, expected), isa


@pytest.mark.parametrize("group_type", TYPES, ids=TYPE_IDS)
def test_never_worse_than_plain(group_type):
    rng = np.random.default_rng(3)
    for name in ("gaussian", "one_outlier", "sparse", "mixed_blocks", "ties", "all_negative"):
        values = FAMILIES[name](rng, (24, 384))
        for importance in (None, importance_of(384)):
            plain, *searched = (
                errors_of(
                    quantize_groups(matrix(values), group_type, importance, effort=effort),
                    group_type,
                    values,
                    importance,
                )
                for effort in EFFORTS
            )
            for errors in searched:
                assert (errors <= plain * ROUNDING + 1e-30).all(), name


def brute_force(x, w, group_type):
    """The least error of a group over scales 0.05 % apart, of both signs, and all zero points."""
    span = np.abs(x).max()
    top = 2**group_type.bits - 1
    sizes = span / np.geomspace(0.5, 2.0 * top, 6000)
    scales = np.concatenate([sizes, -sizes]).astype(SCALE_DTYPES[group_type.scale_dtype])
    scales = np.unique(scales).astype(np.float64)[:, None]
    zero_points = [2 ** (group_type.bits - 1)] if group_type.symmetric else range(top + 1)
    least = np.inf
    for zero_point in zero_points:
        levels = np.clip(np.rint(x / scales), -zero_point, top - zero_point)
        least = min(least, (w * (x - scales * levels) ** 2).sum(1).min())
    return least


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(
    ("family", "limit"), [("gaussian", 1.07), ("all_positive", 1.07), ("all_negative", 1.07)]
)
def test_close_to_brute_force(family, limit, weighed, symmetric):
    group_type = GroupType(4, 32, symmetric)
    values = FAMILIES[family](np.random.default_rng(4), (24, 32))
    importance = importance_of(32) if weighed else np.ones(32, np.float32)
    groups = quantize_groups(matrix(values), group_type, importance)
    found = errors_of(groups, group_type, values, importance).sum()
    best = sum(brute_force(x.astype(np.float64), importance, group_type) for x in values)
    assert best <= found * ROUNDING
    assert found <= best * limit


def test_gains_on_gaussians():
    """The figures that the documentation gives, roughly: each effort gains, the first the most."""
    values = drawn((512, 512))
    for symmetric, limit in ((True, 0.80), (False, 0.92)):
        group_type = GroupType(4, 128, symmetric)
        plain, first, second, third = (
            errors_of(
                quantize_groups(matrix(values), group_type, effort=e), group_type, values
            ).sum()
            for e in EFFORTS
        )
        assert second < limit * plain
        assert first < 1.01 * second
        assert third < second < first


def test_importance_of_one_is_none():
    values, group_type = drawn((8, 256)), GroupType(4, 64, symmetric=False)
    ones = np.ones(256, np.float32)
    without = quantize_groups(matrix(values), group_type)
    assert same(quantize_groups(matrix(values), group_type, ones), without)


def test_values_that_do_not_count_can_be_anything():
    """An outlier that does not count is clipped; where nothing counts, the choice is plain."""
    values, group_type = drawn((8, 128)), GroupType(4, 128)
    importance = np.ones(128, np.float32)
    importance[40] = 0
    with_outlier = values.copy()
    with_outlier[:, 40] *= 1000
    made = quantize_groups(matrix(with_outlier), group_type, importance)
    assert (np.abs(made.scales.astype(np.float32)) < 1).all()
    nothing = np.zeros(128, np.float32)
    plain = quantize_groups(matrix(values), group_type, effort=0)
    assert same(quantize_groups(matrix(values), group_type, nothing), plain)


def test_golden():
    """By hand: span 15, so scale 1 and zero point 3; codes are values plus 3."""
    values = np.zeros((1, 32), np.float32)
    values[0, :6] = [-3, 12, 0, 1.4, -1.6, 5.5]  # ties go to even
    made = quantize_groups(matrix(values), GroupType(4, 32, symmetric=False), effort=0)
    assert made.codes[0].tolist() == [0, 15, 3, 4, 1, 9] + [3] * 26
    assert (made.scales.astype(np.float32), made.zero_points) == (1, 3)
    # The largest magnitude over 7.5; symmetric, so zero is 8.
    values[0, :6] = [-15, 15, 0, 2.9, -3.2, 6]
    made = quantize_groups(matrix(values), GroupType(4, 32), effort=0)
    assert made.codes[0].tolist() == [0, 15, 8, 9, 6, 11] + [8] * 26
    assert made.scales.astype(np.float32) == 2
    # Sixteen levels from -8 to 7 times 3, or -3 if they are the other way round: no error at all.
    levels = np.float32([3 * (i % 16 - 8) for i in range(32)])[None]
    for sign in (1, -1):
        made = quantize_groups(matrix(sign * levels), GroupType(4, 32))
        assert made.codes[0].tolist() == [*range(16), *range(16)]
        assert made.scales.astype(np.float32) == 3 * sign


def stands_for_zeros(made, group_type):
    """Whether groups have scale 1 and codes at the zero point in the middle, so that all is +0."""
    middle = 2 ** (group_type.bits - 1)
    at_middle = made.zero_points is None or (made.zero_points == middle).all()
    ones = (made.scales.astype(np.float32) == 1).all() and (made.codes == middle).all()
    zeros = np.zeros(made.codes.shape, np.float32)
    return at_middle and ones and dequantize_groups(made, group_type).tobytes() == zeros.tobytes()


@pytest.mark.parametrize("group_type", TYPES, ids=TYPE_IDS)
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros(group_type, effort, value):
    values = np.full((3, 128), value, np.float32)
    made = quantize_groups(matrix(values), group_type, effort=effort)
    assert stands_for_zeros(made, group_type)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("scale_dtype", "value"), [("F16", 1e-8), ("BF16", 1e-41), ("F32", 3e-45)])
def test_values_below_every_scale_become_zeros(symmetric, scale_dtype, value):
    values = np.zeros((2, 64), np.float32)
    values[:, 5] = value
    group_type = GroupType(8, 32, symmetric, scale_dtype)
    made = quantize_groups(matrix(values), group_type, effort=0)
    assert stands_for_zeros(made, group_type)


def test_same_bytes_whatever_the_neighbours():
    """Pieces of a matrix, as workers make them, are those of the whole."""
    values = place(drawn((130, 512)), "in_out")
    for group_type in (GroupType(4, 128), GroupType(8, 0, symmetric=False)):
        whole = quantize_groups(matrix(values), group_type)
        for start, end in ((0, 1), (1, 66), (66, 130)):
            part = quantize_groups(matrix(values[start:end]), group_type)
            assert part.codes.tobytes() == whole.codes[start:end].tobytes()
            assert part.scales.tobytes() == whole.scales[start:end].tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_place(bad, size, layout):
    values = place(drawn((70, 1024)), layout)
    values[67, 901] = bad
    with pytest.raises(SourceValueError) as refused:
        quantize_groups(matrix(values), GroupType(4, size))
    assert (refused.value.out, refused.value.in_) == (67, 901)


def test_scales_of_the_source_must_be_finite():
    codes = np.ones((4, 64), np.int8)
    for bad in (np.nan, np.inf, 2.0**121):
        scales = np.ones((2, 4), np.float32)
        scales[1, 2] = bad
        for make in (quantize_groups, carry_groups):
            with pytest.raises(SourceValueError) as refused:
                make(matrix(codes, scales), GroupType(8, 32))
            assert (refused.value.out, refused.value.in_) == (2, 32)


def test_scale_beyond_float16_is_refused_by_place():
    values = drawn((4, 96))
    values[2, 70] = 1e9
    with pytest.raises(RangeError) as refused:
        quantize_groups(matrix(values), GroupType(4, 32, scale_dtype="F16"))
    assert (refused.value.out, refused.value.in_) == (2, 64)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_empty(shape):
    for group_type in (GroupType(4, 32), GroupType(8, 0, symmetric=False)):
        made = quantize_groups(matrix(np.zeros(shape, np.float32)), group_type)
        assert made.codes.shape == shape
        assert dequantize_groups(made, group_type).shape == shape


def test_refusals():
    for bits, size, dtype in ((5, 32, "BF16"), (4, 33, "BF16"), (4, -32, "BF16"), (4, 32, "F64")):
        with pytest.raises(LayoutError):
            GroupType(bits, size, scale_dtype=dtype)
    values = drawn((2, 96))
    for size in (64, 192):
        with pytest.raises(LayoutError, match="96 values does not fill groups"):
            quantize_groups(matrix(values), GroupType(4, size))
    with pytest.raises(LayoutError, match="33 values does not fill groups of 32"):
        quantize_groups(matrix(drawn((2, 33))), GroupType(4, 0))
    with pytest.raises(LayoutError, match=r"importance of shape \[95\]"):
        quantize_groups(matrix(values), GroupType(4, 32), np.ones(95, np.float32))
    for bad in (-1, np.nan, np.inf):
        importance = np.ones(96, np.float32)
        importance[17] = bad
        with pytest.raises(LayoutError, match="importance of column 17"):
            quantize_groups(matrix(values), GroupType(4, 32), importance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [32, 128, 0])
@pytest.mark.parametrize("n_out", [1, 15, 261])
def test_carried_exactly(isa, n_out, size, layout):
    rng = np.random.default_rng(6)
    n_in = 1536
    codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
    scales = rng.uniform(-1e-3, 1e-2, (4 if size else 1, n_out)).astype(ml_dtypes.bfloat16)
    scales = scales.astype(np.float32)
    for dtype in ("BF16", "F32"):
        group_type = GroupType(8, size, scale_dtype=dtype)
        carried = carry_groups(matrix(place(codes, layout), scales), group_type)
        assert (carried.codes == (codes.astype(np.int16) + 128)).all()
        repeated = np.repeat(scales, carried.scales.shape[1] // scales.shape[0], axis=0).T
        assert (carried.scales.astype(np.float32) == repeated).all()
        assert (dequantize_groups(carried, group_type) == products(codes, scales)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_out", [1, 64, 150])
def test_what_was_not_carried_is_found(isa, n_out, layout):
    """Any code or scale that is another one, wherever it lies."""
    rng = np.random.default_rng(7)
    n_in, group_type = 192, GroupType(8, 32)
    codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
    scales = rng.uniform(-1e-3, 1e-2, (3, n_out)).astype(ml_dtypes.bfloat16).astype(np.float32)
    source = matrix(place(codes, layout), scales)
    carried = carry_groups(source, group_type)
    check_carried(source, carried, group_type)
    for _ in range(200):
        out, in_, bit = rng.integers(n_out), rng.integers(n_in), rng.integers(8)
        carried.codes[out, in_] ^= 1 << bit
        with pytest.raises(NotCarriedError, match=rf"\[{out}, {in_}\]"):
            check_carried(source, carried, group_type)
        carried.codes[out, in_] ^= 1 << bit
        group = in_ // 32
        carried.scales.view(np.uint16)[out, group] ^= 1 << bit
        with pytest.raises(NotCarriedError, match=rf"\[{out}, {32 * group}\]"):
            check_carried(source, carried, group_type)
        carried.scales.view(np.uint16)[out, group] ^= 1 << bit
    check_carried(source, carried, group_type)
    other = GroupType(8, 64)
    with pytest.raises(LayoutError):
        check_carried(source, carried, other)
    with pytest.raises(LayoutError, match="are not those of the int8 matrix"):
        check_carried(source, Groups(carried.codes[:, :96], carried.scales, None), group_type)


def test_what_cannot_be_carried_is_named():
    codes = np.ones((4, 192), np.int8)
    scales = np.full((3, 4), 0.5, np.float32)
    for size in (128, 0, 96):
        with pytest.raises(LayoutError, match=r"straddle scales of 64 values|does not fill"):
            carry_groups(matrix(codes, scales), GroupType(8, size))
    scales[1, 2] = 0.1
    with pytest.raises(InexactScaleError, match=r"scale 0\.1 is not exact in BF16 at \[2, 64\]"):
        carry_groups(matrix(codes, scales), GroupType(8, 32))
    carry_groups(matrix(codes, scales), GroupType(8, 32, scale_dtype="F32"))
    scales[1, 2] = 1e-9  # a bfloat16 can be too small for float16
    with pytest.raises(InexactScaleError, match="not exact in F16"):
        carry_groups(matrix(codes, scales), GroupType(8, 32, scale_dtype="F16"))
    for group_type in (GroupType(4, 32), GroupType(8, 32, symmetric=False)):
        with pytest.raises(LayoutError, match="symmetric groups of 8 bits"):
            carry_groups(matrix(codes, scales), group_type)
    with pytest.raises(LayoutError, match="no codes"):
        carry_groups(matrix(drawn((2, 64))), GroupType(8, 32))


@pytest.mark.parametrize("scale_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantized(isa, bits, symmetric, scale_dtype):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 2**bits, (5, 192)).astype(np.uint8)
    scales = rng.standard_normal((5, 3)).astype(SCALE_DTYPES[scale_dtype])
    zero_points = None if symmetric else rng.integers(0, 2**bits, (5, 3)).astype(np.uint8)
    groups = Groups(codes, scales, zero_points)
    offset = 2 ** (bits - 1) if zero_points is None else np.repeat(zero_points, 64, axis=1)
    levels = codes.astype(np.float32) - np.float32(offset)
    expected = levels * np.repeat(scales.astype(np.float32), 64, axis=1)
    group_type = GroupType(bits, 64, symmetric, scale_dtype)
    assert dequantize_groups(groups, group_type).tobytes() == expected.tobytes()


def test_dequantize_refuses_other_shapes():
    group_type = GroupType(4, 32)
    groups = quantize_groups(matrix(drawn((2, 64))), group_type)
    for wrong in (
        Groups(groups.codes, groups.scales[:, :1], None),
        Groups(groups.codes, groups.scales.astype(np.float32), None),
        Groups(groups.codes, groups.scales, np.zeros((2, 2), np.uint8)),
    ):
        with pytest.raises(LayoutError):
            dequantize_groups(wrong, group_type)
    with pytest.raises(LayoutError):
        dequantize_groups(groups, GroupType(4, 32, symmetric=False))


def test_matrices_beyond_their_buffer_are_programming_errors():
    wrong = Matrix(np.zeros(100, np.float32), "F32", 2, 64, 64, 1)
    with pytest.raises(AssertionError):
        quantize_groups(wrong, GroupType(4, 32))
