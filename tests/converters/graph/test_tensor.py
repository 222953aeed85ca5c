"""Builders of tensors: shapes, names, dtypes, descriptions, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weightcast.converters.graph import (
    Tensor,
    affine,
    concatenated,
    interleaved_halves,
    permuted,
    quantized,
    reshaped,
    sliced,
    split_pairs,
    stacked,
    stored,
    take,
    transposed,
)
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray


def tensor(*shape: int, name: str = "w", dtype: str = "BF16", offset: int = 0) -> Tensor:
    nbytes = 2 * int(np.prod(shape))
    return stored(name, StoredArray(Path("folder/file"), offset, nbytes, dtype, shape))


@pytest.mark.parametrize(
    ("made", "shape", "name"),
    [
        (transposed(tensor(2, 3, 4)), (2, 4, 3), "w"),
        (permuted(tensor(2, 3, 4), (-1, 0, 1)), (4, 2, 3), "w"),
        (reshaped(tensor(2, 3, 4), (6, 4)), (6, 4), "w"),
        (reshaped(tensor(1), ()), (), "w"),
        (take(tensor(2, 3, 4), 1), (3, 4), "w[1]"),
        (take(tensor(2, 3, 4), 2, axis=1), (2, 4), "w[:, 2]"),
        (take(tensor(2, 3, 4), 3, axis=-1), (2, 3), "w[:, :, 3]"),
        (sliced(tensor(2, 3, 4), 1, 1, 3), (2, 2, 4), "w[:, 1:3]"),
        (sliced(tensor(5, 4), 0, 0, 5, 2), (3, 4), "w[0:5:2]"),
        (stacked("s", (tensor(3, 4), tensor(3, 4))), (2, 3, 4), "s"),
        (concatenated("c", (tensor(3, 4), tensor(2, 4)), 0), (5, 4), "c"),
        (concatenated("c", (tensor(2, 3, 4), tensor(2, 3, 1)), -1), (2, 3, 5), "c"),
        (interleaved_halves(tensor(12, 5), 3), (12, 5), "w"),
        (split_pairs(tensor(12), 3), (12,), "w"),
        (affine(tensor(3, 4), 2), (3, 4), "w"),
    ],
)
def test_shapes_and_names(made: Tensor, shape: tuple[int, ...], name: str) -> None:
    assert (made.shape, made.name) == (shape, name)


def test_dtypes() -> None:
    one, other = tensor(3, 4, dtype="BF16"), tensor(3, 4, dtype="F32")
    both = stacked("s", (one, other, one))
    assert both.dtype == "BF16 + F32"
    assert (take(both, 0).dtype, take(both, 1).dtype) == ("BF16", "F32")
    assert take(both, 1, axis=1).dtype == "BF16 + F32"
    assert concatenated("c", (other, one), 0).dtype == "F32 + BF16"
    assert affine(one, 2).dtype == "F32"
    assert sliced(one, 0, 0, 1).dtype == permuted(one, (1, 0)).dtype == "BF16"


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda w: permuted(w, (0, 0)), r"w \[4, 6\]: axes \[0, 0\] are no order of its axes"),
        (lambda w: permuted(w, (0, 2)), r"w \[4, 6\] has no axis 2"),
        (lambda w: reshaped(w, (5, 5)), r"w \[4, 6\] cannot have the shape \[5, 5\]"),
        (lambda w: reshaped(w, (-4, -6)), r"w \[4, 6\] cannot have the shape \[-4, -6\]"),
        (lambda w: take(w, 4), r"w \[4, 6\] has no entry 4 along axis 0"),
        (lambda w: take(w, -1, 1), r"w \[4, 6\] has no entry -1 along axis 1"),
        (lambda w: sliced(w, 1, 2, 7), r"w \[4, 6\] has no entries 2:7:1 along axis 1"),
        (lambda w: sliced(w, 1, 2, 2), r"w \[4, 6\] has no entries 2:2:1 along axis 1"),
        (lambda w: sliced(w, 0, 0, 4, 0), r"w \[4, 6\] has no entries 0:4:0 along axis 0"),
        (lambda w: interleaved_halves(w, 4), r"w \[4, 6\]: 4 rows are not 4 heads of two halves"),
        (lambda w: split_pairs(w, 0), r"w \[4, 6\]: 4 rows are not 0 heads of two halves"),
        (
            lambda w: concatenated("c", (w, tensor(4, 5, name="v")), 0),
            r"v \[4, 5\] and w \[4, 6\] cannot be joined along axis 0",
        ),
        (
            lambda w: concatenated("c", (w, tensor(4, name="v")), 0),
            r"v \[4\] and w \[4, 6\] cannot be joined along axis 0",
        ),
        (lambda w: stacked("s", (w, tensor(4, 5))), r"w is \[4, 5\], but w is \[4, 6\]"),
        (lambda w: affine(w, 1e39), r"w: x \* 1e\+39 \+ 0.0 is beyond float32"),
        (lambda w: affine(w, 1, float("nan")), r"w: x \* 1 \+ nan is beyond float32"),
    ],
)
def test_what_does_not_fit_is_refused(build: Callable[[Tensor], Tensor], problem: str) -> None:
    with pytest.raises(LayoutError, match=f"^{problem}$"):
        build(tensor(4, 6))


def test_descriptions() -> None:
    """Sources first, then what the operation is told; what it leaves out is as usual."""
    w = tensor(4, 6)
    described = w.describe()
    assert described["origin"] == {"file": "file", "offset": 0, "nbytes": 48}
    expected = [
        (transposed(w), {"operation": "transpose"}),
        (permuted(w, (1, 0)), {"operation": "permute", "axes": [1, 0]}),
        (reshaped(w, (24,)), {"operation": "reshape"}),
        (take(w, 2), {"operation": "take", "index": 2}),
        (take(w, 2, 1), {"operation": "take", "index": 2, "axis": 1}),
        (sliced(w, 1, 0, 4), {"operation": "slice", "axis": 1, "start": 0, "stop": 4}),
        (
            sliced(w, 1, 0, 4, 3),
            {"operation": "slice", "axis": 1, "start": 0, "stop": 4, "step": 3},
        ),
        (stacked("s", (w,)), {"operation": "stack"}),
        (concatenated("c", (w,), 0), {"operation": "concat", "axis": 0}),
        (affine(w, 2, 1), {"operation": "affine", "scale": 2.0, "shift": 1.0}),
        (affine(w, 0.1), {"operation": "affine", "scale": float(np.float32(0.1)), "shift": 0.0}),
        (quantized("q", w, "Q8_0"), {"operation": "quantize"}),
    ]
    for made, origin in expected:
        found = made.describe()
        assert json.loads(json.dumps(found)) == found
        assert found["shape"] == list(made.shape)
        assert list(found["origin"]) == ["operation", "sources", *list(origin)[1:]]
        assert found["origin"] == {**origin, "sources": [described]}
