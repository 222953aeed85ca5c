"""The least-error search: never worse than ggml's blocks, and the same bytes everywhere."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.quant.families import FAMILIES, gaussian, grok_like, stack
from tests.quant.instruction_sets import using
from tests.quant.kernel_types import BLOCK_TYPES, IMPORTANCE, importance_of
from tests.quant.sources import DTYPES, LAYOUTS, place, products, quantized, source_of
from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import dequantize_bytes
from weightcast.quant.search import EFFORTS, GGML, Search
from weightcast.quant.types import FLOAT_TYPES, Q8_0, QuantType

SEARCHES = tuple(map(Search, EFFORTS))
# What float32 sums of a kernel may miss.
TOLERANCE = 1e-6
with_type = pytest.mark.parametrize("quant_type", BLOCK_TYPES.values(), ids=BLOCK_TYPES)
seeds = st.integers(0, 2**32 - 1)


def kinds_of(quant_type: QuantType) -> tuple[str, ...]:
    """List kinds of importance: every type uses one, and some cannot be made without."""
    return (*IMPORTANCE, *(("none",) if quant_type.importance != "required" else ()))


def with_every_kind() -> pytest.MarkDecorator:
    pairs = [(t, kind) for t in BLOCK_TYPES.values() for kind in kinds_of(t)]
    return pytest.mark.parametrize(
        ("quant_type", "kind"), pairs, ids=[f"{t.name}-{kind}" for t, kind in pairs]
    )


def block_errors(
    x: NDArray[np.float32],
    rows: NDArray[np.uint8],
    quant_type: QuantType,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Sum importance * (y - x)^2 over each block, [n_out, n_blocks], in float64."""
    values = dequantize_bytes(quant_type, rows.reshape(-1), x.size).reshape(x.shape)
    squares = (values.astype(np.float64) - x) ** 2
    if importance is not None:
        squares *= importance
    return squares.reshape(len(x), -1, quant_type.block_elements).sum(axis=2)


def assert_no_worse(
    x: NDArray[np.float32], quant_type: QuantType, importance: NDArray[np.float32] | None
) -> None:
    """Compare the blocks of every effort with ggml's, which can have infinite scales."""
    by_ggml, _ = quantized(x, quant_type, None, importance)
    with np.errstate(all="ignore"):
        usual = block_errors(x, by_ggml, quant_type, importance)
    for search in SEARCHES:
        rows, _ = quantized(x, quant_type, None, importance, search)
        with np.errstate(all="ignore"):
            found = block_errors(x, rows, quant_type, importance)
        worse = np.isfinite(usual) & ~(found <= usual * (1 + TOLERANCE))
        assert not worse.any(), (str(search), np.argwhere(worse)[:5].tolist())


@with_every_kind()
def test_no_block_is_worse_than_ggmls(quant_type, kind):
    n_in = 3 * quant_type.block_elements
    x, _ = stack(3, n_in)
    assert_no_worse(x, quant_type, importance_of(kind, n_in))


@with_type
@settings(max_examples=20)
@given(
    n_out=st.integers(1, 70),
    n_blocks=st.integers(1, 3),
    family=st.sampled_from(sorted(FAMILIES)),
    power=st.integers(-30, 30),
    dtype=st.sampled_from(sorted(DTYPES)),
    kind=st.sampled_from(["none", *IMPORTANCE]),
    seed=seeds,
)
def test_no_block_of_any_magnitude_is_worse(
    n_out, n_blocks, family, power, dtype, kind, seed, quant_type
):
    if kind == "none" and quant_type.importance == "required":
        kind = "plain"
    n_in = n_blocks * quant_type.block_elements
    with np.errstate(over="ignore", under="ignore"):
        x = FAMILIES[family](np.random.default_rng(seed), (n_out, n_in)) * 10.0**power
    x = source_of(x.astype(np.float32), dtype).astype(np.float32)
    assert_no_worse(x, quant_type, importance_of(kind, n_in))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = st.floats(0, float(np.float32(1e30)), width=32)


@with_type
@settings(max_examples=20)
@given(data=st.data())
def test_no_block_of_any_values_is_worse(data, quant_type):
    n_in = quant_type.block_elements
    x = data.draw(hnp.arrays(np.float32, (2, n_in), elements=finite))
    importance = None
    if quant_type.importance == "required" or data.draw(st.booleans()):
        importance = data.draw(hnp.arrays(np.float32, n_in, elements=weights))
    assert_no_worse(x, quant_type, importance)


