"""Blocks of GGUF taken apart: the codes of their values, and the grid that these lie on.

Layouts are those of kernels/blocks/layouts.h. A code is the number of a level of the grid, in
ascending order; everything else of a block, scales and minimums, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.feedback import Grid
from weightcast.quant.types import QuantType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# Codes [blocks, values] of blocks [blocks, bytes], and back.
Take = Callable[[Bytes], Bytes]
Put = Callable[[Bytes, Bytes], None]
# The step and the low value, [blocks, groups], of blocks.
Scale = Callable[[Bytes], tuple[Floats, Floats | None]]

# Integers of Python would make wider ones of bytes for type checkers.
_FOUR, _LOW, _TWO_BITS = np.uint8(4), np.uint8(15), np.uint8(3)
# The levels of kernels/blocks/codebooks.h.
_IQ4: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4: Final = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
# The nibble of each of these; the second zero, code 8, is taken for the first.
_FP4_CODES: Final = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)
_FP4_LEVELS: Final = np.array([7, 8, 9, 10, 11, 12, 13, 14, 7, 6, 5, 4, 3, 2, 1, 0], np.uint8)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Take the blocks of one type apart, and put codes back."""

    n_levels: int
    scale: Scale
    take: Take
    put: Put
    levels: tuple[int, ...] | None = None

    def grid(self, blocks: Bytes, n_rows: int) -> Grid:
        """Give the grid of blocks [blocks, bytes] that fill `n_rows` rows."""
        steps, lows = (
            None if values is None else np.ascontiguousarray(values.reshape(n_rows, -1), np.float32)
            for values in self.scale(blocks)
        )
        assert steps is not None
        levels = None if self.levels is None else np.array(self.levels, np.float32)
        return Grid(steps, lows, self.n_levels, levels)


def _half(blocks: Bytes, at: int) -> Floats:
    """Read the float16 at a byte of each block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _symmetric(at: int, zero: int) -> Scale:
    def scale(blocks: Bytes) -> tuple[Floats, Floats]:
        steps = _half(blocks, at)
        return steps, np.float32(-zero) * steps

    return scale


def _affine(blocks: Bytes) -> tuple[Floats, Floats]:
    return _half(blocks, 0), _half(blocks, 2)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack the scales and the minimums of Q4_K and Q5_K, [blocks, 8], from 12 bytes."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6) << 4], axis=1)
    minimums = np.concatenate([high & 63, (rest >> 4) | (high >> 6) << 4], axis=1)
    return scales, minimums


def _k_affine(blocks: Bytes) -> tuple[Floats, Floats]:
    scales, minimums = _six_bits(blocks[:, 4:16])
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minimums)


def _q2_k(blocks: Bytes) -> tuple[Floats, Floats]:
    scales = blocks[:, :16]
    return _half(blocks, 80) * (scales & 15), -(_half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Bytes) -> tuple[Floats, Floats]:
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    steps = _half(blocks, 108) * ((low | high << 4).astype(np.float32) - 32)
    return steps, -4 * steps


def _q6_k(blocks: Bytes) -> tuple[Floats, Floats]:
    steps = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return steps, -32 * steps


def _iq4_nl(blocks: Bytes) -> tuple[Floats, None]:
    return _half(blocks, 0), None


def _iq4_xs(blocks: Bytes) -> tuple[Floats, None]:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = low | (high >> np.arange(0, 16, 2, dtype=np.uint16) & 3) << 4
    return _half(blocks, 0) * (scales.astype(np.float32) - 32), None


def _mxfp4(blocks: Bytes) -> tuple[Floats, None]:
    return np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128), None


def _nvfp4(blocks: Bytes) -> tuple[Floats, None]:
    scales = blocks[:, :4]
    fraction, exponent = scales & 7, scales >> 3 & 15
    normal = np.ldexp(np.float32(8) + fraction, exponent.astype(np.int32) - 11)
    steps = np.where(exponent == 0, np.ldexp(fraction.astype(np.float32), -10), normal)
    return np.where(scales == 0x7F, np.float32(0), steps), None


def _runs(at: int, size: int) -> tuple[Take, Put]:
    """Codes of 4 bits: of each run of `size` values, first all low nibbles, then all high ones."""

    def take(blocks: Bytes) -> Bytes:
        runs = blocks[:, at:].reshape(len(blocks), -1, size // 2)
        return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(blocks), -1)

    def put(blocks: Bytes, codes: Bytes) -> None:
        halves = codes.reshape(len(blocks), -1, 2, size // 2)
        blocks[:, at:] = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(blocks), -1)

    return take, put


def _with_fifth(qh: slice, take: Take, put: Put, *, by_value: bool) -> tuple[Take, Put]:
    """Codes of 5 bits: of the fifth, bit j of `qh` is that of value j, or of sub-block j."""

    def take_five(blocks: Bytes) -> Bytes:
        bits = np.unpackbits(blocks[:, qh, None], axis=2, bitorder="little")
        if not by_value:
            bits = bits.transpose(0, 2, 1)
        return take(blocks) | bits.reshape(len(blocks), -1) << _FOUR

    def put_five(blocks: Bytes, codes: Bytes) -> None:
        put(blocks, codes & _LOW)
        n = qh.stop - qh.start
        bits = codes >> 4
        bits = bits.reshape(-1, n, 8) if by_value else bits.reshape(-1, 8, n).transpose(0, 2, 1)
        blocks[:, qh] = np.packbits(bits, axis=2, bitorder="little")[..., 0]

    return take_five, put_five


def _two_bits(at: int) -> tuple[Take, Put]:
    """Codes of 2 bits: bits 2 * n of byte 32 * h + m are value 128 * h + 32 * n + m."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]

    def take(blocks: Bytes) -> Bytes:
        halves = blocks[:, at : at + 64].reshape(-1, 2, 1, 32)
        return (halves >> shifts & _TWO_BITS).reshape(len(blocks), -1)

    def put(blocks: Bytes, codes: Bytes) -> None:
        parts = codes.reshape(-1, 2, 4, 32) << shifts
        blocks[:, at : at + 64] = np.bitwise_or.reduce(parts, axis=2).reshape(len(blocks), -1)

    return take, put


