"""Dequantized floats equal those of ggml and of gguf-py, bit for bit, for any bytes at all.

Random bytes make scales that are NaN or infinite. NaNs are compared by place only: their payload
follows which operand of an addition the compiler puts first, and means nothing.
"""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quant import oracle
from tests.quant.instruction_sets import using
from tests.quant.sources import assert_same_floats, random_rows
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize
from weightcast.quant.cpu.library import BAD_SHAPE, BAD_TYPE, OK, dequantize_bytes, load
from weightcast.quant.types import I8, TYPES

few = settings(max_examples=15)
BLOCK_TYPES = pytest.mark.parametrize("name", oracle.DEQUANTIZE_ROW)
NOT_IN_GGUF = {"Q1_0", "Q2_0"}  # gguf-py names the first and cannot unpack it, the other is newer
# Where the float16 fields of a block are, in bytes from its start.
HALVES = {
    **dict.fromkeys(["Q4_0", "Q5_0", "Q8_0", "Q1_0", "Q2_0", "IQ4_NL", "IQ4_XS"], (0,)),
    **dict.fromkeys(["Q4_1", "Q5_1", "Q4_K", "Q5_K"], (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}


def gguf_values(rows: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])


def check(
    libraries: dict[str, ctypes.CDLL], rows: np.ndarray, name: str, expected: np.ndarray
) -> np.ndarray:
    """Compare what every instruction set makes of rows, and give the last one's."""
    for loaded in libraries.values():
        with using(loaded):
            ours = dequantize(rows, name)
        assert_same_floats(ours, expected)
    return ours


@BLOCK_TYPES
@pytest.mark.parametrize("finite", [False, True], ids=["any_scale", "finite_scales"])
def test_any_bytes_as_ggml(name, finite, libraries):
    rows = random_rows(1, TYPES[name], 300, 7)
    if finite:  # no byte is an exponent of all ones
        rows &= 0x7B
    ours = check(libraries, rows, name, oracle.dequantize(rows, TYPES[name]))
    if finite:
        assert np.isfinite(ours).all()
        assert ours.any()


@pytest.mark.parametrize("name", [n for n in TYPES if n not in NOT_IN_GGUF])
def test_any_bytes_as_gguf_py(name, libraries):
    rows = random_rows(2, TYPES[name], 200, 5)
    check(libraries, rows, name, gguf_values(rows, name))


@BLOCK_TYPES
@few
@given(n_rows=st.integers(0, 20), n_blocks=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_any_shape(n_rows, n_blocks, seed, name, libraries):
    rows = random_rows(seed, TYPES[name], n_rows, n_blocks)
    check(libraries, rows, name, oracle.dequantize(rows, TYPES[name]))


@pytest.mark.parametrize("name", HALVES)
def test_every_float16_scale(name, libraries):
    """All 65536 bit patterns in each float16 field: subnormals, infinities and NaNs among them."""
    for offset in HALVES[name]:
        rows = random_rows(3, TYPES[name], 1 << 16, 1)
        for other in HALVES[name]:
            rows[:, other : other + 2] = (0x00, 0x3C)
        rows[:, offset : offset + 2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
        ours = check(libraries, rows, name, oracle.dequantize(rows, TYPES[name]))
        assert 0 < np.isnan(ours).any(axis=1).mean() < 0.1


@pytest.mark.parametrize(("name", "n_scales"), [("MXFP4", 1), ("NVFP4", 4)])
def test_every_scale_of_a_byte(name, n_scales, isa):
    """E8M0 and UE4M3, among them the patterns that their specifications call NaN."""
    for scale in range(n_scales):
        rows = random_rows(4, TYPES[name], 256, 1)
        rows[:, scale] = np.arange(256)
        ours = dequantize(rows, name)
        theirs = oracle.dequantize(rows, TYPES[name])
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
        assert not np.isnan(ours).any()


@BLOCK_TYPES
def test_every_byte_in_every_place(name, libraries):
    """One byte of a block takes all its values while the others stay."""
    quant_type = TYPES[name]
    base = random_rows(5, quant_type, 1, 1) & 0x7B
    rows = np.repeat(base, 256 * quant_type.block_bytes, axis=0)
    for place in range(quant_type.block_bytes):
        rows[256 * place : 256 * (place + 1), place] = np.arange(256)
    check(libraries, rows, name, oracle.dequantize(rows, quant_type))


@pytest.mark.parametrize("name", TYPES)
def test_unaligned_sources(name, isa):
    quant_type = TYPES[name]
    rows = random_rows(6, quant_type, 3, 3) & 0x7B
    expected = dequantize(rows, name).reshape(-1)
    for shift in (1, 2, 3, 7):
        buffer = np.zeros(rows.nbytes + 64, np.uint8)
        start = -buffer.ctypes.data % 32 + shift
        moved = buffer[start : start + rows.nbytes]
        moved[:] = rows.reshape(-1)
        assert moved.ctypes.data % 32 == shift
        ours = dequantize_bytes(quant_type, moved, 9 * quant_type.block_elements)
        np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@BLOCK_TYPES
def test_rows_of_broken_blocks(name):
    quant_type = TYPES[name]
    for n_bytes in (1, quant_type.block_bytes - 1, quant_type.block_bytes + 1):
        with pytest.raises(LayoutError, match=f"{n_bytes} bytes are not whole {name} blocks"):
            dequantize(np.zeros((2, n_bytes), np.uint8), name)


@BLOCK_TYPES
def test_the_library_wants_whole_blocks(name, isa):
    quant_type = TYPES[name]
    blocks = np.zeros(quant_type.block_bytes, np.uint8)
    x = np.full(quant_type.block_elements + 1, 7, np.float32)

    def status(n_elements: int) -> int:
        function = load().weightcast_dequantize
        return int(function(quant_type.ggml_id, blocks.ctypes.data, n_elements, x.ctypes.data))

    for n_elements in (-1, 1, quant_type.block_elements - 1, quant_type.block_elements + 1):
        assert status(n_elements) == BAD_SHAPE
    assert status(0) == OK
    assert (x == 7).all()
    assert status(quant_type.block_elements) == OK
    assert x[-1] == 7


def test_what_has_no_floats_is_refused(isa):
    for ggml_id in (I8.ggml_id, 4, 15, 43, -1):  # 4 was Q4_2, 15 is Q8_K, 43 is unused
        assert load().weightcast_dequantize(ggml_id, None, 0, None) == BAD_TYPE


def test_blocks_worked_by_hand(isa):
    # Q4_0: d = 0.5 (float16 0x3800), the byte 0x8F holds 15 and 8: (15 - 8) / 2 and (8 - 8) / 2.
    rows = np.full((1, 18), 0x88, np.uint8)
    rows[0, :3] = (0x00, 0x38, 0x8F)
    assert dequantize(rows, "Q4_0").tolist() == [[3.5] + [0.0] * 31]
    # MXFP4: e = 128 is 2, the byte 0xF7 holds 7 and 15: 6 and -6.
    rows = np.zeros((1, 17), np.uint8)
    rows[0, :2] = (128, 0xF7)
    assert dequantize(rows, "MXFP4").tolist() == [[12.0] + [0.0] * 15 + [-12.0] + [0.0] * 15]
    # TQ2_0: d = 1, every code 1 but for the first four of byte 0: 0, 1, 2, 0.
    rows = np.full((1, 66), 0x55, np.uint8)
    rows[0, 0], rows[0, 64:] = 0b00_10_01_00, (0x00, 0x3C)
    x = dequantize(rows, "TQ2_0")[0]
    assert x[[0, 32, 64, 96]].tolist() == [-1, 0, 1, -1]
    assert np.count_nonzero(x) == 3
