"""Entries of tensors that are computed or put together, against those of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support import Golden
from weightcast.converters.graph import (
    Tensor,
    TensorGraph,
    affine,
    concatenated,
    interleaved_halves,
    permuted,
    reshaped,
    sliced,
    stacked,
    take,
    transposed,
)
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.values import chunks, load, load_stored, select
from weightcast.converters.sources import open_graph
from weightcast.errors import LayoutError

FLOAT32 = np.dtype(np.float32)
QUERY, KEY, EXPERTS = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_down_exps.weight"
MADE: dict[str, Callable[[TensorGraph], Tensor]] = {
    "joined rows": lambda g: concatenated("a", (g[QUERY], g[KEY]), 0),
    "joined columns": lambda g: concatenated("a", (g[QUERY], affine(g[QUERY], 2.0)), 1),
    "scaled": lambda g: affine(g[QUERY], 0.5, 1.0),
    "interleaved": lambda g: interleaved_halves(g[QUERY], 2),
    "transposed": lambda g: transposed(g[QUERY]),
    "permuted experts": lambda g: permuted(g[EXPERTS], (1, 0, 2)),
    "stacked": lambda g: stacked("a", (g[QUERY], transposed(g[QUERY]))),
    "other shape": lambda g: reshaped(g[QUERY], (2, 2, g[QUERY].size // 4)),
    "a part": lambda g: sliced(take(g[EXPERTS], 1), 0, 3, 40, 2),
}
INDICES: tuple[Any, ...] = (
    0,
    -1,
    slice(1, 3),
    slice(None, None, -2),
    (0, slice(2, 7)),
    (..., slice(5, 50, 3)),
    (..., 4),
    (1, 1),
    slice(3, 3),
)


@pytest.fixture(scope="module")
def graph() -> TensorGraph:
    return open_graph(Golden("wide").path)


@pytest.mark.parametrize("name", MADE)
def test_entries_are_those_of_the_whole(name: str, graph: TensorGraph) -> None:
    tensor = MADE[name](graph)
    whole = load(tensor, FLOAT32)
    assert np.array_equal(whole, load_float32(tensor))
    for index in INDICES:
        assert np.array_equal(select(tensor, index).load(FLOAT32)[()], whole[index]), index
    for index, values in chunks(tensor, 5000):
        assert np.array_equal(values, whole[index])


def test_what_is_stored_is_told_only_of_single_arrays(graph: TensorGraph) -> None:
    for name in ("joined rows", "scaled", "interleaved"):
        with pytest.raises(LayoutError, match="is not stored as one matrix; use "):
            load_stored(MADE[name](graph))
    unlike = stacked("a", (graph[QUERY], graph["blk.0.attn_output.weight"]))
    with pytest.raises(LayoutError, match="its matrices are stored in different ways"):
        load_stored(unlike)
