"""Launch arithmetic: every block is made once, every byte copied once, within CUDA's limits.

What thread, tile and word do is modelled here from the words of kernels/device/tile.h and
device/blocks.h; the host forms of the kernels end the process where a launch is not theirs.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.cuda import launch as cuda_launch
from weightcast.quant.cuda.launch import (
    MAX_SHARED_BYTES,
    MAX_THREAD_BLOCKS,
    Launch,
    check_launch,
    dequantize_launch,
    dequantized_together,
    quantize_launch,
    staged_pitch,
    word_of,
)
from weightcast.quant.types import F32, FLOAT_TYPES, Q4_0, Q4_K, TYPES, QuantType

with_type = pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
WARP = 32
N_OUT = (1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 70, 257)


def run(quant_type: QuantType) -> tuple[int, int]:
    """Values and bytes of what one thread makes: of plain floats 32."""
    elements = 32 if quant_type in FLOAT_TYPES else quant_type.block_elements
    return elements, elements // quant_type.block_elements * quant_type.block_bytes


def row_lengths(quant_type: QuantType) -> list[int]:
    """Values of rows around those of one tile and of several, whole blocks each."""
    elements, _ = run(quant_type)
    counts = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)
    if quant_type in FLOAT_TYPES:
        return [max(1, elements * n + odd) for n in counts for odd in (-31, -1, 0)]
    return [elements * n for n in counts]


def made_by(launch: Launch, n_out: int, n_runs: int) -> NDArray[np.int64]:
    """Count the threads [n_out, n_runs] that make each run."""
    deep = launch.threads // launch.columns
    across = -(-n_out // launch.columns)
    tile, thread = np.divmod(np.arange(launch.thread_blocks * launch.threads), launch.threads)
    out = tile % across * launch.columns + thread % launch.columns
    block = tile // across * deep + thread // launch.columns
    inside = (out < n_out) & (block < n_runs)
    return np.bincount(out[inside] * n_runs + block[inside], minlength=n_out * n_runs)


@with_type
@pytest.mark.parametrize("along_in", [False, True])
def test_every_block_has_one_thread(along_in, quant_type):
    elements, _ = run(quant_type)
    for n_out, n_in in product(N_OUT, row_lengths(quant_type)):
        width = quant_type.row_bytes(n_in)
        launch = quantize_launch(
            quant_type, n_out, n_in, along_in=along_in, dst=0, dst_stride=width
        )
        n_runs = -(-n_in // elements)
        assert (made_by(launch, n_out, n_runs) == 1).all(), (n_out, n_in)
        deep = launch.threads // launch.columns
        # No thread block is idle.
        assert launch.thread_blocks == -(-n_out // launch.columns) * -(-n_runs // deep)


@with_type
@pytest.mark.parametrize("along_in", [False, True])
def test_every_byte_is_copied_once_by_words_that_fit(along_in, quant_type):
    _, nbytes = run(quant_type)
    words = set()
    for n_in, dst, extra in product(row_lengths(quant_type), range(5), range(4)):
        width = quant_type.row_bytes(n_in)
        launch = quantize_launch(
            quant_type, 3, n_in, along_in=along_in, dst=dst, dst_stride=width + extra
        )
        word = launch.word_bytes
        words.add(word)
        assert word in (1, 2, 4)
        tile_bytes = launch.threads // launch.columns * nbytes
        ends = [*range(0, width, tile_bytes), width]
        for first, end in pairwise(ends):
            # Whole words, so nothing is left over and nothing beyond is touched.
            assert (end - first) % word == 0
            assert all((dst + out * (width + extra) + first) % word == 0 for out in range(3))
        # The widest that all of these allow.
        if word < 4:
            assert any(n % (2 * word) for n in (dst, width + extra, width, tile_bytes))
    assert {1, 2} <= words


@with_type
@pytest.mark.parametrize("along_in", [False, True])
def test_quantizers_fit_a_thread_block(along_in, quant_type):
    elements, nbytes = run(quant_type)
    n_in = 33 * elements
    launch = quantize_launch(
        quant_type, 99, n_in, along_in=along_in, dst=0, dst_stride=quant_type.row_bytes(n_in)
    )
    assert launch.threads in (128, 256)
    assert launch.threads % launch.columns == 0
    assert WARP % launch.columns == 0 or launch.columns % WARP == 0
    # Sources that are contiguous along `out` are read by whole warps.
    assert launch.columns == (8 if along_in else WARP)
    pitch, rest = divmod(launch.shared_bytes, launch.columns)
    assert rest == 0
    assert pitch == staged_pitch(launch.threads // launch.columns * nbytes)
    assert launch.shared_bytes <= MAX_SHARED_BYTES == 48 * 1024


def test_columns_are_staged_an_odd_number_of_words_apart():
    for nbytes in range(1, 5000):
        words, rest = divmod(staged_pitch(nbytes), 4)
        assert rest == 0
        assert words % 2 == 1
        assert nbytes <= 4 * words < nbytes + 8


def test_words():
    assert [word_of(n) for n in (0, 1, 2, 3, 4, 6, 8, 12)] == [4, 1, 2, 1, 4, 2, 4, 4]
    assert word_of(256, 18, 4) == 2
    assert word_of(256, 16, 17) == 1


@with_type
def test_dequantizers(quant_type):
    blocks = dequantized_together(quant_type)
    shared = blocks * (quant_type.block_elements + 1) * 4 + blocks * quant_type.block_bytes
    assert shared <= MAX_SHARED_BYTES
    assert blocks % WARP == 0
    for n_blocks in (1, 2, blocks - 1, blocks, blocks + 1, 2 * blocks, 5 * blocks + 7):
        for src in range(9):
            launch = dequantize_launch(quant_type, n_blocks, src)
            assert launch.threads in (128, 256)
            assert launch.threads % blocks == 0  # the threads of a warp unpack the same part
            assert (launch.thread_blocks - 1) * blocks < n_blocks <= launch.thread_blocks * blocks
            assert launch.shared_bytes == 0
            for tile in range(launch.thread_blocks):
                at = src + tile * blocks * quant_type.block_bytes
                assert at % launch.word_bytes == 0
            assert launch.word_bytes == word_of(src)  # blocks make a multiple of four bytes


def test_checks_have_a_thread_for_each_number():
    for n in (1, 255, 256, 257, 10**6):
        launch = check_launch(n)
        assert (
            launch.threads * (launch.thread_blocks - 1) < n <= launch.threads * launch.thread_blocks
        )
        assert (launch.shared_bytes, launch.columns, launch.word_bytes) == (0, 0, 0)


@pytest.mark.parametrize("quant_type", [F32, Q4_0, Q4_K], ids=lambda t: t.name)
def test_more_than_one_launch_can_do_is_refused(quant_type):
    elements, _ = run(quant_type)

    def launch(n_tiles: int) -> Launch:
        n_out = n_tiles * 32
        width = quant_type.row_bytes(elements)
        return quantize_launch(quant_type, n_out, elements, along_in=False, dst=0, dst_stride=width)

    assert MAX_THREAD_BLOCKS == 2**31 - 1
    assert launch(MAX_THREAD_BLOCKS).thread_blocks == MAX_THREAD_BLOCKS
    with pytest.raises(LayoutError, match="2,147,483,648 thread blocks, more than CUDA launches"):
        launch(MAX_THREAD_BLOCKS + 1)
    with pytest.raises(LayoutError, match="more than CUDA launches at once"):
        check_launch(256 * MAX_THREAD_BLOCKS + 1)
    with pytest.raises(LayoutError, match="more than CUDA launches at once"):
        dequantize_launch(Q4_K, 32 * MAX_THREAD_BLOCKS + 1, 0)


def test_numbers_beyond_32_bits():
    """A matrix of 2^36 values is launched as it is."""
    launch = quantize_launch(
        Q4_0, 2**20, 2**16, along_in=True, dst=2**40, dst_stride=Q4_0.row_bytes(2**16)
    )
    assert launch.thread_blocks == 2**20 // 8 * (2**16 // 32 // 32)
    assert cuda_launch.word_of(2**40) == 4
