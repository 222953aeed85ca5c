"""Zero bytes differ from ggml_quantize_chunk: every type, instruction set, source and importance.

ggml is far slower than the kernels for some types (0.1 million weights a second for IQ1_M), so its
blocks are made once and compared with what each instruction set makes, and values of all families
are rows of one matrix.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.quant import oracle
from tests.quant.families import BFLOAT16, FAMILIES, close_to_minus_one, gaussian, grok_like, stack
from tests.quant.instruction_sets import using
from tests.quant.kernel_types import (
    BLOCK_TYPES,
    IMPORTANCE,
    importance_of,
    is_slow,
    kinds_for,
    overflowed_blocks,
    with_kinds,
)
from tests.quant.sources import DTYPES, LAYOUTS, matrix, place, products, quantized, source_of
from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import ScaleOverflowError, quantize_matrix
from weightcast.quant.types import TYPES, QuantType

seeds = st.integers(0, 2**32 - 1)
with_type = pytest.mark.parametrize("quant_type", BLOCK_TYPES.values(), ids=BLOCK_TYPES)

Libraries = dict[str, ctypes.CDLL]


def assert_equal(
    libraries: Libraries,
    x: NDArray[Any],
    quant_type: QuantType,
    expected: NDArray[np.uint8],
    scales: NDArray[np.float32] | None = None,
    importance: NDArray[np.float32] | None = None,
) -> None:
    """Compare what every instruction set makes of x, [n_out, n_in] at any strides."""
    for isa, loaded in libraries.items():
        with using(loaded):
            rows, _ = quantized(x, quant_type, scales, importance)
        differing = np.flatnonzero((rows != expected).any(axis=1))
        assert differing.size == 0, (isa, quant_type.name, x.shape, x.strides, differing[:9])


def places(quant_type: QuantType) -> list[tuple[int, str]]:
    """Numbers of columns, none a multiple of a lane count, and how they lie in memory."""
    if is_slow(quant_type):
        return [(1, "out_in"), (17, "steps"), (33, "in_out")]
    return [(n, layout) for n in (1, 7, 17, 33, 70) for layout in LAYOUTS]


def most_columns(quant_type: QuantType) -> int:
    return max(n_out for n_out, _ in places(quant_type))


def for_ggml(
    x: NDArray[np.float32], quant_type: QuantType, importance: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Replace the rows that would end ggml's process (oracle.py) by zeros."""
    safe = oracle.survivable(x, quant_type.ggml_id, importance)
    return np.where(safe[:, None], x, np.float32(0))


# Values


@with_kinds("plain", "wild")
def test_values(quant_type, kind, libraries):
    x, families = stack(8 if is_slow(quant_type) else 36, 768)
    importance = importance_of(kind, 768)
    x = for_ggml(x, quant_type, importance)
    expected = oracle.quantize(x, quant_type.ggml_id, importance)
    # By family, then with the families side by side: lanes must not disturb each other.
    for order in (np.arange(len(x)), np.random.default_rng(23).permutation(len(x))):
        for isa, loaded in libraries.items():
            with using(loaded):
                rows, _ = quantized(x[order], quant_type, None, importance)
            differing = (rows != expected[order]).any(axis=1)
            assert not differing.any(), (isa, {families[order[i]] for i in differing.nonzero()[0]})


@with_kinds(*IMPORTANCE)
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 9])
def test_row_lengths(n_blocks, quant_type, kind, libraries):
    # For types of 32 values a block, most of these are no multiple of 256.
    n_in = n_blocks * quant_type.block_elements
    importance = importance_of(kind, n_in)
    x = grok_like(np.random.default_rng(24), (5, n_in))
    expected = oracle.quantize(x, quant_type.ggml_id, importance)
    assert_equal(libraries, x, quant_type, expected, None, importance)


