"""MXFP4, NVFP4 and FP8 against the compressed-tensors package and our own kernels."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightcast
from tests.formats.packed.packing import assemble, cuts, fp8_by, pack_fp8, pack_rows
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp4 import BLOCKS, FP4_LAYOUTS
from weightcast.formats.packed.fp8 import FP8, FP8_LAYOUT
from weightcast.formats.packed.layout import MatrixShape, Scheme
from weightcast.quant.backend import CpuBackend
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.fp8 import Fp8Rows, dequantize_fp8, quantize_fp8
from weightcast.quant.types import MXFP4, Fp8Type

if sys.version_info < (3, 11):
    pytest.skip("compressed-tensors needs Python 3.11", allow_module_level=True)

from tests.formats.packed.oracle import decompress

FP4 = list(FP4_LAYOUTS.values())
CT = LAYOUTS["compressed-tensors"]
each_fp4 = pytest.mark.parametrize("layout", FP4, ids=lambda layout: layout.type.name)


def random_blocks(layout, n_out, n_in, seed=0):
    """All nibbles, and scales whose products are normal numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_out, n_in // layout.type.block_elements, 0), np.uint8)
    n_scales = layout.type.block_elements // layout.scaled_elements
    shape = blocks.shape[:2]
    low, high = (2, 250) if layout.type.name == "MXFP4" else (0, 127)
    scales = rng.integers(low, high, (*shape, n_scales), np.uint8)
    codes = rng.integers(0, 256, (*shape, layout.type.block_bytes - n_scales), np.uint8)
    return np.concatenate((scales, codes), axis=2).reshape(n_out, -1)


def pack_fp4(layout, blocks, n_out, n_in):
    return pack_rows(layout, blocks, MatrixShape(layout.type, n_out, n_in))


def unpack_fp8(parts, fp8_type, shape):
    return dequantize_fp8(FP8_LAYOUT.unpack(parts, MatrixShape(fp8_type, *shape)), fp8_type)


@each_fp4
def test_fp4_decompresses_to_what_our_kernels_give(layout):
    blocks = random_blocks(layout, 48, 256)
    config = CT.quantization_config([Scheme(("Linear",), layout.type)])
    assert config["format"] == layout.name
    found = decompress(pack_fp4(layout, blocks, 48, 256), config)
    expected = weightcast.dequantize(blocks, layout.type.name)
    # A product of an e2m1 and an e4m3 number has at most 6 bits: bfloat16 holds it.
    np.testing.assert_array_equal(found, expected)


@each_fp4
def test_fp4_of_quantized_weights(layout):
    weights = np.random.default_rng(1).standard_normal((16, 128), np.float32)
    blocks = weightcast.quantize(weights, layout.type.name)
    config = CT.quantization_config([Scheme(("Linear",), layout.type)])
    found = decompress(pack_fp4(layout, blocks, 16, 128), config)
    np.testing.assert_array_equal(found, weightcast.dequantize(blocks, layout.type.name))
    assert np.sqrt(np.mean((found - weights) ** 2)) < 0.13


@each_fp4
@given(data=st.data())
@settings(max_examples=20)
def test_fp4_blocks_come_back(layout, data):
    n_out, n_in = data.draw(st.integers(1, 20)), 64 * data.draw(st.integers(1, 4))
    shape = MatrixShape(layout.type, n_out, n_in)
    blocks = random_blocks(layout, n_out, n_in, data.draw(st.integers(0, 99)))
    segments = [
        segment
        for start, stop in data.draw(cuts(n_out, 1))
        for segment in layout.pack(blocks[start:stop], shape, start)
    ]
    parts = assemble(layout.parts(shape), segments, layout.constants(shape))
    np.testing.assert_array_equal(layout.unpack(parts, shape), blocks)


def test_mxfp4_bytes_by_hand():
    # qs[j] holds values j and 16 + j: codes 0 to 15, then 15 to 0. Packed: 2k and 2k + 1.
    block = np.array([[127, *(j | (15 - j) << 4 for j in range(16))]], np.uint8)
    parts = pack_fp4(FP4_LAYOUTS["MXFP4"], block, 1, 32)
    assert parts[".weight_packed"].tobytes() == bytes.fromhex("1032547698badcfeefcdab8967452301")
    assert parts[".weight_scale"].tobytes() == b"\x7f"


