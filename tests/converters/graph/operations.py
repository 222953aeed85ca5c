"""Random tensors of stored arrays and operations, each with the values that numpy gives it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightcast.converters.graph import (
    Tensor,
    affine,
    concatenated,
    dequantized,
    permuted,
    reshaped,
    scaled,
    sliced,
    stacked,
    stored,
    take,
    transposed,
)
from weightcast.formats.array import StoredArray

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Known:
    """A tensor and its values, float32; `is_int8` says that codes with scales are in it."""

    tensor: Tensor
    values: NDArray[np.float32]
    is_int8: bool = False


class Files:
    """A few files that arrays are appended to."""

    def __init__(self, folder: Path, rng: np.random.Generator, count: int = 2) -> None:
        self.paths = [folder / f"file-{n}" for n in range(count)]
        self._rng = rng
        for path in self.paths:
            path.write_bytes(b"")

    def array(self, values: NDArray[Any], dtype: str, *, order: tuple[int, ...]) -> StoredArray:
        """Store an array with its axes in some order, the slowest first."""
        path = self.paths[self._rng.integers(len(self.paths))]
        raw = np.ascontiguousarray(values.transpose(order))
        offset = path.stat().st_size + int(self._rng.integers(3)) * raw.itemsize
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(raw.tobytes())
        strides = None
        if order != tuple(range(values.ndim)):
            of_raw = [step // raw.itemsize for step in raw.strides]
            strides = tuple(of_raw[order.index(axis)] for axis in range(values.ndim))
        return StoredArray(path, offset, raw.nbytes, dtype, values.shape, strides)


def float_values(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of many sizes, zeros of both signs among them."""
    values = rng.standard_normal(shape) * np.exp2(rng.integers(-6, 6, shape))
    values[rng.random(shape) < 0.05] = 0
    return np.copysign(values, rng.standard_normal(shape)).astype(np.float32)


def floats(files: Files, rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Known:
    """Floats in some order of axes."""
    order = tuple(int(axis) for axis in rng.permutation(len(shape)))
    values = float_values(rng, shape).astype(DTYPES[dtype])
    array = files.array(values, dtype, order=order)
    return Known(stored("w", array), values.astype(np.float32))


def int8(
    files: Files, rng: np.random.Generator, shape: tuple[int, ...], groups: int, dtype: str
) -> Known:
    """Codes [..., in, out] with scales [..., groups, out]."""
    order = tuple(int(axis) for axis in rng.permutation(len(shape)))
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    of_scales = (*shape[:-2], groups, shape[-1])
    scales = np.abs(float_values(rng, of_scales) + np.float32(0.1)).astype(DTYPES[dtype])
    tensor = dequantized(
        "w",
        files.array(codes, "I8", order=order),
        files.array(scales, dtype, order=tuple(range(len(shape)))),
    )
    spread = np.repeat(scales.astype(np.float32), shape[-2] // groups, axis=-2)
    return Known(tensor, codes.astype(np.float32) * spread, is_int8=True)


def draw_source(
    draw: st.DrawFn, files: Files, rng: np.random.Generator, shape: tuple[int, ...]
) -> Known:
    """A stored tensor of a shape: float, or int8 with scales."""
    if len(shape) >= 2 and draw(st.booleans()):
        groups = draw(st.sampled_from([n for n in range(1, 9) if shape[-2] % n == 0]))
        return int8(files, rng, shape, groups, draw(st.sampled_from(sorted(DTYPES))))
    return floats(files, rng, shape, draw(st.sampled_from(sorted(DTYPES))))


def draw_shape(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Factors of a number, in some order, as a shape."""
    shape = []
    while size > 1 and len(shape) < 4:
        factor = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        shape.append(factor)
        size //= factor
    return (*shape, size) if size > 1 or not shape else tuple(shape)


def draw_operation(draw: st.DrawFn, files: Files, rng: np.random.Generator, x: Known) -> Known:
    """Do something to a tensor, and the same to its values."""
    shape, rank = x.values.shape, x.values.ndim
    names = ["permute", "reshape", "slice", "affine", "scale", "concat", "stack"]
    if rank > 1:
        names += ["transpose", "take"]
    name = draw(st.sampled_from(names))
    axis = draw(st.integers(0, rank - 1))
    tensor, values, is_int8 = x.tensor, x.values, x.is_int8
    if name == "transpose":
        tensor, values = transposed(tensor), values.swapaxes(-1, -2)
    elif name == "permute":
        order = draw(st.permutations(range(rank)))
        tensor, values = permuted(tensor, order), values.transpose(order)
    elif name == "reshape":
        target = draw_shape(draw, values.size)
        tensor, values = reshaped(tensor, target), values.reshape(target)
    elif name == "take":
        index = draw(st.integers(0, shape[axis] - 1))
        tensor, values = take(tensor, index, axis), values.take(index, axis)
    elif name == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        stop = draw(st.integers(start + 1, shape[axis]))
        step = draw(st.sampled_from([1, 1, 2, 3]))
        window = (slice(None),) * axis + (slice(start, stop, step),)
        tensor, values = sliced(tensor, axis, start, stop, step), values[window]
    elif name == "affine":
        scale, shift = draw(st.sampled_from([(1, 1), (0.3, 0), (8, 0), (-1.7, 0.1), (1, 0)]))
        tensor = affine(tensor, scale, shift)
        if scale != 1:
            values = values * np.float32(scale)
        if shift:
            values = values + np.float32(shift)
    elif name == "scale":
        factors = rng.choice([1, 0.3, -8, 0], draw(st.sampled_from([1, shape[0]])))
        factors = factors.astype(np.float32)
        tensor = scaled(tensor, factors.tolist())
        values = values * factors.reshape(-1, *[1] * (rank - 1))
    elif name == "concat":
        other = draw_source(
            draw, files, rng, (*shape[:axis], draw(st.integers(1, 5)), *shape[axis + 1 :])
        )
        parts = [x, other] if draw(st.booleans()) else [other, x]
        tensor = concatenated("c", tuple(part.tensor for part in parts), axis)
        values = np.concatenate([part.values for part in parts], axis)
        is_int8 |= other.is_int8
    elif rank < 4:
        other = draw_source(draw, files, rng, shape)
        tensor, values = stacked("s", (tensor, other.tensor)), np.stack([values, other.values])
        is_int8 |= other.is_int8
    return Known(tensor, values, is_int8)


def draw_known(
    draw: st.DrawFn, files: Files, rng: np.random.Generator, last: tuple[int, ...] = ()
) -> Known:
    """A tensor of up to six operations; `last` sizes of the source's last axis to choose from."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    if last:
        shape = (*shape[:2], draw(st.sampled_from(last)))
    known = draw_source(draw, files, rng, shape)
    for _ in range(draw(st.integers(0, 6))):
        known = draw_operation(draw, files, rng, known)
    assert known.tensor.shape == known.values.shape
    assert known.tensor.size == prod(known.values.shape)
    return known
