"""Matrices turned around are what numpy makes of them, at any shape and strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weightcast.quant.cpu import transpose

SHAPES = [
    (1, 1),
    (64, 64),
    (128, 192),
    (63, 65),
    (70, 16),
    (16, 70),
    (130, 300),
    (1, 129),
    (129, 1),
]


def drawn(shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int32, np.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_item_arrives(shape: tuple[int, int], dtype: Any) -> None:
    source = drawn(shape, dtype)
    room = drawn((shape[1] + 2, shape[0] + 5), dtype)
    before = room.copy()
    transpose.copy_turned(room[1:-1, 2:-3], source.T)
    before[1:-1, 2:-3] = source.T
    np.testing.assert_array_equal(room, before)  # and nothing around them changed


def test_sources_that_are_not_turned() -> None:
    source = drawn((40, 96), np.int32)
    for view in (source, source[::2, ::3], source.T[::-1], source.T[:, ::-1], source[:0].T):
        made = np.zeros(view.shape, np.int32)
        transpose.copy_turned(made, view)
        np.testing.assert_array_equal(made, view)
