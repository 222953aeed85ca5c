"""GGUF's blocks of MXFP4 and NVFP4 as codes and scales apart, and back, unchanged.

Blocks (kernels/blocks/layouts.h) have their scales first, then the nibbles of each run of values
that share one: first all low nibbles, then all high ones.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.types import MXFP4, NVFP4, QuantType

# Values that share a scale.
SCALED_ELEMENTS: Final = {MXFP4: 32, NVFP4: 16}


def split_blocks(
    blocks: NDArray[np.uint8], quant_type: QuantType
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give the e2m1 codes [rows, in], one a byte, and the scales [rows, n] of [rows, row bytes]."""
    rows, size = len(blocks), SCALED_ELEMENTS[quant_type]
    single = blocks.reshape(rows, -1, quant_type.block_bytes)
    n_scales = quant_type.block_elements // size
    runs = single[..., n_scales:].reshape(rows, -1, size // 2)
    codes = np.concatenate((runs & 15, runs >> 4), axis=2).reshape(rows, -1)
    return codes, single[..., :n_scales].reshape(rows, -1)


def join_blocks(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], quant_type: QuantType
) -> NDArray[np.uint8]:
    """Undo `split_blocks`: uint8 [rows, row bytes]."""
    (rows, n_in), size = codes.shape, SCALED_ELEMENTS[quant_type]
    halves = codes.reshape(rows, -1, 2, size // 2)
    nibbles = halves[:, :, 0] | halves[:, :, 1] << 4
    n_blocks = n_in // quant_type.block_elements
    joined = (scales.reshape(rows, n_blocks, -1), nibbles.reshape(rows, n_blocks, -1))
    return np.concatenate(joined, axis=2).reshape(rows, -1)
