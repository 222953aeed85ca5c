"""Launch arithmetic of the device kernels: how many threads make what, in plain numbers.

A tile is what one thread block makes: some neighbouring columns, some blocks deep; threads side by
side make columns side by side (kernels/device/tile.h). Nothing here touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Final

from weightcast.errors import LayoutError
from weightcast.quant.types import QuantType

# Threads that read one column each: a warp, whose reads of int8 along `out` fill whole sectors.
COLUMNS: Final = 32
# With blocks that lie side by side in memory, threads side by side are better off with these.
COLUMNS_OF_ROWS: Final = 8
# Plain floats are made in runs of as many rows.
FLOAT_ROWS: Final = 32
# What CUDA allows in one launch, and what a thread block gets without asking for more.
MAX_THREAD_BLOCKS: Final = 2**31 - 1
MAX_SHARED_BYTES: Final = 48 << 10
# What one thread sums, and threads of a thread block (metrics/errors.h, device/errors.h).
CHUNK: Final = 2048
ERROR_THREADS: Final = 128
# Threads of a thread block that makes groups, one each (device/groups.h).
GROUP_THREADS: Final = 128
# Threads of the kernels that look at one number each (device/checks.h).
CHECK_THREADS: Final = 256


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch: thread blocks, threads of each, bytes of shared memory of each.

    `columns` of a tile and `word_bytes` of its copies are arguments of the quantizers.
    """

    thread_blocks: int
    threads: int
    shared_bytes: int = 0
    columns: int = 0
    word_bytes: int = 0


def _ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def _checked(launch: Launch) -> Launch:
    if launch.thread_blocks > MAX_THREAD_BLOCKS:
        raise LayoutError(
            f"{launch.thread_blocks:,} thread blocks, more than CUDA launches at once: quantize "
            "fewer rows at a time"
        )
    return launch


def word_of(*numbers: int) -> int:
    """The largest of 4, 2 and 1 that divides all of some addresses and byte counts."""
    return gcd(4, *numbers)


def staged_pitch(nbytes: int) -> int:
    """Bytes from one column of a tile to the next: an odd number of words (device/tile.h)."""
    return 4 * (_ceil_div(nbytes, 4) | 1)


def quantize_launch(
    quant_type: QuantType, n_out: int, n_in: int, *, along_in: bool, dst: int, dst_stride: int
) -> Launch:
    """Launch a quantizer of [n_out, n_in], which must be at least one block.

    `along_in`: the source is contiguous along `in`. `dst` is the address of the first row, rows are
    `dst_stride` bytes apart.
    """
    elements, nbytes = quant_type.block_elements, quant_type.block_bytes
    if elements == 1:
        elements, nbytes = FLOAT_ROWS, FLOAT_ROWS * nbytes
    threads = 256 if elements <= 128 else 128
    columns = COLUMNS_OF_ROWS if along_in else COLUMNS
    deep = threads // columns
    tiles = _ceil_div(n_out, columns) * _ceil_div(_ceil_div(n_in, elements), deep)
    row_bytes = quant_type.row_bytes(n_in)
    launch = Launch(
        thread_blocks=tiles,
        threads=threads,
        shared_bytes=columns * staged_pitch(deep * nbytes),
        columns=columns,
        word_bytes=word_of(dst, dst_stride, row_bytes, deep * nbytes),
    )
    assert launch.shared_bytes <= MAX_SHARED_BYTES
    return _checked(launch)


def dequantize_launch(quant_type: QuantType, n_blocks: int, src: int) -> Launch:
    """Launch a dequantizer of `n_blocks` blocks at address `src`."""
    blocks = dequantized_together(quant_type)
    word = word_of(src, blocks * quant_type.block_bytes)
    return _checked(Launch(_ceil_div(n_blocks, blocks), max(128, blocks), word_bytes=word))


def dequantized_together(quant_type: QuantType) -> int:
    """Blocks that one thread block unpacks: as many as leave room for their floats."""
    return min(256, max(32, 8192 // quant_type.block_elements))


def chunks_of(n_in: int) -> int:
    """Chunks of a row that are summed by themselves."""
    return _ceil_div(n_in, CHUNK)


def error_launch(n_sums: int) -> Launch:
    """Launch a kernel that adds to one row's sums a thread."""
    return _checked(Launch(_ceil_div(n_sums, ERROR_THREADS), ERROR_THREADS, columns=1))


def group_launch(n_groups: int) -> Launch:
    """Launch a kernel that makes one group a thread."""
    return _checked(Launch(_ceil_div(n_groups, GROUP_THREADS), GROUP_THREADS, columns=1))


def check_launch(n_numbers: int) -> Launch:
    """Launch a kernel that looks at one number a thread."""
    return _checked(Launch(_ceil_div(n_numbers, CHECK_THREADS), CHECK_THREADS))
