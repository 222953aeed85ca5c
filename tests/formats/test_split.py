"""Where files are cut into parts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.formats.split import PartLimits, split_name


@pytest.mark.parametrize(
    ("limits", "sizes", "parts"),
    [
        (PartLimits(), [5, 6], [2]),
        (PartLimits(), [], [0]),
        (PartLimits(10), [], [0]),
        (PartLimits(10), [4, 6, 1, 9], [2, 2]),
        (PartLimits(10), [4, 7, 3, 1], [1, 2, 1]),
        (PartLimits(10), [40, 1, 30, 2], [1, 1, 1, 1]),
        (PartLimits(tensors=2), [1, 1, 1, 1, 1], [2, 2, 1]),
        (PartLimits(10, 2), [1, 1, 1, 9, 5], [2, 2, 1]),
        (PartLimits(tensors=2, first_is_empty=True), [1, 1, 1], [0, 2, 1]),
        (PartLimits(first_is_empty=True), [1], [0, 1]),
    ],
)
def test_parts(limits: PartLimits, sizes: list[int], parts: list[int]) -> None:
    assert [len(part) for part in limits.cut(sizes)] == parts


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(0, 120), st.integers(0, 7))
def test_every_tensor_is_in_one_part(sizes: list[int], nbytes: int, tensors: int) -> None:
    """In order; a part is within its limits, or has one tensor; and the next would not fit."""
    parts = PartLimits(nbytes, tensors).cut(sizes)
    assert [number for part in parts for number in part] == list(range(len(sizes)))
    for part in parts:
        assert len(part) <= (tensors or len(sizes))
        assert len(part) <= 1 or sum(sizes[n] for n in part) <= (nbytes or 3000)
    for part, following in pairwise(parts):
        whole = sum(sizes[n] for n in part) + sizes[following.start]
        assert len(part) == tensors or 0 < nbytes < whole


def test_names() -> None:
    assert split_name("m", 0, 12) == "m-00001-of-00012.gguf"
