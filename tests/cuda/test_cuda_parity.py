"""A device makes the CPU's bytes, counts and errors: all types, sources, shapes and families.

The CPU is compared with ggml in tests/quant; here one test does that for the device, and the others
compare the device with the CPU.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.cuda.comparison import assert_same, assert_same_of, on_device
from tests.quant import oracle
from tests.quant.codes import SCALES, random_codes
from tests.quant.families import FAMILIES, gaussian, grok_like, stack
from tests.quant.kernel_types import (
    IMPORTANCE,
    importance_of,
    is_slow,
    least_importance,
    with_kinds,
)
from tests.quant.sources import DTYPES, LAYOUTS, matrix, place, source_of
from weightcast.quant.cpu.library import Blocks, quantize_matrix
from weightcast.quant.types import F32, FLOAT_TYPES, Q4_K, Q8_0, TYPES, QuantType

pytestmark = pytest.mark.usefixtures("kernels")
with_type = pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
few = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
EVERY_TYPE = tuple(TYPES.values())
BAD = (np.nan, -np.nan, np.inf, -np.inf)


def row_elements(quant_type: QuantType, n_blocks: int) -> int:
    """Values of a row; plain floats have no blocks, so theirs end inside a run of 32."""
    elements = quant_type.block_elements
    return n_blocks * elements if elements > 1 else 32 * (n_blocks - 1) + 1 + 7 * n_blocks % 32


def in_range(x: NDArray[np.float32], quant_type: QuantType) -> NDArray[np.float32]:
    """Clip to what plain floats can hold; blocks may overflow."""
    return source_of(x, quant_type.name).astype(np.float32) if quant_type in FLOAT_TYPES else x


# Values


@with_kinds("plain", types=EVERY_TYPE)
def test_as_ggml(quant_type, kind):
    n_in = 3 * max(32, quant_type.block_elements)
    importance = importance_of(kind, n_in)
    x = grok_like(np.random.default_rng(40), (35, n_in))
    made = on_device(matrix(place(x, "in_out")), quant_type, importance)
    assert made.error is None
    if quant_type == F32:
        expected = x.view(np.uint8)
    elif quant_type in FLOAT_TYPES:
        expected = oracle.narrow(x.reshape(-1), quant_type.ggml_id).view(np.uint8)
    else:
        expected = oracle.quantize(x, quant_type.ggml_id, importance)
    assert np.array_equal(made.rows, expected.reshape(made.rows.shape))


@with_kinds(*IMPORTANCE, types=EVERY_TYPE)
def test_families(quant_type, kind):
    n_in = 768 if is_slow(quant_type) else 512 + quant_type.block_elements
    x, _ = stack(1 if is_slow(quant_type) else 5, n_in)
    x = in_range(np.random.default_rng(41).permutation(x), quant_type)
    assert_same_of(place(x, "in_out"), quant_type, None, importance_of(kind, n_in))


# Sources


def shapes(quant_type: QuantType) -> list[tuple[int, int]]:
    """Columns and blocks: tiles that are full, nearly full, of one thread; several of them."""
    if is_slow(quant_type):
        return [(1, 1), (33, 3), (9, 5)]
    deep = [(3, 17)] if quant_type.block_elements == 256 else [(3, 33), (9, 66)]
    return [(1, 9), (31, 3), (32, 5), (33, 1), (70, 3), *deep]


@with_kinds("plain", types=EVERY_TYPE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_floats(layout, quant_type, kind):
    rng = np.random.default_rng(42)
    makers = list(FAMILIES.values())
    for number, (n_out, n_blocks) in enumerate(shapes(quant_type)):
        n_in = row_elements(quant_type, n_blocks)
        rows = [
            makers[row * 7 % len(makers)](rng, (1, n_in + 32))[:, :n_in] for row in range(n_out)
        ]
        x = in_range(np.concatenate(rows).astype(np.float32), quant_type)
        importance = importance_of(kind, n_in)
        for dtype in list(DTYPES)[number % 3 :: 3] if is_slow(quant_type) else DTYPES:
            source = place(source_of(x, dtype), layout)
            assert_same_of(source, quant_type, None, importance)


def groupings(quant_type: QuantType) -> list[tuple[int, int]]:
    """Values of a row and groups of scales: of whole blocks, inside them, across their bounds."""
    if quant_type in FLOAT_TYPES:
        return [(33, 1), (34, 2), (99, 3), (70, 5), (96, 8), (66, 66)]
    e = quant_type.block_elements
    if is_slow(quant_type):
        return [(e, 1), (3 * e, 2), (3 * e, 8)]
    return [
        *((9 * e, 1), (3 * e, 2), (3 * e, 3), (5 * e, 5), (5 * e, 10)),
        *((3 * e, 8), (3 * e, 96), (35 * e, 2)),
    ]


@with_kinds("plain", types=EVERY_TYPE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes(layout, quant_type, kind):
    rng = np.random.default_rng(43)
    makers = list(SCALES.values())
    if quant_type.name == "F16":  # products beyond its range would be refused
        makers = [SCALES["grok"], SCALES["below_float16"], SCALES["subnormal_float32"]]
    columns = (9, 33, 1) if is_slow(quant_type) else (33, 1, 70, 31, 32, 5)
    for number, (n_in, groups) in enumerate(groupings(quant_type)):
        n_out = columns[number % len(columns)]
        codes = place(random_codes(rng, (n_out, n_in)), layout)
        each = [makers[out % len(makers)](rng, (groups, 1)) for out in range(n_out + 2)]
        # Rows of a wider array: groups lie more than n_out apart.
        scales = np.concatenate(each, axis=1)[:, 1:-1]
        assert_same_of(codes, quant_type, scales, importance_of(kind, n_in))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_in", "groups"), [(192, 1), (192, 2), (160, 2), (96, 8), (256, 8)])
def test_counts_of_q8_0(n_in, groups, layout, scales):
    rng = np.random.default_rng(44)
    codes = place(random_codes(rng, (70, n_in)), layout)
    made = assert_same_of(codes, Q8_0, SCALES[scales](rng, (groups, 70)))
    assert made.counts is not None
    assert made.counts.exact + made.counts.requantized == 70 * n_in // 32
    if scales == "grok":
        assert made.counts.inexact_scales == 0
    if scales == "below_float16":
        assert made.counts.inexact_scales > 0


@with_type
@pytest.mark.parametrize("target", [Q8_0, Q4_K, F32], ids=lambda t: t.name)
def test_blocks(target, quant_type):
    n_out, n_in = 9, 768
    x = gaussian(np.random.default_rng(45), (n_out, n_in))
    rows = np.empty((n_out, quant_type.row_bytes(n_in)), np.uint8)
    quantize_matrix(matrix(x), quant_type, rows, least_importance(quant_type, n_in))
    # What lies behind the blocks is not theirs.
    data = np.concatenate([rows.reshape(-1), np.full(77, 0xFF, np.uint8)])
    made = assert_same(Blocks(data, quant_type, n_out, n_in), target)
    assert made.error is None


@with_type
def test_blocks_that_are_not_finite(quant_type):
    rows = np.full(3 * quant_type.row_bytes(256), 0xFF, np.uint8)
    source = Blocks(rows, quant_type, 3, 256)
    assert_same(source, Q8_0)


@with_kinds("plain", types=EVERY_TYPE)
@few
@given(
    n_out=st.integers(1, 70),
    n_blocks=st.integers(1, 5),
    family=st.sampled_from(sorted(FAMILIES)),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(n_out, n_blocks, family, dtype, layout, seed, quant_type, kind):
    n_out = 1 + n_out % 5 if is_slow(quant_type) else n_out
    n_in = row_elements(quant_type, n_blocks)
    x = FAMILIES[family](np.random.default_rng(seed), (n_out, n_in + 32))[:, :n_in]
    x = source_of(in_range(x.astype(np.float32), quant_type), dtype)
    assert_same_of(place(x, layout), quant_type, None, importance_of(kind, n_in))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
factors = st.floats(0, float(np.float32(1e30)), width=32)


@with_type
@few
@given(data=st.data())
def test_any_values(data, quant_type):
    n_in = max(33, quant_type.block_elements // 32 * 32)
    if quant_type.block_elements > 1:
        n_in = quant_type.block_elements
    x = data.draw(hnp.arrays(np.float32, (2, n_in), elements=finite))
    importance = None
    if quant_type.importance == "required" or data.draw(st.booleans()):
        importance = data.draw(hnp.arrays(np.float32, n_in, elements=factors))
    assert_same_of(x, quant_type, None, importance)