def test_scales_that_only_ggml_reads():
    mxfp4, nvfp4 = FP4_LAYOUTS["MXFP4"], FP4_LAYOUTS["NVFP4"]
    with pytest.raises(LayoutError, match=r"^a scale of 2\^128, which ggml reads, is a NaN in mx"):
        list(mxfp4.pack(np.full((1, 17), 0xFF, np.uint8), MatrixShape(mxfp4.type, 1, 32), 0))
    with pytest.raises(LayoutError, match=r"^a scale of 480, which ggml reads, is a NaN in nvfp4"):
        list(nvfp4.pack(np.full((1, 36), 0xFF, np.uint8), MatrixShape(nvfp4.type, 1, 64), 0))
    blocks = random_blocks(nvfp4, 1, 64)
    blocks[0, :4] = 0x7F, 0xFE, 0x81, 0x38
    parts = pack_fp4(nvfp4, blocks, 1, 64)
    assert parts[".weight_scale"].tobytes() == bytes([0, 0x7E, 1, 0x38])
    config = CT.quantization_config([Scheme(("Linear",), nvfp4.type)])
    expected = weightcast.dequantize(blocks, "NVFP4")
    np.testing.assert_array_equal(decompress(parts, config), expected)


@each_fp4
def test_fp4_parts_that_are_wrong_are_refused(layout):
    shape = MatrixShape(layout.type, 4, 64)
    parts = pack_fp4(layout, random_blocks(layout, 4, 64), 4, 64)
    for suffix, array in parts.items():
        with pytest.raises(MissingTensorError, match=f"needs {suffix}, which"):
            layout.unpack({k: v for k, v in parts.items() if k != suffix}, shape)
        for wrong in (array[:0], array[None], array.astype(np.int64)):
            with pytest.raises(LayoutError, match=rf"^\{suffix} is \w+ \[.*belongs$"):
                layout.unpack(parts | {suffix: wrong}, shape)
    nan = parts[".weight_scale"].copy()
    nan.view(np.uint8)[1, 1] = 0xFF
    with pytest.raises(LayoutError, match=r"has a NaN or a negative number$"):
        layout.unpack(parts | {".weight_scale": nan}, shape)


def test_nvfp4_with_a_global_scale_is_refused():
    layout = FP4_LAYOUTS["NVFP4"]
    parts = pack_fp4(layout, random_blocks(layout, 4, 64), 4, 64)
    shape, other = MatrixShape(layout.type, 4, 64), np.full(1, 2, np.float32)
    with pytest.raises(LayoutError, match=r"^\.weight_global_scale is 2\.0: GGUF blocks have none"):
        layout.unpack(parts | {".weight_global_scale": other}, shape)


@each_fp4
def test_fp4_rows_that_are_wrong_are_refused(layout):
    blocks = random_blocks(layout, 4, 64)
    for rows, row0 in ((blocks, 1), (blocks, -1), (blocks[:, :-1], 0), (blocks.view(np.int8), 0)):
        with pytest.raises(LayoutError):
            list(layout.pack(rows, MatrixShape(layout.type, 4, 64), row0))
    with pytest.raises(LayoutError, match=f"does not fill {layout.type.name} blocks"):
        layout.parts(MatrixShape(layout.type, 4, 80))


@pytest.mark.parametrize(
    ("coding", "weight_type"), [(BLOCKS, MXFP4), (FP8, Fp8Type())], ids=["fp4", "fp8"]
)
def test_floats_hold_no_int8_codes(coding, weight_type):
    matrix = Matrix(np.zeros(64, np.float32), "F32", 1, 64, 64, 1)
    with pytest.raises(LayoutError, match=rf"^{weight_type.label} holds no int8 codes: quantize"):
        coding.carry(matrix, weight_type)
    rows = coding.quantize(matrix, weight_type, None, CpuBackend(), None).rows
    with pytest.raises(LayoutError, match=rf"^{weight_type.label} holds no int8 codes: quantize"):
        coding.check_carried(matrix, rows, weight_type)


