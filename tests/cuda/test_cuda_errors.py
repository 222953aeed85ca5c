"""What the CPU refuses a device refuses too: the same words, the same place."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from tests.cuda.comparison import assert_same_of, on_device
from tests.quant.families import grok_like
from tests.quant.kernel_types import BLOCK_TYPES, importance_of, least_importance, with_kinds
from tests.quant.sources import DTYPES, LAYOUTS, matrix, place
from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import (
    BlockCounts,
    Blocks,
    Matrix,
    RangeError,
    ScaleOverflowError,
    SourceValueError,
)
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.types import Q4_K, Q8_0, TYPES, QuantType

pytestmark = pytest.mark.usefixtures("kernels")
with_type = pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
NOT_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


def three_blocks(quant_type: QuantType) -> int:
    """Values of a row; of plain floats the last run is not full."""
    return 3 * quant_type.block_elements if quant_type.block_elements > 1 else 71


def quantize(
    backend: CudaBackend,
    source: Matrix | Blocks,
    quant_type: QuantType,
    importance: np.ndarray | None = None,
) -> BlockCounts:
    rows = np.empty((source.n_out, quant_type.row_bytes(source.n_in)), np.uint8)
    return backend.quantize(source, quant_type, rows, importance)


@with_type
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_finite(layout, quant_type):
    n_out, n_in = 34, three_blocks(quant_type)
    e = min(quant_type.block_elements, 32)
    places = [(0, 0), (n_out - 1, n_in - 1), (31, n_in - e), (32, 2 * n_in // 3 - 1)]
    for number, (out, in_) in enumerate(places):
        dtype = ("F32", "F16", "BF16", "F32")[number]
        x = np.ones((n_out, n_in), DTYPES[dtype])
        x[out, in_] = NOT_FINITE[(number + LAYOUTS.index(layout)) % 4]
        importance = least_importance(quant_type, n_in)
        error = assert_same_of(place(x, layout), quant_type, None, importance).error
        assert isinstance(error, SourceValueError)
        assert not isinstance(error, RangeError)
        assert (error.out, error.in_) == (out, in_)


@with_type
def test_of_many_the_first_row_is_named(quant_type):
    n_in = three_blocks(quant_type)
    x = np.ones((70, n_in), np.float32)
    x[5, n_in - 2], x[5, 40], x[69, 0], x[33, 2] = np.nan, np.inf, np.nan, -np.inf
    for layout in LAYOUTS:
        importance = least_importance(quant_type, n_in)
        error = on_device(matrix(place(x, layout)), quant_type, importance).error
        assert isinstance(error, SourceValueError)
        assert (error.out, error.in_) == (5, min(40, n_in - 2))
    x[5, :4] = np.inf  # and of a block the first value
    error = on_device(matrix(x), quant_type, least_importance(quant_type, n_in)).error
    assert isinstance(error, SourceValueError)
    assert (error.out, error.in_) == (5, 0)


def test_values_outside_the_matrix_do_not_matter():
    for dtype in DTYPES:
        wide = np.full((67 * 2, 64 * 2), np.nan, DTYPES[dtype])
        x = wide[::2, 1::2]
        x[...] = 1
        assert assert_same_of(x, TYPES["F32"]).error is None
        assert assert_same_of(x, Q8_0).error is None


@with_type
def test_bad_scales(quant_type):
    n_in = three_blocks(quant_type) if quant_type.block_elements > 1 else 72
    bad = (np.nan, np.inf, -np.inf, 2.0**121, -(2.0**121))
    places = [(0, 0), (0, 69), (2, 0), (1, 64), (2, 69)]
    for (group, out), scale, layout in zip(places, bad, (*LAYOUTS, *LAYOUTS), strict=False):
        scales = np.ones((3, 70), np.float32)
        scales[group, out] = scale
        codes = place(np.ones((70, n_in), np.int8), layout)
        importance = least_importance(quant_type, n_in)
        error = assert_same_of(codes, quant_type, scales, importance).error
        assert isinstance(error, SourceValueError)
        assert (error.out, error.in_) == (out, group * n_in // 3)


def test_of_many_bad_scales_the_first_groups_is_named():
    scales = np.ones((3, 40), np.float32)
    scales[1, 30] = scales[1, 7] = scales[2, 0] = np.inf
    error = assert_same_of(np.ones((40, 96), np.int8), Q8_0, scales).error
    assert isinstance(error, SourceValueError)
    assert (error.out, error.in_) == (7, 32)


def test_largest_scale():
    scale = np.nextafter(np.float32(2**121), np.float32(0))
    scales = np.array([[scale, -scale]], np.float32)
    for name in ("F32", "Q8_0", "Q4_0"):
        x = np.tile(np.array([[-128, 127]], np.int8), (2, 16))
        assert_same_of(x, TYPES[name], scales)


@with_type
@pytest.mark.parametrize("value", [-1e-30, np.nan, np.inf, -np.inf])
def test_bad_importance(value, quant_type):
    n_in = three_blocks(quant_type)
    x = np.ones((3, n_in), np.float32)
    for columns in ([n_in - 3], [5, n_in - 1]):
        importance = np.ones(n_in, np.float32)
        importance[columns] = value
        error = assert_same_of(x, quant_type, None, importance).error
        if quant_type.importance == "ignored":
            assert error is None
        else:
            assert f"importance of column {columns[0]} is negative, infinite" in str(error)


@with_type
def test_importance_that_is_missing_or_of_another_length(quant_type):
    n_in = three_blocks(quant_type)
    x = np.ones((3, n_in), np.float32)
    missing = assert_same_of(x, quant_type).error
    assert (missing is not None) == (quant_type.importance == "required")
    other = assert_same_of(x, quant_type, None, np.ones(n_in - 1, np.float32)).error
    assert (other is not None) == (quant_type.importance != "ignored")


@with_kinds("plain")
@pytest.mark.parametrize("out", [31, 32, 67])
def test_a_scale_beyond_float16_is_reported(out, quant_type, kind):
    e = quant_type.block_elements
    importance = importance_of(kind, 3 * e)
    x = grok_like(np.random.default_rng(50), (out + 3, 3 * e))
    x[out, e + 5 : 2 * e : 9] = 1e10
    for layout in LAYOUTS:
        made = assert_same_of(place(x, layout), quant_type, None, importance)
        if quant_type.name in ("MXFP4", "NVFP4"):
            assert made.error is None
        else:
            assert isinstance(made.error, ScaleOverflowError)
            assert (made.error.out, made.error.in_) == (out, e)
            assert quant_type.name in str(made.error)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_values_beyond_the_range(name, layout):
    too_large = {"F16": 65520, "BF16": np.finfo(np.float32).max}[name]
    largest = {"F16": 65519, "BF16": 3.38e38}[name]
    for out, in_ in ((0, 0), (33, 70), (32, 31), (5, 32), (33, 63)):
        x = np.full((34, 71), -largest, np.float32)
        assert assert_same_of(place(x, layout), TYPES[name]).error is None
        x[out, in_] = -too_large
        x[33, 70] = too_large  # the first row's is named
        error = assert_same_of(place(x, layout), TYPES[name]).error
        assert isinstance(error, RangeError)
        assert not isinstance(error, ScaleOverflowError)
        assert (error.out, error.in_) == (out, in_)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_overflow_of_code_times_scale(name):
    codes = np.ones((70, 66), np.int8)
    codes[68, 64] = -128
    # The products in the other group are as large, but in range.
    scales = np.full((2, 70), {"F16": 511, "BF16": 1.0}[name], np.float32)
    scales[1, 68] = {"F16": 512, "BF16": np.nextafter(np.float32(2**121), np.float32(0))}[name]
    error = assert_same_of(codes, TYPES[name], scales).error
    assert isinstance(error, RangeError)
    assert (error.out, error.in_) == (68, 64)


@with_type
def test_groups_must_divide_the_rows(quant_type):
    codes = np.zeros((4, 256), np.int8)
    for groups in (3, 5, 512):
        importance = least_importance(quant_type, 256)
        scales = np.ones((groups, 4), np.float32)
        error = assert_same_of(codes, quant_type, scales, importance).error
        assert "256 values along `in` do not divide" in str(error)


@with_type
def test_codes_need_scales(quant_type):
    importance = least_importance(quant_type, 256)
    error = assert_same_of(np.zeros((4, 256), np.int8), quant_type, None, importance).error
    assert "do not divide" in str(error)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_must_fill_blocks(name):
    quant_type = BLOCK_TYPES[name]
    n_in = quant_type.block_elements + 1
    importance = least_importance(quant_type, n_in)
    rows = np.empty(1000, np.uint8)
    with (
        closing(CudaBackend(0, 0, 0)) as backend,
        pytest.raises(LayoutError, match="does not fill"),
    ):
        backend.quantize(matrix(np.zeros((2, n_in), np.float32)), quant_type, rows, importance)


@with_type
@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (0, 0)])
def test_nothing_to_do(shape, quant_type):
    importance = least_importance(quant_type, shape[1])
    made = assert_same_of(np.empty(shape, np.float32), quant_type, None, importance)
    assert made.counts == BlockCounts()
    empty = Blocks(np.empty(0, np.uint8), quant_type, *shape)
    with closing(CudaBackend(0, 0, 0)) as backend:
        assert quantize(backend, empty, Q8_0) == BlockCounts()


def test_refusals_come_in_the_cpus_order():
    """Scales before importance, importance before values, values before overflow."""
    codes, scales = np.ones((3, 512), np.int8), np.ones((2, 3), np.float32)
    scales[1, 2] = np.inf
    importance = np.ones(512, np.float32)
    importance[9] = -1
    error = assert_same_of(codes, Q4_K, scales, importance).error
    assert isinstance(error, SourceValueError)
    x = np.full((3, 512), np.nan, np.float32)
    assert "importance of column 9" in str(assert_same_of(x, Q4_K, None, importance).error)
    x = np.full((3, 512), 1e30, np.float32)
    x[2, 500] = np.inf
    error = assert_same_of(x, Q4_K).error
    assert not isinstance(error, RangeError)


def test_a_backend_goes_on_after_a_refusal():
    good = grok_like(np.random.default_rng(51), (33, 512))
    bad = good.copy()
    bad[7, 300] = np.nan
    large = good.copy()
    large[8, 300] = 1e20
    with closing(CudaBackend(0, 0, 0)) as backend:
        for x in (bad, good, large, good):
            assert_same_of(x, Q4_K, None, None, backend)
            assert_same_of(x, Q8_0, None, None, backend)
