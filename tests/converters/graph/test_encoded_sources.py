"""Operations on blocks of GGUF files and on packed matrices, which are read in whole rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import weightcast
from tests.converters.graph.operations import Files, Known, draw_operation
from tests.converters.graph.slabs import bits, check_slabs
from tests.support import Golden
from weightcast.converters.graph import (
    concatenated,
    is_stored_as,
    matrices,
    permuted,
    reshaped,
    sliced,
    stacked,
    take,
    transposed,
)
from weightcast.converters.graph.read import load_float32, read_slab
from weightcast.converters.sources import open_graph
from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import Blocks

WIDE = Golden("wide")
QUERY = "transformer/decoder_layer_0/multi_head_attention/query/w"
EXPERTS = "transformer/decoder_layer_1/moe/linear/w"
NAMES = [
    "m-Q8_0.gguf",
    "m-Q4_K.gguf",
    "m-int8-g32",
    "m-int8-g32-gptq",
    "m-int4-g32-awq",
    "m-int4-g64-weightcast",
    "m-fp8",
    "m-fp8-block",
    "m-mxfp4",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    weightcast.convert(WIDE.path, *(folder / name for name in NAMES), no_tokenizer=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_operations(name: str, made: Path, tmp_path: Path) -> None:
    tensor = open_graph(made / name)[QUERY]
    values = load_float32(tensor)

    # Without shrinking, which takes minutes for rows of this length.
    @settings(
        max_examples=10,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        files = Files(tmp_path, rng)
        first = data.draw(st.integers(0, tensor.shape[0] - 1))
        last = data.draw(st.integers(first + 1, min(first + 40, tensor.shape[0])))
        known = Known(sliced(tensor, 0, first, last), values[first:last])
        for _ in range(data.draw(st.integers(1, 4))):
            more = draw_operation(data.draw, files, rng, known)
            try:
                matrices(more.tensor)
            except LayoutError as problem:
                if "cannot be transposed" in str(problem):
                    continue
                raise
            known = more
        views = matrices(known.tensor)
        planes = known.values.reshape(len(views), *views[0].shape)
        number = data.draw(st.integers(0, len(views) - 1))
        rows = data.draw(st.integers(-(-planes.shape[1] // 4), planes.shape[1]))
        step = data.draw(st.integers(-(-rows // 4), rows))
        check_slabs(views[number], planes[number], rows, step)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_whole_is_one_window(name: str, made: Path) -> None:
    graph = open_graph(made / name)
    tensor = stacked("s", (graph[QUERY], graph[QUERY]))
    views = [*matrices(take(tensor, 1)), *matrices(graph[EXPERTS])]
    assert all(view.single is view for view in views)


def test_rows_of_blocks_stay_blocks(made: Path) -> None:
    """Cut, put together and in another order, they can be copied as they are."""
    tensor = open_graph(made / "m-Q4_K.gguf")[QUERY]
    n_out, n_in = tensor.shape
    (view,) = matrices(sliced(tensor, 0, 3, 9))
    assert view.single is view
    joined = concatenated("c", (sliced(tensor, 0, 5, n_out), sliced(tensor, 0, 0, 5)), 0)
    pairs = permuted(reshaped(tensor, (n_out // 2, 2, n_in)), (1, 0, 2))
    for made_of, order in (
        (joined, [*range(5, n_out), *range(5)]),
        (reshaped(pairs, (n_out, n_in)), [*range(0, n_out, 2), *range(1, n_out, 2)]),
        (sliced(tensor, 0, 1, n_out, 3), [*range(1, n_out, 3)]),
    ):
        assert is_stored_as(made_of, "Q4_K")
        (assembly,) = matrices(made_of)
        assert assembly.single is None
        buffer = memoryview(bytearray(assembly.slab_bytes(0, len(order))))
        slab = read_slab(assembly, 0, len(order), buffer)
        (whole,) = matrices(tensor)
        source = read_slab(whole, 0, n_out, memoryview(bytearray(whole.slab_bytes(0, n_out))))
        rows = source.stored_rows(0, n_out).reshape(n_out, -1)[order]
        matrix = slab.matrix(2, len(order))
        assert isinstance(matrix, Blocks)
        np.testing.assert_array_equal(matrix.data, rows[2:].reshape(-1))
        np.testing.assert_array_equal(slab.stored_rows(0, 4), rows[:4].reshape(-1))


@pytest.mark.parametrize("name", NAMES)
def test_transposing_is_refused(name: str, made: Path) -> None:
    graph = open_graph(made / name)
    for tensor in (transposed(graph[QUERY]), permuted(graph[EXPERTS], (0, 2, 1))):
        with pytest.raises(LayoutError, match="cannot be transposed"):
            matrices(tensor)
    again = transposed(transposed(graph[QUERY]))
    np.testing.assert_array_equal(bits(load_float32(again)), bits(load_float32(graph[QUERY])))
