"""Runs side by side: the same numbers however they are run, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.evaluation.dense_models import VOCABULARY, write_dense
from tests.evaluation.running import EXAMPLE, draw_tokens, machine, network_of
from weightcast.converters.graph import TensorGraph
from weightcast.converters.sources import open_graph
from weightcast.errors import LayoutError
from weightcast.evaluation.arithmetic import Arithmetic, NumpyArithmetic, arithmetic
from weightcast.evaluation.importance import Importance
from weightcast.evaluation.layers import Comparison, Run, compare_states
from weightcast.evaluation.networks import run_layer
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.scoring import score

OPS = {"numpy": NumpyArithmetic(), "torch": arithmetic()}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[TensorGraph]:
    """The example, and its Q4_K_M."""
    path = tmp_path_factory.mktemp("grok") / "grok-Q4_K_M.gguf"
    weightcast.convert(EXAMPLE, path, types="Q4_K_M")
    return [open_graph(EXAMPLE), open_graph(path)]


def results(
    graphs: list[TensorGraph],
    ops: Arithmetic,
    jobs: int = 1,
    memory: int | None = None,
    scored: int | None = None,
) -> dict[str, object]:
    """Everything that a run gives, with 600 tokens: more than a block."""
    tokens = draw_tokens(6, 100, graphs[0].spec.vocab_size)
    importance, comparison = Importance(), Comparison(isolated=True)
    with machine(ops, jobs, memory) as run_by:
        networks = [network_of(graph, run_by) for graph in graphs]
        states = Run(networks, tokens, importance, comparison).states()
        scores = score(networks, states, tokens, run_by.pool, memory=scored)
        return {
            **importance.arrays(),
            "states": np.stack(states),
            "losses": scores.losses,
            "kld": scores.records[0].kld,
            "errors": comparison.arrays()["errors"],
        }


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize("ops", OPS.values(), ids=OPS)
def test_results_depend_neither_on_workers_nor_on_memory(
    graphs: list[TensorGraph], ops: Arithmetic
) -> None:
    expected = results(graphs, ops)
    assert_same(results(graphs, ops, jobs=3), expected)
    assert_same(results(graphs, ops, jobs=2, memory=1 << 16, scored=1), expected)


def test_a_model_is_its_own_equal(graphs: list[TensorGraph]) -> None:
    found = results([graphs[0], graphs[0]], NumpyArithmetic())
    assert not np.any(found["kld"])
    errors = Comparison()
    errors.restore({"errors": found["errors"]})
    assert {e.relative for e in errors.errors[0]} == {0.0}
    assert {e.alone for e in errors.errors[0]} == {0.0}
    assert {(e.cosine, e.same_experts, e.same_first) for e in errors.errors[0]} == {(1.0, 1.0, 1.0)}


def test_errors_by_layer_are_those_of_the_states(graphs: list[TensorGraph]) -> None:
    tokens = draw_tokens(2, 50, graphs[0].spec.vocab_size)
    comparison = Comparison(isolated=True)
    with machine() as run_by:
        networks = [network_of(graph, run_by) for graph in graphs]
        Run(networks, tokens, comparison=comparison).states()
        own, other = (network.embed(tokens.reshape(-1)) for network in networks)
        for layer, found in enumerate(comparison.errors[0]):
            alone = own.copy()
            routing = run_layer(networks[0], layer, own, 50)
            other_routing = run_layer(networks[1], layer, other, 50)
            run_layer(networks[1], layer, alone, 50)
            assert found.layer == layer
            a, b, c = (x.astype(np.float64) for x in (own, other, alone))
            assert found.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
            assert found.alone == pytest.approx(np.linalg.norm(a - c) / np.linalg.norm(a))
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            assert found.cosine == pytest.approx(cosines.mean())
            pairs = zip(routing.experts.tolist(), other_routing.experts.tolist(), strict=True)
            same = [(set(x) == set(y), x[0] == y[0]) for x, y in pairs]
            assert (found.same_experts, found.same_first) == pytest.approx(np.mean(same, axis=0))


class Killed(BaseException):
    """What a test stops a run with."""


def test_a_run_goes_on_where_it_was_killed(graphs: list[TensorGraph], tmp_path: Path) -> None:
    tokens = draw_tokens(2, 50, graphs[0].spec.vocab_size)
    layers = graphs[0].spec.num_layers
    started: list[int] = []

    def run(stop: int | None = None) -> dict[str, object]:
        importance, comparison = Importance(), Comparison()
        saved = SavedStates(tmp_path / "out", {"of": ["this", 1]})

        def on_layer(done: int, total: int) -> None:
            started.append(done)
            if done == stop:
                raise Killed

        with saved.locked(), machine() as run_by:
            networks = [network_of(graph, run_by) for graph in graphs]
            states = Run(networks, tokens, importance, comparison, (importance,), saved).states(
                on_layer
            )
            saved.delete()
        errors = comparison.arrays()["errors"]
        return {**importance.arrays(), "states": np.stack(states), "errors": errors}

    folder = tmp_path / ".out.states"
    expected = run()
    assert not folder.exists()
    for stop in range(1, layers + 1):
        with pytest.raises(Killed):
            run(stop)
        assert [path.name for path in folder.iterdir()] == [f"layer-{stop}.npz"]
        started.clear()
        assert_same(run(), expected)
        assert started[0] == stop


def test_other_models_and_tokens_are_refused(graphs: list[TensorGraph], tmp_path: Path) -> None:
    dense = open_graph(write_dense(tmp_path / "model.gguf", "llama"))
    deeper = open_graph(write_dense(tmp_path / "deeper.gguf", "llama", 3))
    tokens = draw_tokens(1, 4, 8)
    with machine() as run_by:
        own = network_of(dense, run_by)
        for other in (graphs[0], deeper):
            said = f"^{other.source}: 3 layers .* and 2 layers 64 wide, 48 tokens in the vocabulary"
            with pytest.raises(LayoutError, match=said + " in the source: this is another model"):
                Run([own, network_of(other, run_by)], tokens).states()
        with pytest.raises(LayoutError, match="token 48 is not in the vocabulary of 48"):
            Run([own], np.array([[0, VOCABULARY]])).states()


def test_states_without_any_size_have_no_errors() -> None:
    zeros = np.zeros((3, 4), np.float32)
    assert compare_states(zeros, zeros) == (0.0, 0.0)
    assert compare_states(zeros[:0], zeros[:0]) == (0.0, 0.0)
