"""GPTQ and AWQ against an unpacker written from their published rules, one code at a time.

GPTQ: bits [b * j, b * j + b) of word i along `in` are row 32 / b * i + j of the transposed
matrix; of the zero points, words lie along `out`; version 1 adds one after unpacking.
https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
AWQ: nibble j of word i along `out` is column 8 * i + (0, 2, 4, 6, 1, 3, 5, 7)[j].
https://github.com/casper-hansen/AutoAWQ/blob/main/awq/utils/packing_utils.py
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.formats.packed.packing import pack_whole, random_groups, values
from weightcast.errors import LayoutError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def code(words, bits: int, index: int) -> int:
    """Code `index` of a run of words, lowest bits first."""
    per_word = 32 // bits
    word = int(words[index // per_word]) & 0xFFFFFFFF
    return word >> bits * (index % per_word) & (1 << bits) - 1


def awq_code(words, column: int) -> int:
    return code(words, 4, column // 8 * 8 + AWQ_ORDER.index(column % 8))


def gptq_values(parts, bits: int, version: int) -> np.ndarray:
    """Dequantize [out, in] in float32."""
    qweight, qzeros, scales = parts[".qweight"], parts[".qzeros"], parts[".scales"]
    n_in, n_out = len(parts[".g_idx"]), scales.shape[1]
    found = np.empty((n_out, n_in), np.float32)
    for o in range(n_out):
        for i, group in enumerate(parts[".g_idx"]):
            zero = code(qzeros[group], bits, o) + (version == 1)
            found[o, i] = np.float32(code(qweight[:, o], bits, i) - zero) * np.float32(
                scales[group, o]
            )
    return found


def awq_values(parts) -> np.ndarray:
    qweight, qzeros, scales = parts[".qweight"], parts[".qzeros"], parts[".scales"]
    (n_in, _), (n_groups, n_out) = qweight.shape, scales.shape
    found = np.empty((n_out, n_in), np.float32)
    for o in range(n_out):
        for i in range(n_in):
            group = i // (n_in // n_groups)
            integer = awq_code(qweight[i], o) - awq_code(qzeros[group], o)
            found[o, i] = np.float32(integer) * np.float32(scales[group, o])
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize(
    ("name", "version", "symmetric"),
    [("gptq", 1, True), ("gptq_v2", 2, True), ("gptq_v2", 2, False)],
)
def test_gptq(bits, group_size, name, version, symmetric):
    group_type = GroupType(bits, group_size, symmetric, "F16")
    groups = random_groups(group_type, 24, 64)
    found = gptq_values(pack_whole(LAYOUTS[name], groups, group_type), bits, version)
    np.testing.assert_array_equal(found, values(groups, group_type))


@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(group_size, symmetric):
    group_type = GroupType(4, group_size, symmetric, "F16")
    groups = random_groups(group_type, 24, 64)
    found = awq_values(pack_whole(LAYOUTS["awq"], groups, group_type))
    np.testing.assert_array_equal(found, values(groups, group_type))


@pytest.mark.parametrize(
    ("name", "bits", "word"),
    [
        ("gptq", 4, 0x77777777),
        ("gptq", 8, 0x7F7F7F7F),
        ("gptq_v2", 4, 0x88888888),
        ("gptq_v2", 8, 0x80808080),
        ("awq", 4, 0x88888888),
    ],
)
def test_words_of_symmetric_zero_points(name, bits, word):
    group_type = GroupType(bits, 32)
    parts = pack_whole(LAYOUTS[name], random_groups(group_type, 16, 64), group_type)
    assert parts[".qzeros"].shape == (2, 16 * bits // 32)
    assert set(parts[".qzeros"].ravel().view(np.uint32).tolist()) == {word}
    other = parts | {".qzeros": parts[".qzeros"] ^ 1}
    with pytest.raises(LayoutError, match=r"^\.qzeros is not "):
        LAYOUTS[name].unpack(other, MatrixShape(group_type, 16, 64))


def test_words_by_hand():
    group_type = GroupType(4, 0, symmetric=False, scale_dtype="F32")
    codes = np.zeros((8, 8), np.uint8)
    codes[0] = range(8)  # one output channel: one word of GPTQ
    codes[:, 0] = range(8)  # one input column: one word of AWQ
    zero_points = np.arange(8, 16, dtype=np.uint8)[:, None]
    groups = Groups(codes, np.ones((8, 1), np.float32), zero_points)
    gptq = pack_whole(LAYOUTS["gptq_v2"], groups, group_type)
    awq = pack_whole(LAYOUTS["awq"], groups, group_type)
    assert gptq[".qweight"][0, 0] == 0x76543210
    assert gptq[".qzeros"].view(np.uint32)[0, 0] == 0xFEDCBA98
    assert awq[".qweight"][0, 0] == 0x75316420
    assert awq[".qzeros"].view(np.uint32)[0, 0] == 0xFDB9ECA8
    assert gptq[".g_idx"].tolist() == [0] * 8


def test_zero_points_of_version_1_are_read():
    """Others write asymmetric version 1; there 15 stands for 16."""
    group_type = GroupType(4, 32, symmetric=False)
    groups = random_groups(group_type, 16, 64)
    parts = pack_whole(LAYOUTS["gptq_v2"], groups, group_type)
    read = LAYOUTS["gptq"].unpack(parts, MatrixShape(group_type, 16, 64))
    np.testing.assert_array_equal(read.zero_points, groups.zero_points + 1)
    assert read.zero_points.max() == 16
    np.testing.assert_array_equal(gptq_values(parts, 4, 1), values(read, group_type))


def test_a_zero_point_of_256_is_refused():
    group_type = GroupType(8, 32, symmetric=False)
    groups = random_groups(group_type, 16, 64)
    groups.zero_points[3, 1] = 255
    parts = pack_whole(LAYOUTS["gptq_v2"], groups, group_type)
    with pytest.raises(LayoutError, match=r"^\.qzeros has a zero point of 256, which is not read$"):
        LAYOUTS["gptq"].unpack(parts, MatrixShape(group_type, 16, 64))


@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_activation_order_is_refused(name):
    group_type = GroupType(4, 32)
    parts = pack_whole(LAYOUTS[name], random_groups(group_type, 16, 64), group_type)
    assert parts[".g_idx"].tolist() == [0] * 32 + [1] * 32
    turned = parts | {".g_idx": parts[".g_idx"][::-1]}
    with pytest.raises(LayoutError, match=r"^\.g_idx orders columns by activation \(desc_act\)"):
        LAYOUTS[name].unpack(turned, MatrixShape(group_type, 16, 64))