def _three_bits() -> tuple[Take, Put]:
    """Codes of Q3_K: two bits in qs, the third in hmask."""
    take_low, put_low = _two_bits(32)

    def take(blocks: Bytes) -> Bytes:
        bits = np.unpackbits(blocks[:, :32, None], axis=2, bitorder="little")
        return take_low(blocks) | bits.transpose(0, 2, 1).reshape(len(blocks), -1) << np.uint8(2)

    def put(blocks: Bytes, codes: Bytes) -> None:
        put_low(blocks, codes & _TWO_BITS)
        bits = (codes >> 2).reshape(-1, 8, 32).transpose(0, 2, 1)
        blocks[:, :32] = np.packbits(bits, axis=2, bitorder="little")[..., 0]

    return take, put


def _six_bit_codes() -> tuple[Take, Put]:
    """Codes of Q6_K: four bits in ql, two in qh."""
    take_high, put_high = _two_bits(128)

    def take(blocks: Bytes) -> Bytes:
        halves = blocks[:, :128].reshape(-1, 2, 1, 64)
        low: Bytes = np.concatenate([halves & _LOW, halves >> _FOUR], axis=2)
        high = take_high(blocks)
        return low.reshape(high.shape) | high << _FOUR

    def put(blocks: Bytes, codes: Bytes) -> None:
        put_high(blocks, codes >> _FOUR)
        low = (codes & 15).reshape(-1, 2, 2, 64)
        blocks[:, :128] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(len(blocks), -1)

    return take, put


def _fp4(at: int, size: int) -> tuple[Take, Put]:
    """Codes of 4-bit floats, by the order of their values."""
    take, put = _runs(at, size)
    return (
        lambda blocks: _FP4_LEVELS[take(blocks)],
        lambda blocks, codes: put(blocks, _FP4_CODES[codes]),
    )


def _q5(at: int, qh: int) -> tuple[Take, Put]:
    return _with_fifth(slice(qh, qh + 4), *_runs(at, 32), by_value=True)


GRIDS: Final[dict[str, BlockGrid]] = {
    "Q4_0": BlockGrid(16, _symmetric(0, 8), *_runs(2, 32)),
    "Q4_1": BlockGrid(16, _affine, *_runs(4, 32)),
    "Q5_0": BlockGrid(32, _symmetric(0, 16), *_q5(6, 2)),
    "Q5_1": BlockGrid(32, _affine, *_q5(8, 4)),
    "Q2_K": BlockGrid(4, _q2_k, *_two_bits(16)),
    "Q3_K": BlockGrid(8, _q3_k, *_three_bits()),
    "Q4_K": BlockGrid(16, _k_affine, *_runs(16, 64)),
    "Q5_K": BlockGrid(32, _k_affine, *_with_fifth(slice(16, 48), *_runs(48, 64), by_value=False)),
    "Q6_K": BlockGrid(64, _q6_k, *_six_bit_codes()),
    "IQ4_NL": BlockGrid(16, _iq4_nl, *_runs(2, 32), _IQ4),
    "IQ4_XS": BlockGrid(16, _iq4_xs, *_runs(8, 32), _IQ4),
    "MXFP4": BlockGrid(15, _mxfp4, *_fp4(1, 32), _FP4),
    "NVFP4": BlockGrid(15, _nvfp4, *_fp4(4, 16), _FP4),
}


def grid_of(quant_type: QuantType) -> BlockGrid | None:
    """Find the grid of a type; None for plain floats and types whose values share codes."""
    return GRIDS.get(quant_type.name)


def as_blocks(rows: NDArray[Any], quant_type: QuantType) -> Bytes:
    """View rows of bytes as blocks [blocks, bytes]."""
    blocks: Bytes = rows.reshape(-1, quant_type.block_bytes)
    assert np.shares_memory(blocks, rows)
    return blocks