# Types whose blocks are fitted with a minimum. Where a few columns weigh all, these fits go astray,
# in ggml and here alike: the minimum passes other values, or all of them.
AFFINE_TYPES = [TYPES[name] for name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")]
with_affine_type = pytest.mark.parametrize("quant_type", AFFINE_TYPES, ids=lambda t: t.name)


def check_few_columns(
    libraries: Libraries, x: NDArray[np.float32], quant_type: QuantType, share: float, rest: float
) -> None:
    """Compare where columns have an importance of 1, a share of them, or that of the rest."""
    rng = np.random.default_rng(30)
    importance = np.where(rng.random(x.shape[1]) < share, 1, rest).astype(np.float32)
    expected = oracle.quantize(x, quant_type.ggml_id, importance)
    assert_equal(libraries, x, quant_type, expected, None, importance)


@with_affine_type
@pytest.mark.parametrize("rest", [0, 1e-10])
def test_sums_that_cancel(rest, quant_type, libraries):
    """Scales come out negative too, and wrap as ggml's uint8 does."""
    rng = np.random.default_rng(29)
    x = close_to_minus_one(rng, (2000, 256))
    # The minima of blocks of 32 are the same or differ, and so do the halves of their bytes.
    factors = np.exp2(rng.integers(-3, 1, (1000, 8))).astype(np.float32)
    x[1000:] *= np.repeat(factors, 32, axis=1)
    check_few_columns(libraries, x, quant_type, 0.1, rest)


@with_affine_type
@pytest.mark.parametrize("rest", [0, 1e-10])
def test_outliers_that_weigh_little(rest, quant_type, libraries):
    """Far below the minimum that serves the others best: their levels are beyond any range."""
    rng = np.random.default_rng(31)
    x = gaussian(rng, (100, 256))
    outliers = -np.exp2(rng.uniform(10, 50, x.shape)).astype(np.float32)
    check_few_columns(
        libraries, np.where(rng.random(x.shape) < 0.05, outliers, x), quant_type, 0.5, rest
    )


@with_affine_type
@pytest.mark.parametrize("rest", [1e-20, 1e-10])
def test_minima_that_reach_the_maximum(rest, quant_type, libraries):
    """Inverse scales are infinite or negative then, and the smallest value has the top level."""
    rng = np.random.default_rng(32)
    x = -np.abs(gaussian(rng, (600, 256)))
    x[300:][rng.random((300, 256)) < 0.1] = 0
    for share in (0.03, 0.06):
        check_few_columns(libraries, x, quant_type, share, rest)


# Sources


@cache
def mixture(name: str, dtype: str, kind: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Make values [n_out, n_in] of a dtype, of all families, and ggml's blocks of them."""
    quant_type = TYPES[name]
    n_in = 2 * quant_type.block_elements
    importance = importance_of(kind, n_in)
    rng = np.random.default_rng(25)
    makers = list(FAMILIES.values())
    rows = [makers[row % len(makers)](rng, (1, n_in)) for row in range(most_columns(quant_type))]
    x = for_ggml(np.concatenate(rows).astype(np.float32), quant_type, importance)
    x = source_of(x, dtype)
    return x, oracle.quantize(x.astype(np.float32), quant_type.ggml_id, importance)


@with_kinds("plain")
@pytest.mark.parametrize("dtype", DTYPES)
def test_floats(dtype, quant_type, kind, libraries):
    x, expected = mixture(quant_type.name, dtype, kind)
    importance = importance_of(kind, x.shape[1])
    for n_out, layout in places(quant_type):
        source = place(x[:n_out], layout)
        assert_equal(libraries, source, quant_type, expected[:n_out], None, importance)


def group_counts(quant_type: QuantType) -> list[int]:
    """Numbers of scale groups that divide rows of three blocks, down to groups of a few values."""
    counts = (1, 2, 96) if is_slow(quant_type) else (1, 2, 3, 8, 24, 96)
    return [n for n in counts if 3 * quant_type.block_elements % n == 0]


@cache
def codes_and_blocks(
    name: str, groups: int, kind: str
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.uint8]]:
    """Make int8 codes [n_out, n_in], scales [groups, n_out], ggml's blocks of their products."""
    quant_type = TYPES[name]
    n_out = most_columns(quant_type)
    n_in = 3 * quant_type.block_elements  # two groups end inside the second block
    rng = np.random.default_rng(26)
    codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
    codes[rng.random(codes.shape) < 0.05] = 0
    scales = (10 ** rng.uniform(-5, -1, (groups, n_out))).astype(BFLOAT16).astype(np.float32)
    scales[:, 3], scales[:, 11] = 0, -0.25
    x = products(codes, scales)
    return codes, scales, oracle.quantize(x, quant_type.ggml_id, importance_of(kind, n_in))


# Q8_0 keeps the codes where it can: see test_q8_0.py.
CODE_CASES = [
    (t, kind, groups)
    for t in BLOCK_TYPES.values()
    if t.name != "Q8_0"
    for kind in kinds_for(t, "plain")
    for groups in group_counts(t)
]


@pytest.mark.parametrize(
    ("quant_type", "kind", "groups"),
    CODE_CASES,
    ids=[f"{t.name}-{kind}-{groups}" for t, kind, groups in CODE_CASES],
)
def test_codes(quant_type, kind, groups, libraries):
    codes, scales, expected = codes_and_blocks(quant_type.name, groups, kind)
    importance = importance_of(kind, codes.shape[1])
    for n_out, layout in places(quant_type):
        # Scales are rows of a wider array: groups lie more than n_out apart.
        source, some = place(codes[:n_out], layout), scales[:, :n_out]
        assert_equal(libraries, source, quant_type, expected[:n_out], some, importance)


# Hypothesis chooses


@with_kinds("plain")
@settings(max_examples=12)
@given(
    n_out=st.integers(1, 70),
    n_blocks=st.integers(1, 3),
    family=st.sampled_from(sorted(FAMILIES)),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds,
)
def test_any_shape(n_out, n_blocks, family, dtype, layout, seed, quant_type, kind, libraries):
    if is_slow(quant_type):
        n_out = 1 + n_out % 9
    n_in = n_blocks * quant_type.block_elements
    importance = importance_of(kind, n_in)
    x = FAMILIES[family](np.random.default_rng(seed), (n_out, n_in)).astype(np.float32)
    x = source_of(for_ggml(x, quant_type, importance), dtype)
    expected = oracle.quantize(x.astype(np.float32), quant_type.ggml_id, importance)
    assert_equal(libraries, place(x, layout), quant_type, expected, None, importance)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = st.floats(0, float(np.float32(1e30)), width=32)


@with_type
@settings(max_examples=25)
@given(data=st.data())
def test_any_values(data, quant_type, libraries):
    n_in = quant_type.block_elements
    x = data.draw(hnp.arrays(np.float32, (2, n_in), elements=finite))
    importance = None
    if quant_type.importance == "required" or (
        quant_type.importance == "optional" and data.draw(st.booleans())
    ):
        importance = data.draw(hnp.arrays(np.float32, n_in, elements=weights))
    x = for_ggml(x, quant_type, importance)
    expected = oracle.quantize(x, quant_type.ggml_id, importance)
    assert_equal(libraries, x, quant_type, expected, None, importance)


# What is refused, or reported


@with_kinds("plain")
@pytest.mark.parametrize("out", [31, 67])  # the last lane of many, and one behind a full tile
def test_a_scale_beyond_float16_is_reported(out, quant_type, kind, libraries):
    """ggml writes an infinite scale there; so do we, but not without a word."""
    n_in = 3 * quant_type.block_elements
    importance = importance_of(kind, n_in)
    x = grok_like(np.random.default_rng(27), (out + 3, n_in))
    x[out, quant_type.block_elements + 5 :: 9] = 1e10
    expected = oracle.quantize(x, quant_type.ggml_id, importance)
    overflowed = overflowed_blocks(expected, quant_type)
    assert overflowed.any() == (quant_type.name not in ("MXFP4", "NVFP4"))
    for loaded in libraries.values():
        rows = np.zeros_like(expected)
        with using(loaded):
            if not overflowed.any():
                quantize_matrix(matrix(x), quant_type, rows, importance)
            else:
                with pytest.raises(ScaleOverflowError, match=quant_type.name) as caught:
                    quantize_matrix(matrix(x), quant_type, rows, importance)
                block, within = divmod(caught.value.in_, quant_type.block_elements)
                assert within == 0
                assert overflowed[caught.value.out, block]
        assert np.array_equal(rows, expected)


# Importance is looked at before any instruction set: the best one stands for all.
@with_type
def test_importance_where_it_is_ignored_or_required(quant_type):
    n_in = 2 * quant_type.block_elements
    x = grok_like(np.random.default_rng(28), (33, n_in))
    weighed, _ = quantized(x, quant_type, None, importance_of("plain", n_in))
    if quant_type.importance == "required":
        with pytest.raises(LayoutError, match=f"{quant_type.name} cannot be made without"):
            quantized(x, quant_type)
        assert oracle.requires_importance(quant_type.ggml_id)
        return
    plain, _ = quantized(x, quant_type)
    assert np.array_equal(weighed, plain) == (quant_type.importance == "ignored")
    assert not oracle.requires_importance(quant_type.ggml_id)


@with_type
def test_bad_importance(quant_type):
    if quant_type.importance == "ignored":
        return
    n_in = 2 * quant_type.block_elements
    for value in (-1e-30, -1, np.nan, np.inf, -np.inf):
        importance = np.ones(n_in, np.float32)
        importance[n_in - 3] = value
        with pytest.raises(LayoutError, match=f"column {n_in - 3} is negative, infinite"):
            quantized(np.ones((3, n_in), np.float32), quant_type, None, importance)


@with_type
def test_importance_of_another_length(quant_type):
    if quant_type.importance == "ignored":
        return
    n_in = 2 * quant_type.block_elements
    with pytest.raises(LayoutError, match=rf"importance of shape \[{n_in - 1}\] for rows"):
        quantized(np.ones((3, n_in), np.float32), quant_type, None, np.ones(n_in - 1, np.float32))
