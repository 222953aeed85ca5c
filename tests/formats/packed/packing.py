"""What the tests of packed layouts share: matrices in groups, parts put together from pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp8 import FP8_LAYOUT
from weightcast.formats.packed.layout import NUMPY_DTYPES, MatrixShape, Part, Segment
from weightcast.quant.fp8 import quantize_fp8
from weightcast.quant.groups import Groups
from weightcast.quant.types import Fp8Type, GroupType

# Layouts that integers are packed in.
OF_INTEGERS = [name for name, layout in LAYOUTS.items() if layout.holds(GroupType(4, 32))]


def random_groups(group_type: GroupType, n_out: int, n_in: int, seed: int = 0) -> Groups:
    """Codes over their whole range, scales of either sign, zero points over their whole range."""
    rng = np.random.default_rng(seed)
    n_groups = n_in // group_type.group_size if group_type.group_size else 1
    codes = rng.integers(0, 1 << group_type.bits, (n_out, n_in), np.uint8)
    scales = (rng.standard_normal((n_out, n_groups)) * 0.01).astype(
        NUMPY_DTYPES[group_type.scale_dtype]
    )
    zero_points = rng.integers(0, 1 << group_type.bits, (n_out, n_groups), np.uint8)
    return Groups(codes, scales, None if group_type.symmetric else zero_points)


def values(groups: Groups, group_type: GroupType) -> NDArray[np.float32]:
    """(q - zero_point) * scale in float32."""
    repeats = groups.codes.shape[1] // groups.scales.shape[1]
    zero_points = np.full(groups.scales.shape, 1 << group_type.bits - 1)
    if groups.zero_points is not None:
        zero_points = groups.zero_points.astype(np.int64)
    integers = groups.codes - np.repeat(zero_points, repeats, axis=1)
    return integers.astype(np.float32) * np.repeat(groups.scales, repeats, axis=1).astype(
        np.float32
    )


def rows(groups: Groups, start: int, stop: int) -> Groups:
    zero_points = groups.zero_points
    return Groups(
        groups.codes[start:stop],
        groups.scales[start:stop],
        None if zero_points is None else zero_points[start:stop],
    )


def place(buffers: Mapping[str, bytearray], written: dict[str, NDArray[Any]], segment: Segment):
    """Write a segment as into a file; no byte may be written twice."""
    assert segment.data.dtype == np.uint8
    assert segment.data.ndim == 2
    for i, run in enumerate(segment.data):
        start = segment.offset + i * segment.stride
        assert start >= 0
        assert start + len(run) <= len(buffers[segment.suffix])
        buffers[segment.suffix][start : start + len(run)] = run.tobytes()
        written[segment.suffix][start : start + len(run)] += 1


def assemble(
    parts: Iterable[Part], segments: Iterable[Segment], constants: Mapping[str, bytes]
) -> dict[str, NDArray[Any]]:
    """Put parts together; every byte must come once, from a segment or a constant."""
    parts = tuple(parts)
    buffers = {part.suffix: bytearray(part.nbytes) for part in parts}
    written = {part.suffix: np.zeros(part.nbytes, np.uint8) for part in parts}
    for suffix, raw in constants.items():
        assert len(raw) == len(buffers[suffix])
        place(buffers, written, Segment(suffix, np.frombuffer(raw, np.uint8)[None], 0, 0))
    for segment in segments:
        place(buffers, written, segment)
    for suffix, times in written.items():
        assert np.all(times == 1), suffix
    return {
        part.suffix: np.frombuffer(bytes(buffers[part.suffix]), NUMPY_DTYPES[part.dtype]).reshape(
            part.shape
        )
        for part in parts
    }


def pack_whole(layout: Any, groups: Groups, group_type: GroupType) -> dict[str, NDArray[Any]]:
    shape = MatrixShape(group_type, *groups.codes.shape)
    return pack_rows(layout.matrix_layout(group_type), groups, shape)


def pack_rows(stored: Any, rows: Any, shape: MatrixShape[Any]) -> dict[str, NDArray[Any]]:
    """All parts of a matrix, whose rows are those of the layout's coding."""
    return assemble(stored.parts(shape), stored.pack(rows, shape, 0), stored.constants(shape))


def fp8_by(block: int) -> Fp8Type:
    """A scale for each square of a size, or a row where that is 0."""
    return Fp8Type(block, block) if block else Fp8Type()


def pack_fp8(weights: NDArray[np.float32], fp8_type: Fp8Type) -> dict[str, NDArray[Any]]:
    shape = MatrixShape(fp8_type, *weights.shape)
    return pack_rows(FP8_LAYOUT, quantize_fp8(weights, fp8_type), shape)


@st.composite
def cuts(draw: st.DrawFn, n_out: int, multiple: int) -> list[tuple[int, int]]:
    """Row ranges that cover n_out rows, in any order, cut at multiples."""
    inner = draw(st.sets(st.integers(0, (n_out - 1) // multiple), max_size=4))
    edges = sorted({0, n_out, *(multiple * n for n in inner)})
    return draw(st.permutations(list(pairwise(edges))))
