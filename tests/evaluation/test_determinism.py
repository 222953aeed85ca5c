"""The same numbers for any workers, any memory and wherever a run is gone on with, to the bit."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.evaluation.dense_models import VOCABULARY, write_dense
from tests.evaluation.running import draw_tokens, network_of
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph import TensorGraph
from weightcast.converters.sources import open_graph
from weightcast.evaluation.arithmetic import BFLOAT16, Arithmetic, NumpyArithmetic, arithmetic
from weightcast.evaluation.importance import Importance
from weightcast.evaluation.layers import Run
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.networks import Machine, Network
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.scoring import divergences, score
from weightcast.evaluation.workers import pool

OPS = {
    "numpy": NumpyArithmetic(),
    "torch": arithmetic(),
    "bfloat16": arithmetic(precision=BFLOAT16),
}
# Sequences and their tokens: less than a block of 512, one more than that, and across blocks.
SHAPES = ((5, 103), (3, 171), (2, 513), (1, 3), (4, 256))
FOLDER = tempfile.TemporaryDirectory()
Results = dict[str, NDArray[Any]]


@cache
def graph_of(name: str) -> TensorGraph:
    folder = Path(FOLDER.name)
    if name == "grok":
        write_checkpoint(folder / "grok", tiny_spec(), seed=3)
        return open_graph(folder / "grok")
    return open_graph(write_dense(folder / f"{name}.gguf", name))


def results(
    name: str,
    ops: Arithmetic,
    shape: tuple[int, int],
    jobs: int = 1,
    memory: int | None = None,
    group: int = 1 << 14,
    stop: int | None = None,
) -> Results:
    """Everything that a run gives; with `stop` it is killed after so many layers, and goes on."""
    graph = graph_of(name)
    with pool(jobs) as workers, tempfile.TemporaryDirectory() as folder:
        room = Activations(memory, Path(folder))
        net = network_of(graph, Machine(ops, workers, room, group))
        tokens = draw_tokens(*shape, min(VOCABULARY, net.vocab_size))
        with SavedStates(Path(folder) / "out", {}).locked() as saved:
            if stop is not None:
                with pytest.raises(Killed):
                    states_of(net, tokens, saved, room, stop)
            found, states = states_of(net, tokens, saved, room)
        scores = score([net, net], [states, 0.9 * states], tokens, workers, memory=memory)
        klds = divergences(net, states, [0.9 * states, 0.8 * states], tokens, memory)
        return {
            **found.arrays(),
            "states": np.array(states),
            "losses": scores.losses,
            "kld": scores.records[0].kld,
            "klds": np.array(klds),
        }


class Killed(BaseException):
    """What a test stops a run with."""


def states_of(
    net: Network,
    tokens: NDArray[np.int64],
    saved: SavedStates,
    room: Activations,
    stop: int | None = None,
) -> tuple[Importance, NDArray[np.float32]]:
    importance = Importance()

    def on_layer(done: int, total: int) -> None:
        if done == stop:
            raise Killed

    run = Run([net], tokens, importance, kept=(importance,), saved=saved, activations=room)
    (states,) = run.states(on_layer)
    return importance, states


expected = cache(results)


@pytest.mark.parametrize("precision", OPS)
@pytest.mark.parametrize("name", ["grok", "llama", "gemma3"])
@settings(max_examples=6)
@given(
    shape=st.sampled_from(SHAPES),
    jobs=st.integers(1, 4),
    memory=st.sampled_from([None, 1, 1 << 16, 1 << 19]),
    group=st.sampled_from([512, 1024, 1 << 14]),
    stop=st.sampled_from([None, 1, 2]),
)
def test_results_are_the_same_however_a_model_is_run(
    name: str,
    precision: str,
    shape: tuple[int, int],
    jobs: int,
    memory: int | None,
    group: int,
    stop: int | None,
) -> None:
    found = results(name, OPS[precision], shape, jobs, memory, group, stop)
    wanted = expected(name, OPS[precision], shape)
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert np.array_equal(found[key], values), key


@pytest.mark.parametrize("precision", OPS)
def test_experts_with_no_token_one_and_one_more_than_a_block(precision: str) -> None:
    """Two experts get 513 tokens, two get one, the others none."""
    graph = graph_of("grok")
    drawn = np.random.default_rng(1).standard_normal((600, graph.spec.emb_size), np.float32)

    def run(states: NDArray[np.float32], jobs: int, group: int) -> tuple[Any, Importance]:
        importance = Importance()
        with pool(jobs) as workers, tempfile.TemporaryDirectory() as folder:
            room = Activations(None if jobs == 1 else 1, Path(folder))
            net = network_of(graph, Machine(OPS[precision], workers, room, group))
            return net.parts(0)[1].run(states, 1, importance), importance

    routing, _ = run(drawn.copy(), 1, 512)
    pairs = [frozenset(pair) for pair in np.sort(routing.experts).tolist()]
    many = pairs[0]
    first = next(n for n, pair in enumerate(pairs) if not pair & many)
    chosen = [*np.resize([n for n, pair in enumerate(pairs) if pair == many], 513), first]
    states = drawn[chosen]
    counts = {}
    outcomes = []
    for jobs, group in ((1, 1 << 14), (3, 512), (2, 1024)):
        own = states.copy()
        _, importance = run(own, jobs, group)
        entry = importance.entries["blk.0.ffn_up_exps.weight"]
        counts = dict(enumerate(entry.counts.tolist()))
        outcomes.append((own, entry.squares, entry.plain))
    per_expert = {n: 513 if n in many else int(n in pairs[first]) for n in counts}
    assert counts == per_expert
    assert 0 in per_expert.values()
    for outcome in outcomes[1:]:
        for values, wanted in zip(outcome, outcomes[0], strict=True):
            assert np.array_equal(values, wanted)
    # A token alone becomes what it is among others, but for how products are rounded.
    alone = states[-1:].copy()
    run(alone, 1, 512)
    tolerance = 0.05 if precision == "bfloat16" else 1e-5
    np.testing.assert_allclose(alone[0], outcomes[0][0][-1], atol=tolerance)
