"""compressed-tensors' own code decompresses what we pack, to exactly the values we mean."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from tests.formats.packed.packing import pack_whole, random_groups, values
from weightcast.errors import LayoutError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape, Scheme
from weightcast.quant.types import GroupType

if sys.version_info < (3, 11):
    pytest.skip("compressed-tensors needs Python 3.11", allow_module_level=True)

from tests.formats.packed.oracle import compress, decompress

CT = LAYOUTS["compressed-tensors"]


def unpack(parts, group_type, n_out, n_in):
    stored = CT.matrix_layout(group_type)
    return stored.unpack(parts, MatrixShape(group_type, n_out, n_in))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["BF16", "F32"])
def test_decompresses_to_our_values(bits, group_size, symmetric, scale_dtype):
    group_type = GroupType(bits, group_size, symmetric, scale_dtype)
    groups = random_groups(group_type, 40, 256)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    found = decompress(pack_whole(CT, groups, group_type), config)
    expected = values(groups, group_type)
    if scale_dtype == "BF16":  # products are rounded to the scales' dtype
        expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_int8_with_bf16_scales_is_exactly_the_jax_product():
    rng = np.random.default_rng(4)
    codes = rng.integers(-128, 128, (24, 768), np.int8)
    codes[0, :2] = -128, 127
    scales = (rng.standard_normal((24, 3)) * 2.0**-9).astype(ml_dtypes.bfloat16)
    product = codes.astype(ml_dtypes.bfloat16) * np.repeat(scales, 256, axis=1)
    group_type = GroupType(8, 256)
    groups = random_groups(group_type, 24, 768)
    groups = type(groups)((codes.view(np.uint8) ^ 0x80), scales, None)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    found = decompress(pack_whole(CT, groups, group_type), config)
    assert found.astype(ml_dtypes.bfloat16).tobytes() == product.tobytes()


@pytest.mark.parametrize("shape", [(9, 64), (3, 32), (5, 100)])
@pytest.mark.parametrize("bits", [4, 8])
def test_shapes_that_leave_words_unfilled(shape, bits):
    group_type = GroupType(bits, 0, symmetric=False, scale_dtype="F32")
    groups = random_groups(group_type, *shape)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    found = decompress(pack_whole(CT, groups, group_type), config)
    np.testing.assert_array_equal(found, values(groups, group_type))


def test_bytes_by_hand():
    # Row 0: codes 1, 2, .. 8 make the word 0x87654321, stored lowest byte first.
    group_type = GroupType(4, 0, symmetric=False, scale_dtype="F32")
    groups = random_groups(group_type, 2, 8)
    groups.codes[0] = range(1, 9)
    groups.zero_points[:, 0] = 0xA, 0xB
    parts = pack_whole(CT, groups, group_type)
    assert parts[".weight_packed"][0].tobytes() == bytes.fromhex("21436587")
    assert parts[".weight_zero_point"].tobytes() == bytes.fromhex("ba000000")
    assert parts[".weight_shape"].tolist() == [2, 8]


def test_contradictions_are_refused():
    group_type = GroupType(4, 32)
    parts = pack_whole(CT, random_groups(group_type, 8, 64), group_type)
    turned = parts | {".weight_shape": np.array([64, 8])}
    with pytest.raises(LayoutError, match=r"^\.weight_shape says \[64, 8\], the model \[8, 64\]$"):
        unpack(turned, group_type, 8, 64)
    more = parts | {".weight_zero_point": np.zeros((1, 2), np.int32)}
    with pytest.raises(LayoutError, match=r"^symmetric groups have no \.weight_zero_point"):
        unpack(more, group_type, 8, 64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [0, 32])
def test_reads_what_compressed_tensors_writes(bits, symmetric, group_size):
    group_type = GroupType(bits, group_size, symmetric, "F32")
    groups = random_groups(group_type, 20, 96)
    groups = type(groups)(groups.codes, np.abs(groups.scales) + 1e-3, groups.zero_points)
    config = CT.quantization_config([Scheme(("Linear",), group_type)])
    written = compress(values(groups, group_type), groups, config)
    read = unpack(written, group_type, 20, 96)
    np.testing.assert_array_equal(read.codes, groups.codes)
    np.testing.assert_array_equal(read.scales, groups.scales)
    if not symmetric:
        np.testing.assert_array_equal(read.zero_points, groups.zero_points)
