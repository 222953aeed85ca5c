"""From weights to what a reader computes: quantize or carry, pack, decompress."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from tests.formats.packed.packing import OF_INTEGERS, pack_whole, rows
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape, Scheme
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.groups import carry_groups, dequantize_groups, quantize_groups
from weightcast.quant.types import GroupType

N_OUT, N_IN = 48, 256
CT = LAYOUTS["compressed-tensors"]
MAX_ERROR = {4: 0.13, 8: 0.008}  # rms, of weights with a standard deviation of 1
STORED = [
    (name, bits, symmetric)
    for name in OF_INTEGERS
    for bits in ((4,) if name == "awq" else (4, 8))
    for symmetric in ((True,) if name == "gptq" else (True, False))
]


def gaussian() -> Matrix:
    data = np.random.default_rng(5).standard_normal(N_OUT * N_IN, np.float32)
    return Matrix(data, "F32", N_OUT, N_IN, N_IN, 1)


@pytest.mark.parametrize("group_size", [0, 32, 128])
@pytest.mark.parametrize(("name", "bits", "symmetric"), STORED)
def test_quantized_weights_survive_packing(name, bits, symmetric, group_size):
    group_type = GroupType(bits, group_size, symmetric)
    groups = quantize_groups(gaussian(), group_type)
    parts = pack_whole(LAYOUTS[name], groups, group_type)
    shape = MatrixShape(group_type, N_OUT, N_IN)
    read = LAYOUTS[name].matrix_layout(group_type).unpack(parts, shape)
    expected = dequantize_groups(groups, group_type)
    np.testing.assert_array_equal(dequantize_groups(read, group_type), expected)
    error = expected - gaussian().data.reshape(N_OUT, N_IN)
    assert np.sqrt(np.mean(error**2)) < MAX_ERROR[bits]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["BF16", "F32"])
def test_compressed_tensors_computes_our_own_dequantization(bits, symmetric, scale_dtype):
    from tests.formats.packed.oracle import decompress

    group_type = GroupType(bits, 64, symmetric, scale_dtype)
    groups = quantize_groups(gaussian(), group_type)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    found = decompress(pack_whole(CT, groups, group_type), config)
    expected = dequantize_groups(groups, group_type)
    if scale_dtype == "BF16":  # the package multiplies in the scales' dtype
        expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def released() -> tuple[Matrix, np.ndarray]:
    """An int8 matrix as it is released, [in, out] with two scales down `in`; its bf16 product."""
    rng = np.random.default_rng(6)
    codes = rng.integers(-128, 128, (N_IN, N_OUT), np.int8)
    scales = (rng.random((2, N_OUT)) * 2.0**-8).astype(ml_dtypes.bfloat16)
    product = codes.astype(ml_dtypes.bfloat16) * np.repeat(scales, N_IN // 2, axis=0)
    matrix = Matrix(codes.ravel(), "I8", N_OUT, N_IN, 1, N_OUT, 0, scales.astype(np.float32))
    return matrix, product.T


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_carried_int8_is_the_released_product_to_the_bit(released, group_size):
    from tests.formats.packed.oracle import decompress

    matrix, product = released
    group_type = GroupType(8, group_size)
    groups = carry_groups(matrix, group_type)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    found = decompress(pack_whole(CT, groups, group_type), config)
    assert found.astype(ml_dtypes.bfloat16).tobytes() == product.tobytes()


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq", "gptq_v2", "weightcast"])
def test_carried_int8_comes_back(released, name):
    matrix, product = released
    group_type = GroupType(8, 128)
    groups = carry_groups(matrix, group_type)
    parts = pack_whole(LAYOUTS[name], groups, group_type)
    shape = MatrixShape(group_type, N_OUT, N_IN)
    read = LAYOUTS[name].matrix_layout(group_type).unpack(parts, shape)
    values = dequantize_groups(read, group_type).astype(ml_dtypes.bfloat16)
    assert values.tobytes() == product.tobytes()


def test_pieces_of_groups_are_packed_without_copies_of_their_bytes():
    """Where the bytes of codes are those of the part, they are written from where they are."""
    group_type = GroupType(8, 128)
    groups = quantize_groups(gaussian(), group_type)
    for name, suffix in (("compressed-tensors", ".weight_packed"), ("weightcast", ".codes")):
        piece = rows(groups, 8, 24)
        stored, shape = (
            LAYOUTS[name].matrix_layout(group_type),
            MatrixShape(group_type, N_OUT, N_IN),
        )
        segments = {s.suffix: s for s in stored.pack(piece, shape, 8)}
        assert np.shares_memory(segments[suffix].data, groups.codes)
        assert segments[suffix].offset == 8 * N_IN