# The same bytes, whatever the processor and the memory


@with_every_kind()
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_every_instruction_set_makes_the_same_bytes(quant_type, kind, search, libraries):
    n_in = 2 * quant_type.block_elements
    x, _ = stack(1, n_in)
    importance = importance_of(kind, n_in)
    expected, _ = quantized(x, quant_type, None, importance, search)
    for isa, loaded in libraries.items():
        rows = quantized_with(loaded, x, quant_type, importance, search)
        assert np.array_equal(rows, expected), (isa, str(search))


@with_type
@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_layout_nor_neighbours_change_a_byte(dtype, quant_type, libraries):
    n_in = 2 * quant_type.block_elements
    x = source_of(gaussian(np.random.default_rng(30), (70, n_in)), dtype)
    importance = importance_of("plain", n_in)
    whole, _ = quantized(x, quant_type, None, importance, SEARCHES[0])
    for n_out in (1, 7, 33, 70):
        for layout in LAYOUTS:
            placed = place(x[70 - n_out :], layout)
            for isa, loaded in libraries.items():
                rows = quantized_with(loaded, placed, quant_type, importance, SEARCHES[0])
                assert np.array_equal(rows, whole[70 - n_out :]), (isa, layout, n_out)


def quantized_with(
    loaded: ctypes.CDLL,
    x: NDArray[Any],
    quant_type: QuantType,
    importance: NDArray[np.float32] | None,
    search: Search,
) -> NDArray[np.uint8]:
    with using(loaded):
        return quantized(x, quant_type, None, importance, search)[0]


# Sources and importance


@with_type
def test_codes_with_scales_are_their_products(quant_type):
    rng = np.random.default_rng(31)
    n_in = 2 * quant_type.block_elements
    codes = rng.integers(-127, 128, (40, n_in)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (1, 40)).astype(np.float32)
    importance = importance_of("plain", n_in)
    of_codes, _ = quantized(codes, quant_type, scales, importance, SEARCHES[1])
    of_floats, _ = quantized(products(codes, scales), quant_type, None, importance, SEARCHES[1])
    if quant_type != Q8_0:
        assert np.array_equal(of_codes, of_floats)
    assert_no_worse(products(codes, scales), quant_type, importance)


def test_codes_that_q8_0_can_carry_stay():
    rng = np.random.default_rng(32)
    codes = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    scales = np.float16(rng.uniform(0.01, 0.02, (1, 40))).astype(np.float32)
    carried, counts = quantized(codes, Q8_0, scales)
    assert counts.exact == carried.size // Q8_0.block_bytes
    for search in SEARCHES:
        rows, found = quantized(codes, Q8_0, scales, importance_of("plain", 96), search)
        assert np.array_equal(rows, carried)
        assert found == counts


@pytest.mark.parametrize("quant_type", FLOAT_TYPES, ids=lambda t: t.name)
def test_plain_floats_have_nothing_to_search(quant_type):
    x = grok_like(np.random.default_rng(33), (33, 64))
    expected, _ = quantized(x, quant_type)
    for search in SEARCHES:
        rows, _ = quantized(x, quant_type, None, importance_of("plain", 64), search)
        assert np.array_equal(rows, expected)


@with_type
def test_importance_that_is_required_still_is(quant_type):
    x = gaussian(np.random.default_rng(34), (3, quant_type.block_elements))
    if quant_type.importance != "required":
        quantized(x, quant_type, None, None, SEARCHES[0])
        return
    with pytest.raises(LayoutError, match=f"{quant_type.name} cannot be made without importance"):
        quantized(x, quant_type, None, None, SEARCHES[0])


@with_type
def test_importance_of_another_length_is_refused(quant_type):
    n_in = quant_type.block_elements
    x, importance = np.ones((3, n_in), np.float32), np.ones(n_in - 1, np.float32)
    quantized(x, quant_type, None, np.ones(n_in, np.float32), GGML)
    with pytest.raises(LayoutError, match=rf"importance of shape \[{n_in - 1}\] for rows"):
        quantized(x, quant_type, None, importance, SEARCHES[0])