@pytest.mark.parametrize("block", [0, 128, 32])
@pytest.mark.parametrize("shape", [(256, 384), (100, 200), (1, 1)])
def test_fp8_decompresses_to_our_values(block, shape):
    fp8_type = fp8_by(block)
    rng = np.random.default_rng(2)
    weights = rng.standard_normal(shape, np.float32)
    weights *= np.exp(3 * rng.standard_normal((shape[0], 1), np.float32))
    parts = pack_fp8(weights, fp8_type)
    ours = unpack_fp8(parts, fp8_type, shape)
    found = decompress(parts, CT.quantization_config([Scheme(("Linear",), fp8_type)]))
    np.testing.assert_array_equal(found, ours)
    # Three fraction bits: half a step is 1/16 of a value, or 2^-10 of the scale near zero.
    scales = parts[".weight_scale"]
    spread = scales.repeat(block or 1, 0)[: shape[0]].repeat(block or shape[1], 1)[:, : shape[1]]
    limit = np.maximum(np.abs(weights) / 16, spread * 2.0**-10) * (1 + 1e-6)
    assert np.all(np.abs(ours - weights) <= limit)


def test_fp8_by_hand():
    # 448 / 448 = 1; 0.1 lies between 0.09375 and 0.1015625, 13/8 * 2^-4 being nearer.
    weights = np.array([[448, -0.1, 17, 2.0**-10], [0, 0, 0, 0]], np.float32)
    rows = quantize_fp8(weights, Fp8Type())
    assert rows.weights[0].astype(np.float32).tolist() == [448, -0.1015625, 16, 0]
    assert rows.weights.view(np.uint8)[0].tolist() == [0x7E, 0x9D, 0x58, 0]
    assert rows.scales.tolist() == [[1], [1]]


def test_fp8_of_the_smallest_and_the_largest_numbers():
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    for magnitude in (tiny, 100 * tiny, 1000 * tiny, huge):
        weights = np.array([[magnitude, -magnitude]], np.float32)
        rows = quantize_fp8(weights, Fp8Type())
        assert np.all(np.isfinite(rows.weights.astype(np.float32)))
        assert np.all(np.isfinite(rows.scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [0, 2])
def test_fp8_refuses_what_is_not_finite(bad, block):
    weights = np.ones((4, 4), np.float32)
    weights[3, 1] = bad
    with pytest.raises(LayoutError, match=r"^NaN or infinity cannot be quantized$"):
        quantize_fp8(weights, fp8_by(block))


@given(data=st.data())
@settings(max_examples=30)
def test_fp8_in_pieces_is_fp8_at_once(data):
    fp8_type = fp8_by(data.draw(st.sampled_from([0, 4, 128])))
    n_out, n_in = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = rng.standard_normal((n_out, n_in), np.float32)
    shape = MatrixShape(fp8_type, n_out, n_in)
    segments = [
        segment
        for start, stop in data.draw(cuts(n_out, FP8_LAYOUT.row_multiple(fp8_type)))
        for segment in FP8_LAYOUT.pack(quantize_fp8(weights[start:stop], fp8_type), shape, start)
    ]
    parts = assemble(FP8_LAYOUT.parts(shape), segments, {})
    rows = quantize_fp8(weights, fp8_type)
    assert parts[".weight"].tobytes() == rows.weights.tobytes()
    assert parts[".weight_scale"].tobytes() == rows.scales.tobytes()


def test_fp8_rows_and_parts_that_are_wrong_are_refused():
    weights = np.ones((8, 8), np.float32)
    block = Fp8Type(4, 4)
    shape = MatrixShape(block, 8, 8)
    for rows, row0 in ((weights, 4), (weights[:2], 0), (weights[:4], 2), (weights[:, :-1], 0)):
        with pytest.raises(LayoutError):
            list(FP8_LAYOUT.pack(quantize_fp8(rows, block), shape, row0))
    with pytest.raises(LayoutError, match=r"are not float32 rows of 8$"):
        quantize_fp8(weights.astype(np.float64), block)
    made = quantize_fp8(weights, block)
    for rows in (Fp8Rows(weights, made.scales), Fp8Rows(made.weights, made.scales[:1])):
        with pytest.raises(LayoutError, match=r"^\.weight\w* is float32 \[\d, \d\], where"):
            list(FP8_LAYOUT.pack(rows, shape, 0))
    with pytest.raises(LayoutError, match=r"^a matrix \[0, 8\]"):
        FP8_LAYOUT.parts(MatrixShape(block, 0, 8))
    parts = pack_fp8(weights, block)
    with pytest.raises(MissingTensorError, match=r"^float-quantized needs \.weight_scale, which"):
        FP8_LAYOUT.unpack({".weight": parts[".weight"]}, shape)
    other = parts[".weight"].astype(ml_dtypes.float8_e5m2)
    with pytest.raises(LayoutError, match=r"^\.weight is float8_e5m2 \[8, 8\], where"):
        FP8_LAYOUT.unpack(parts | {".weight": other}, shape)
