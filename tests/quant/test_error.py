"""Errors against plain float64 numpy: every type, source, layout; the same bits everywhere."""

from __future__ import annotations

import math
from dataclasses import fields
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests.quant import instruction_sets, sources
from tests.quant.kernel_types import least_importance, overflowed_blocks
from tests.quant.moments import bin_of, compared
from tests.support import some
from weightcast.errors import LayoutError
from weightcast.quant.cpu import library
from weightcast.quant.cpu.library import Matrix, dequantize_bytes
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.groups import (
    dequantize_groups,
    measure_groups,
    quantize_and_measure_groups,
    quantize_groups,
)
from weightcast.quant.metrics import MOMENTS, Baseline, Errors, merged, of_moments
from weightcast.quant.types import F16, F32, Q4_0, Q4_K, Q8_0, TYPES, GroupType, QuantType

# float64 sums of 5000 terms: two orders of adding them differ by less.
CLOSE = 1e-12


def weights(n_out: int, n_in: int, seed: int = 1) -> NDArray[np.float32]:
    """Draw [n_out, n_in] at scales far apart, rows of zeros and constants, parts that vanish."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_out, n_in)) * 10 ** rng.uniform(-3, 1, (n_out, 1))
    x[:3] = np.array([0.0, 0.5, -1e-9])[:n_out, None][:3]
    x[3::7, : n_in // 2] *= 1e-12  # blocks that a float16 scale cannot hold
    return x.astype(np.float32)


def expected(
    x: NDArray[np.float32],
    rows: NDArray[np.uint8],
    quant_type: QuantType,
    importance: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float64]]:
    y = dequantize_bytes(quant_type, rows.reshape(-1), x.size).reshape(x.shape)
    return compared(x, y, importance)


def check(found: Errors, wanted: dict[str, NDArray[np.float64]]) -> None:
    for name in ("error_squares", "source_squares"):
        for sums in (name, f"weighted_{name}"):
            np.testing.assert_allclose(getattr(found, sums), wanted[sums], rtol=CLOSE, err_msg=sums)
    limit = CLOSE * (wanted["source_squares"] + wanted["error_squares"])
    assert (np.abs(found.output_squares - wanted["output_squares"]) <= limit).all()
    for name in ("errors", "cross"):
        limit = CLOSE * wanted[f"size_of_{name}"]
        assert (np.abs(getattr(found, name) - wanted[name]) <= limit).all(), name
    for name in ("largest", "largest_in", "exact", "zeroed_runs", "clipped_runs", "histogram"):
        np.testing.assert_array_equal(getattr(found, name), wanted[name], err_msg=name)


def packed(x: NDArray[np.float32], quant_type: QuantType) -> NDArray[np.uint8]:
    importance = least_importance(quant_type, x.shape[1])
    return sources.quantized(x, quant_type, importance=importance)[0]


@pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("shape", [(1, 256), (67, 2304), (130, 4608)])
def test_moments_are_those_of_numpy(libraries, quant_type, shape):
    x = weights(*shape)
    rows = packed(x, quant_type)
    wanted = expected(x, rows, quant_type)
    for loaded in libraries.values():
        with instruction_sets.using(loaded):
            found = measure_matrix(sources.matrix(x), quant_type, rows)
        check(found, wanted)
    if quant_type.block_elements > 1 and len(x) > 3:
        assert wanted["zeroed_runs"].any() == (quant_type.name not in ("MXFP4",))
    assert found.exact[0] == (shape[1] if quant_type.name != "Q1_0" else found.exact[0])


@pytest.mark.parametrize("layout", sources.LAYOUTS)
@pytest.mark.parametrize("dtype", sources.DTYPES)
@pytest.mark.parametrize("quant_type", [Q4_K, F16], ids=str)
def test_sources_of_every_dtype_and_layout(isa, dtype, layout, quant_type):
    n_in = 2304 if quant_type is Q4_K else 2311
    x = sources.source_of(weights(70, n_in), dtype)
    rows = sources.quantized(x, quant_type)[0]
    found = measure_matrix(sources.matrix(sources.place(x, layout)), quant_type, rows)
    check(found, expected(x.astype(np.float32), rows, quant_type))


@pytest.mark.parametrize("groups", [1, 3, 72])
@pytest.mark.parametrize("layout", sources.LAYOUTS)
def test_codes_with_groups_of_scales(libraries, layout, groups):
    rng = np.random.default_rng(groups)
    codes = rng.integers(-128, 128, (300, 2304), np.int8)
    scales = (2.0 ** rng.uniform(-14, 3, (groups, 300))).astype(np.float32)
    placed = sources.place(codes, layout)
    x = sources.products(codes, scales)
    for quant_type in (Q8_0, Q4_K, F32):
        rows = sources.quantized(placed, quant_type, scales)[0]
        wanted = expected(x, rows, quant_type)
        for loaded in libraries.values():
            with instruction_sets.using(loaded):
                found = measure_matrix(sources.matrix(placed, scales), quant_type, rows)
            check(found, wanted)
    assert (found.exact == 2304).all()  # float32 holds the products as they are
    assert (found.largest == 0).all()


def test_bits_do_not_depend_on_instruction_set_or_cut(libraries):
    x = weights(150, 6400)
    rows = packed(x, Q4_K)
    importance = np.random.default_rng(3).uniform(0, 9, 6400).astype(np.float32)
    made = {}
    for isa in instruction_sets.available():
        with mock.patch.object(library, "load", return_value=libraries[isa]):
            for cut in (150, 64, 7):
                for layout in ("out_in", "in_out"):
                    parts = [
                        measure_matrix(
                            sources.matrix(sources.place(x[at : at + cut], layout)),
                            Q4_K,
                            rows[at : at + cut].copy(),
                            importance,
                            Baseline.BF16,
                        )
                        for at in range(0, 150, cut)
                    ]
                    total = merged(parts).total()
                    made[isa, cut, layout] = [
                        merged(parts).error_squares.tobytes(),
                        *(getattr(total, name) for name in MOMENTS.names if name != "histogram"),
                        total.largest_row,
                        total.histogram.tolist(),
                    ]
    first, *others = made.values()
    assert all(other == first for other in others)


def test_runs_and_chunks_are_added_in_order():
    # What vanishes beside 1 if added one by one does not if it is added as a run or chunk.
    x = np.full((1, 4096), 2**-28, np.float32)
    x[0, 0] = 1
    rows = np.zeros((1, 4096), np.float32).view(np.uint8)
    found = measure_matrix(sources.matrix(x), F32, rows)
    assert found.error_squares[0] == 1 + 127 * 2.0**-51
    assert found.errors[0] == -(1 + 4095 * 2.0**-28)
    assert found.output_squares[0] == 0  # exactly: all sums of products are made in one order
    assert found.cosine[0] == 0


@pytest.mark.parametrize("quant_type", [Q4_K, Q8_0, F16, F32], ids=str)
@pytest.mark.parametrize("layout", sources.LAYOUTS)
def test_importance_and_baseline(isa, quant_type, layout):
    x = weights(70, 2304)
    rows = packed(x, quant_type)
    importance = (10 ** np.random.default_rng(4).uniform(-3, 3, 2304)).astype(np.float32)
    importance[::5] = 0
    source = sources.matrix(sources.place(x, layout))
    found = measure_matrix(source, quant_type, rows, importance)
    check(found, expected(x, rows, quant_type, importance))
    ratio = found.weighted_error_squares[1:] / found.weighted_source_squares[1:]
    np.testing.assert_array_equal(found.weighted_relative_rms[1:], np.sqrt(ratio))
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = measure_matrix(source, quant_type, rows, None, Baseline.BF16)
    check(found, expected(rounded, rows, quant_type))
    with pytest.raises(LayoutError, match=r"importance of shape \[7\]"):
        measure_matrix(source, quant_type, rows, importance[:7])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [32, 96, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups(isa, bits, size, symmetric):
    x = weights(70, 2304)
    group_type = GroupType(bits, size, symmetric)
    importance = np.random.default_rng(4).uniform(0, 3, 2304).astype(np.float32)
    source = sources.matrix(sources.place(x, "in_out"))
    groups = quantize_groups(source, group_type, importance)
    found = measure_groups(source, groups, group_type, importance)
    check(found, compared(x, dequantize_groups(groups, group_type), importance))
    with pytest.raises(LayoutError, match="for a matrix"):
        measure_groups(sources.matrix(x[1:]), groups, group_type)


def assert_same_in_one_call(
    source: Matrix,
    group_type: GroupType,
    importance: NDArray[np.float32] | None,
    baseline: Baseline,
) -> None:
    """Groups and their errors have the same bits whether they are made in one call or two."""
    wanted = quantize_groups(source, group_type, importance)
    errors = measure_groups(source, wanted, group_type, importance, baseline)
    made, found = quantize_and_measure_groups(source, group_type, importance, baseline)
    for name in ("codes", "scales", "zero_points"):
        one, two = getattr(made, name), getattr(wanted, name)
        assert (one is None and two is None) or one.tobytes() == two.tobytes()
    for field in fields(Errors):
        assert getattr(found, field.name).tobytes() == getattr(errors, field.name).tobytes()


# More than a chunk of a row, and less than a tile at its end. Tiles of groups of 96 and of rows are
# cut otherwise than chunks. How a tile is loaded depends on the dtype, how it is cut on the size:
# every dtype once, and every size once, is enough but for a long search.
@pytest.mark.parametrize(
    ("dtype", "size", "n_in"),
    some(
        [
            (dtype, *cut)
            for cut in ((32, 2080), (64, 2240), (96, 2112), (128, 2176), (256, 2304), (0, 2112))
            for dtype in ("F32", "F16", "BF16", "I8")
        ],
        lambda dtype, size, _: dtype == {64: "F16", 96: "I8", 128: "BF16"}.get(size, "F32"),
    ),
)
def test_groups_in_one_call(isa, dtype, size, n_in):
    importance = np.random.default_rng(4).uniform(0, 3, n_in).astype(np.float32)
    importance[::7] = 0
    kinds = (  # a pair of importance and baseline each
        (None, Baseline.STORED, GroupType(4, size)),
        (importance, Baseline.BF16, GroupType(4, size, symmetric=False, scale_dtype="F32")),
        (importance, Baseline.STORED, GroupType(8, size)),
        (None, Baseline.BF16, GroupType(4, size)),
    )
    for n_out, layout, used in ((1, "out_in", 4), (37, "in_out", 4), (200, "in_out", 2)):
        x = weights(n_out, n_in)
        scales = None
        if dtype == "I8":
            given = np.clip(np.rint(x * 30), -127, 127).astype(np.int8)
            scales = np.random.default_rng(5).uniform(0.1, 1, (2, n_out)).astype(np.float32)
        else:
            given = sources.source_of(x, dtype)
        source = sources.matrix(sources.place(given, layout), scales)
        for factors, baseline, group_type in kinds[:used]:
            assert_same_in_one_call(source, group_type, factors, baseline)


def test_groups_in_one_call_refuse_what_groups_refuse():
    x = weights(70, 256)
    x[60, 200] = np.nan
    with pytest.raises(LayoutError, match=r"NaN or infinity at \[60, 200\]"):
        quantize_and_measure_groups(sources.matrix(x), GroupType(4, 128))
    x[60, 200] = 1e30
    with pytest.raises(LayoutError, match="too large for a scale of F16"):
        quantize_and_measure_groups(sources.matrix(x), GroupType(4, 128, scale_dtype="F16"))
    with pytest.raises(LayoutError, match=r"importance of shape \[7\]"):
        quantize_and_measure_groups(sources.matrix(x), GroupType(4, 128), np.ones(7, np.float32))
    _, found = quantize_and_measure_groups(sources.matrix(x[:, :0]), GroupType(4, 128))
    assert found.exact.tolist() == [0] * 70


def test_every_bin_of_the_histogram():
    ratios = [2.0**-k * factor for k in range(34) for factor in (1.0, 1.5, 1.999)]
    x = np.zeros((len(ratios) + 2, 32), np.float32)
    x[:, 0] = 1
    y = x.copy()
    y[: len(ratios), 1] = np.sqrt(ratios)
    y[-1] = 0
    x[-1] = 0
    y[-1, 3] = 2  # of zeros
    found = measure_matrix(sources.matrix(x), F32, y.view(np.uint8))
    wanted = [bin_of(float(np.float64(value) ** 2)) for value in y[: len(ratios), 1]]
    assert found.histogram.argmax(axis=1).tolist() == [*wanted, 31, 0]
    assert set(wanted) == set(range(31))
    assert (found.histogram.sum(axis=1) == 1).all()


def test_unaligned_rows():
    x = weights(9, 512)
    rows = packed(x, Q4_K)
    shifted = np.zeros(rows.size + 1, np.uint8)
    shifted[1:] = rows.reshape(-1)
    found = measure_matrix(sources.matrix(x), Q4_K, shifted[1:])
    check(found, expected(x, rows, Q4_K))


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_infinite_scales_make_infinite_errors(isa, layout):
    x = np.ones((40, 2304), np.float32)
    x[5, 300] = 1e7  # beyond any float16 scale; the codes that are zero make NaN
    rows = packed(x, Q4_0)
    bad = overflowed_blocks(rows, Q4_0)
    assert bad.sum() == 1
    found = measure_matrix(sources.matrix(sources.place(x, layout)), Q4_0, rows)
    y = dequantize_bytes(Q4_0, rows.reshape(-1), x.size).reshape(x.shape)
    assert np.isnan(y[5]).any()
    assert found.error_squares[5] == found.largest[5] == found.relative_rms[5] == math.inf
    assert found.sqnr_db[5] == -math.inf
    assert not np.isfinite(found.cosine[5])
    assert not np.isfinite(found.mean_error[5])
    assert found.largest_in[5] == np.flatnonzero(~np.isfinite(y[5]))[0]
    total = found.total()
    assert total.largest == math.inf
    assert (total.largest_row, total.largest_in) == (5, found.largest_in[5])
    good = np.arange(40) != 5
    check(found[good], expected(x[good], rows[good], Q4_0))


def test_metrics_follow_their_definitions():
    x = np.float32([[3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 2, 3, 4]])
    y = np.float32([[3, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    found = measure_matrix(sources.matrix(x), F32, y.view(np.uint8))
    np.testing.assert_array_equal(found.relative_rms, [0.8, 0, math.inf, 1, 0])
    np.testing.assert_allclose(
        found.sqnr_db, [-20 * math.log10(0.8), math.inf, -math.inf, 0, math.inf], atol=1e-14
    )
    assert not np.signbit(found.sqnr_db[3])  # which would read -0.00 dB
    np.testing.assert_array_equal(found.cosine, [9 / 15, 1, 0, 0, 1])
    np.testing.assert_array_equal(found.mean_error, [-1, 0, 0.25, -1, 0])
    np.testing.assert_array_equal(found.share_exact, [0.75, 1, 0.75, 0, 1])
    np.testing.assert_array_equal(found.share_zeroed, [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(found.share_clipped, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.largest_in, [1, 0, 0, 0, 0])
    total = found.total()
    assert (total.rows, total.weights, total.runs) == (5, 20, 5)
    assert (total.largest, total.largest_row, total.largest_in) == (4, 0, 1)
    assert total.relative_rms == math.sqrt(21 / 59)
    assert total.share_exact == 0.7
    row = found[3]
    assert row.error_squares == 4
    assert row.total().share_zeroed == 1


def test_matrices_are_merged_in_order():
    x = weights(30, 512)
    parts = []
    for at, quant_type in enumerate((Q4_K, Q8_0, F16)):
        part = x[10 * at : 10 * at + 10]
        parts.append(measure_matrix(sources.matrix(part), quant_type, packed(part, quant_type)))
    whole = merged(parts)
    assert whole.rows.shape == (30,)
    total = whole.total()
    assert total.weights == 30 * 512
    assert total.runs == 30 * 16
    np.testing.assert_array_equal(total.histogram, whole.histogram.sum(axis=0))
    worst = whole.largest.argmax()
    assert (total.largest_row, total.largest_in) == (worst, whole.largest_in[worst])
    totals = merged(part.total() for part in parts).total()  # rows are counted through
    assert (totals.largest_row, totals.largest_in) == (worst, whole.largest_in[worst])
    np.testing.assert_allclose(totals.error_squares, total.error_squares, rtol=CLOSE)
    nothing = merged([]).total()
    assert nothing.weights == nothing.error_squares == nothing.relative_rms == 0
    assert nothing.cosine == 1
    assert nothing.mean_error == nothing.share_exact == nothing.share_zeroed == 0


def test_nan_in_the_source_is_no_failure():
    x = np.ones((3, 32), np.float32)
    x[1, 7] = np.nan
    found = measure_matrix(sources.matrix(x), F32, np.ones((3, 32), np.float32).view(np.uint8))
    np.testing.assert_array_equal(found.error_squares, [0, math.inf, 0])
    assert found.largest_in[1] == 7
    assert np.isnan(found.source_squares[1])


def test_refusals_and_nothing():
    x = np.zeros((2, 300), np.float32)
    with pytest.raises(LayoutError, match="does not fill Q4_K blocks"):
        measure_matrix(sources.matrix(x), Q4_K, np.zeros(1000, np.uint8))
    codes = np.zeros((2, 64), np.int8)
    scales = np.ones((5, 2), np.float32)
    with pytest.raises(LayoutError, match="do not divide into the scale groups"):
        measure_matrix(sources.matrix(codes, scales), Q8_0, np.zeros(136, np.uint8))
    empty = np.zeros(0, np.uint8)
    assert measure_matrix(Matrix(empty, "F32", 0, 32, 32, 1), Q8_0, empty).rows.shape == (0,)
    found = measure_matrix(Matrix(empty, "F32", 3, 0, 0, 1), Q8_0, empty)
    assert found.weights.tolist() == [0, 0, 0]
    assert of_moments(np.zeros((2, 3), MOMENTS), 32).total().rows == 6


def test_arrays_of_numpy_and_torch():
    import torch

    x = weights(12, 512).reshape(3, 4, 512)
    blocks = weightcast.quantize(x, "Q4_K")
    found = weightcast.measure(x, blocks, "q4_k")
    assert found.relative_rms.shape == (3, 4)
    assert np.isnan(found.weighted_error_squares).all()  # without importance nothing is weighed
    found = weightcast.measure(x, blocks, "q4_k", np.zeros(512, np.float32))
    check(found[1], expected(x[1], blocks[1], Q4_K))
    same = weightcast.measure(x.transpose(0, 2, 1).copy().transpose(0, 2, 1), blocks, "Q4_K")
    assert same.cross.tobytes() == found.cross.tobytes()
    tensor = weightcast.measure(torch.from_numpy(x), torch.from_numpy(blocks), "Q4_K")
    assert tensor.cross.tobytes() == found.cross.tobytes()
    half = torch.from_numpy(x).to(torch.bfloat16)
    kept = weightcast.measure(half, weightcast.quantize(half, "BF16"), "BF16")
    assert kept.total().share_exact == 1
    row = weightcast.measure(x[0, 0], blocks[0, 0], "Q4_K")
    assert row.cross.shape == ()
    assert row.cross == found.cross[0, 0]
    strided = np.repeat(blocks, 2, axis=-1)[..., ::2]
    assert weightcast.measure(x, strided, "Q4_K").errors.tobytes() == found.errors.tobytes()


@pytest.mark.parametrize(
    ("x", "blocks", "problem"),
    [
        (np.zeros((2, 256), np.float64), np.zeros((2, 144), np.uint8), "float64"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 145), np.uint8), r"\[2, 145\]"),
        (np.zeros((2, 256), np.float32), np.zeros((3, 144), np.uint8), r"\[3, 144\]"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 144), np.int8), "int8"),
        (np.zeros((2, 200), np.float32), np.zeros((2, 144), np.uint8), "does not fill"),
        (np.float32(1), np.zeros(144, np.uint8), "scalar|float32"),
        ([1.0], np.zeros(144, np.uint8), "list"),
        (np.zeros((2, 256), np.float32), [1], "list"),
    ],
    ids=["dtype", "row bytes", "rows", "signed", "blocks", "scalar", "list", "list of blocks"],
)
def test_arrays_that_do_not_fit_are_refused(x, blocks, problem):
    with pytest.raises(LayoutError, match=problem):
        weightcast.measure(x, blocks, "Q4_K")
