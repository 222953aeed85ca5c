"""Layouts of released checkpoints: which are one window, and what is read of those that are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.converters.graph.operations import Files, float_values
from tests.converters.graph.slabs import bits, check_slabs
from weightcast.converters.graph import (
    Assembly,
    StoredMatrix,
    Tensor,
    affine,
    check_readable,
    concatenated,
    dequantized,
    first_array,
    interleaved_halves,
    matrices,
    permuted,
    read,
    reshaped,
    sliced,
    split_pairs,
    stacked,
    stored,
    stored_as,
    stored_bytes,
    take,
    transposed,
)
from weightcast.converters.graph.read import forget_rows, load_float32, read_slab
from weightcast.converters.graph.tensor import Rows
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray

# Heads, values of a head, embedding, layers.
H, D, E, L = 6, 16, 12, 5

Change = Callable[[Tensor], Tensor]
Numpy = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, np.random.default_rng(1), count=1)


def row_major(files: Files, *shape: int) -> tuple[Tensor, NDArray[np.float32]]:
    values = float_values(np.random.default_rng(2), shape)
    array = files.array(values, "F32", order=tuple(range(len(shape))))
    return stored("w", array), values


def only(tensor: Tensor) -> StoredMatrix:
    (matrix,) = matrices(tensor)
    return matrix


ONE_WINDOW: list[tuple[str, tuple[int, ...], Change, Numpy]] = [
    ("matrix", (D, E), lambda w: w, lambda x: x),
    ("transposed", (E, D), transposed, lambda x: x.T),
    (
        "Flax query [emb, heads, d]",
        (E, H, D),
        lambda w: transposed(reshaped(w, (E, H * D))),
        lambda x: x.reshape(E, H * D).T,
    ),
    (
        "Flax out [heads, d, emb]",
        (H, D, E),
        lambda w: reshaped(permuted(w, (2, 0, 1)), (E, H * D)),
        lambda x: x.reshape(H * D, E).T,
    ),
    (
        "MaxText, layers in the middle",
        (E, L, D),
        lambda w: transposed(take(w, 2, axis=1)),
        lambda x: x[:, 2].T,
    ),
    ("Gemma's gate", (2, D, E), lambda w: take(w, 1), lambda x: x[1]),
    ("vocabulary without padding", (D, E), lambda w: sliced(w, 0, 0, 5), lambda x: x[:5]),
    ("fused gate and up", (D, E), lambda w: sliced(w, 1, 6, E), lambda x: x[:, 6:]),
    ("fused, one by one", (D, E), lambda w: sliced(w, 0, 1, D, 2), lambda x: x[1::2]),
    (
        "split and merged again",
        (H * D, E),
        lambda w: split_pairs(interleaved_halves(w, H), H),
        lambda x: x,
    ),
    ("norm", (E,), lambda w: w, lambda x: x[None]),
    ("bias of heads", (H, D), lambda w: reshaped(w, (H * D,)), lambda x: x.reshape(1, -1)),
]


@pytest.mark.parametrize(
    ("name", "shape", "change", "expected"), ONE_WINDOW, ids=[case[0] for case in ONE_WINDOW]
)
def test_one_window(
    name: str, shape: tuple[int, ...], change: Change, expected: Numpy, files: Files
) -> None:
    tensor, values = row_major(files, *shape)
    matrix = only(change(tensor))
    assert matrix.single is matrix, name
    check_slabs(matrix, expected(values), 3, 2)


IN_PARTS: list[tuple[str, tuple[int, ...], int, Change, Numpy]] = [
    (
        "Gemma's query [heads, emb, d]",
        (H, E, D),
        H,
        lambda w: reshaped(permuted(w, (0, 2, 1)), (H * D, E)),
        lambda x: x.swapaxes(1, 2).reshape(H * D, E),
    ),
    (
        "halves to neighbours",
        (H * D, E),
        2 * H,
        lambda w: interleaved_halves(w, H),
        lambda x: x.reshape(H, 2, D // 2, E).swapaxes(1, 2).reshape(H * D, E),
    ),
    (
        "neighbours to halves, of [emb, heads, d]",
        (E, H, D),
        2 * H,
        lambda w: split_pairs(transposed(reshaped(w, (E, H * D))), H),
        lambda x: x.reshape(E, H, D // 2, 2).transpose(1, 3, 2, 0).reshape(H * D, E),
    ),
    (
        "neighbours along a row",
        (H, D),
        2 * H,
        lambda w: split_pairs(reshaped(w, (H * D,)), H),
        lambda x: x.reshape(H, D // 2, 2).swapaxes(1, 2).reshape(1, -1),
    ),
    (
        "interleaved columns of [in, out]",
        (E, 2 * D),
        1,
        lambda w: sliced(transposed(w), 0, 0, 2 * D, 2),
        lambda x: x.T[::2],
    ),
]


@pytest.mark.parametrize(
    ("name", "shape", "count", "change", "expected"), IN_PARTS, ids=[case[0] for case in IN_PARTS]
)
def test_parts_of_one_array_are_read_once(
    name: str, shape: tuple[int, ...], count: int, change: Change, expected: Numpy, files: Files
) -> None:
    tensor, values = row_major(files, *shape)
    matrix = only(change(tensor))
    assert isinstance(matrix, Assembly)
    assert len(matrix.parts) == count
    assert matrix.dtype == "F32"
    n_out = matrix.shape[0]
    (region,) = matrix.regions(0, n_out)
    assert region.runs is not None
    assert region.runs.count == 1
    assert values.nbytes - 4 <= matrix.bytes_to_read(0, n_out) <= values.nbytes
    for rows in (1, 5, D, n_out):
        check_slabs(matrix, expected(values), rows, 3)


def test_what_lies_between_is_not_read(tmp_path: Path) -> None:
    """A layer of many, a part of long rows: only what is asked for, run by run."""
    files = Files(tmp_path, np.random.default_rng(1), count=1)
    tensor, values = row_major(files, 6, 3, 2000)  # 8,000 bytes apart
    layer = only(transposed(take(tensor, 1, axis=1)))
    assert layer.single is layer
    assert layer.bytes_to_read(0, 2000) == layer.slab_bytes(0, 2000) == 6 * 8000
    check_slabs(layer, values[:, 1].T, 2000, 700)
    check_slabs(layer, values[:, 1].T, 300, 300)
    long, of_long = row_major(files, 7, 4000)
    half = only(sliced(long, 1, 100, 600))
    assert half.bytes_to_read(0, 7) == 7 * 2000
    assert half.rows_per_slab(3 * 2000) == 3
    check_slabs(half, of_long[:, 100:600], 3, 1)
    # A few bytes are read with the rest, unless they are more than the rest.
    assert only(sliced(long, 1, 0, 3700)).bytes_to_read(0, 7) == (6 * 4000 + 3700) * 4
    narrow, _ = row_major(files, 7, 40)
    assert only(sliced(narrow, 1, 0, 8)).bytes_to_read(0, 7) == 7 * 8 * 4


def test_ranks(tmp_path: Path) -> None:
    """Eight files with parts of each expert: rows of w1, columns of w2; read front to back."""
    rng = np.random.default_rng(4)
    for axis in (1, 2):
        values = float_values(rng, (2, 32, 64))
        parts = np.split(values, 8, axis)
        ranks = []
        for rank, part in enumerate(parts):
            folder = tmp_path / f"{axis}-{rank}"
            folder.mkdir()
            array = Files(folder, rng, count=1).array(part, "F32", order=(0, 1, 2))
            ranks.append(stored(f"rank {rank}", array))
        tensor = concatenated("experts", tuple(ranks), axis)
        assert tensor.shape == values.shape
        assert stored_as(tensor) == "F32"
        assert stored_bytes(tensor) == values.nbytes
        assert stored_bytes(take(tensor, 1)) == values.nbytes // 2
        for expert, matrix in enumerate(matrices(tensor)):
            assert [view.path for view in matrix.views] == [first_array(r).path for r in ranks]
            check_slabs(matrix, values[expert], 32, 32)
            check_slabs(matrix, values[expert], 7, 5)
            assert matrix.rows_per_slab(32 * 64 * 4) == 32
            # Slabs end where ranks do, if these are rows.
            assert matrix.rows_per_slab(14 * 64 * 4) == (12 if axis == 1 else 14)


def int8_parts(
    files: Files, axis: int, sizes: list[tuple[int, int]], other: int
) -> tuple[Tensor, NDArray[np.float32]]:
    """Parts [in, out] along an axis, each of a size and with a number of groups."""
    rng = np.random.default_rng(5)
    parts, values = [], []
    for size, groups in sizes:
        shape = (size, other) if axis == 0 else (other, size)
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        scales = np.abs(float_values(rng, (groups, shape[1]))) + np.float32(0.1)
        parts.append(
            dequantized(
                "w",
                files.array(codes, "I8", order=(0, 1)),
                files.array(scales, "F32", order=(0, 1)),
            )
        )
        values.append(codes * np.repeat(scales, shape[0] // groups, axis=0))
    tensor = transposed(concatenated("c", tuple(parts), axis))
    return tensor, np.concatenate(values, axis).T


@pytest.mark.parametrize(
    ("axis", "sizes", "group_size"),
    [
        (1, [(8, 4), (16, 4)], 6),  # along out
        (1, [(8, 4), (16, 3)], None),
        (0, [(8, 2), (16, 4)], 4),  # along in
        (0, [(8, 2), (16, 2)], None),
        (0, [(6, 1), (12, 2), (6, 1)], 6),
    ],
)
def test_codes_stay_codes_where_groups_are_alike(
    axis: int, sizes: list[tuple[int, int]], group_size: int | None, files: Files
) -> None:
    tensor, values = int8_parts(files, axis, sizes, 24)
    matrix = only(tensor)
    assert (matrix.dtype, matrix.group_size) == ("I8" if group_size else "F32", group_size)
    for rows in (1, 7, matrix.shape[0]):
        check_slabs(matrix, values, rows, 4)
    assert only(affine(tensor, 2)).dtype == "F32"
    moved = only(sliced(tensor, 1, 1, tensor.shape[1]))
    assert (moved.dtype, moved.group_size) == ("F32", None)
    check_slabs(moved, values[:, 1:], 5, 3)


def test_a_part_of_a_group_is_a_window(files: Files) -> None:
    tensor, values = int8_parts(files, 1, [(8, 4)], 24)
    matrix = only(sliced(tensor, 1, 13, 17))
    assert matrix.single is matrix
    assert matrix.group_size == 4
    check_slabs(matrix, values[:, 13:17], 3, 2)


def test_affine_rounds_twice_and_powers_of_two_are_exact(files: Files) -> None:
    x = np.array([[1 + 2.0**-23, -0.0, 3e38, 1e-45, 7.0]], np.float32)
    tensor = stored("w", files.array(x, "F32", order=(0, 1)))
    scale, shift = np.float32(1 + 2.0**-12), np.float32(-1)
    made = load_float32(affine(sliced(tensor, 1, 0, 1), float(scale), float(shift)))
    product = np.float32(np.float64(x[0, 0]) * np.float64(scale))  # rounded before the sum
    assert made[0, 0] == product + shift
    assert made[0, 0] != np.float32(np.float64(x[0, 0]) * np.float64(scale) + np.float64(shift))
    same = affine(affine(sliced(tensor, 1, 0, 2), 8), 0.125)
    np.testing.assert_array_equal(bits(load_float32(same)), bits(x[:, :2]))
    # Subnormal products lose bits, large ones are infinite, which is refused by name.
    assert load_float32(affine(sliced(tensor, 1, 3, 4), 0.5))[0, 0] == 0
    with pytest.raises(LayoutError, match=r"w\[:, 2:3\]: NaN or infinity at \[0, 0\]"):
        load_float32(affine(sliced(tensor, 1, 2, 3), 2))


def test_sources_that_no_kernel_reads(files: Files) -> None:
    array = files.array(np.arange(12, dtype=np.int32).reshape(3, 4), "I32", order=(0, 1))
    whole = stored("w", array)
    for tensor in (
        whole,
        affine(whole, 2),
        concatenated("c", (whole, row_major(files, 2, 4)[0]), 0),
    ):
        assert not only(tensor).is_readable
        with pytest.raises(LayoutError, match="is stored as I32, which cannot be converted"):
            check_readable(tensor)
    check_readable(row_major(files, 2, 4)[0])


def test_rows_of_another_length(files: Files) -> None:
    """What is one matrix of longer rows stays what it is under other operations."""
    tensor, values = row_major(files, 2, 3, 4)
    rows = Tensor("r", tensor.shape, "F32", Rows(tensor, 12))
    assert only(rows).shape == (2, 12)
    np.testing.assert_array_equal(load_float32(transposed(rows)), values.swapaxes(1, 2))


def test_pieces_without_end_are_refused(files: Files) -> None:
    """A shape in a file could ask for any number of pieces: it is told by name, and soon."""
    array = StoredArray(files.paths[0], 0, 1 << 40, "F32", (1 << 19, 1 << 19))
    tensor = reshaped(transposed(stored("w", array)), (1, 1 << 38))
    start = time.process_time()
    with pytest.raises(LayoutError, match=r"^w lies in more than 131072 pieces$"):
        matrices(tensor)
    slices = sliced(tensor, 1, 0, (1 << 38) - 1, 3)
    with pytest.raises(LayoutError, match=r"^w.* lies in more than 131072 pieces$"):
        matrices(slices)
    assert time.process_time() - start < 20


def test_pages_are_forgotten_once_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    files = Files(tmp_path, rng, count=1)
    forgotten: set[int] = set()

    def forget_read(path: Path, start: int, length: int) -> None:
        forgotten.update(range(start, start + length))

    monkeypatch.setattr(read, "forget_read", forget_read)
    one, _ = row_major(files, 24, E)
    other = stored("v", files.array(float_values(rng, (E, 16)), "F32", order=(0, 1)))
    joined = concatenated("c", (interleaved_halves(one, 3), transposed(other)), 0)
    for tensor in (joined, transposed(stacked("s", (one,)))):
        forgotten.clear()
        matrix, unread = only(tensor), set()
        for view in matrix.views:
            array = view.array
            unread.update(range(array.offset, array.offset + array.nbytes))
        for out0 in range(0, matrix.shape[0], 5):
            out1 = min(out0 + 5, matrix.shape[0])
            buffer = memoryview(bytearray(matrix.slab_bytes(out0, out1)))
            read_slab(matrix, out0, out1, buffer)
            forget_rows(matrix, out0, out1)
        assert unread <= forgotten
