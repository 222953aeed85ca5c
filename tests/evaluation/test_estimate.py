"""What running models takes is counted as it is run, and told before it is."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.running import EXAMPLE, machine, network_of
from weightcast.commands.text.estimate import estimate_lines
from weightcast.converters.graph import TensorGraph
from weightcast.converters.sources import open_graph
from weightcast.evaluation import work
from weightcast.evaluation.arithmetic import F32, NumpyArithmetic
from weightcast.evaluation.estimate import Rates, estimate, seconds_of
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.networks import Machine, run_layer
from weightcast.evaluation.scoring import score
from weightcast.evaluation.settings import Settings
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.work import Extent, memory_of, work_of
from weightcast.evaluation.workers import pool

EXTENT = Extent(chunks=3, context=16)


class Counting(NumpyArithmetic):
    """Counts the products that `linear` and `attend` make, and what is activated."""

    def __init__(self) -> None:
        self.products = self.attended = self.activated = 0

    def linear(self, x: F32, weights: F32) -> F32:
        self.products += len(x) * weights.size
        return super().linear(x, weights)

    def attend(self, q, k, v, how):  # type: ignore[no-untyped-def]
        (n, heads, key_size), value_size = q.shape, v.shape[2]
        self.attended += n * n * heads * (key_size + value_size)
        return super().attend(q, k, v, how)

    def gelu(self, x: F32) -> F32:
        self.activated += x.size
        return super().gelu(x)


class Recorded(Activations):
    """Remembers the largest number of bytes that arrays had together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1 << 40, folder)
        self.peak = 0

    def empty(self, *shape: int) -> F32:
        found = super().empty(*shape)
        assert self._left is not None
        self.peak = max(self.peak, (1 << 40) - self._left)
        return found


@pytest.fixture(scope="module")
def graph() -> TensorGraph:
    return open_graph(EXAMPLE)


def run(graph: TensorGraph, run_by: Machine, extent: Extent) -> None:
    network = network_of(graph, run_by)
    vocabulary = network.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocabulary, (extent.chunks, extent.context))
    states = network.embed(tokens.reshape(-1))
    for number in range(network.num_layers):
        run_layer(network, number, states, extent.context)
    score([network], [states], tokens, run_by.pool)


def test_products_are_counted_as_they_are_made(graph: TensorGraph, tmp_path: Path) -> None:
    counting = Counting()
    with pool(1) as workers:
        run_by = Machine(counting, workers, Activations(None, tmp_path))
        run(graph, run_by, EXTENT)
        found = work_of(Weights(graph), network_of(graph, run_by), EXTENT, run_by.group_tokens)
    assert found.products == counting.products
    assert found.attended == counting.attended
    assert found.activated == counting.activated
    assert found.flops == 2 * (found.products + found.attended)


def test_layers_alone_are_run_twice(graph: TensorGraph) -> None:
    with machine() as run_by:
        network = network_of(graph, run_by)
        once, twice = (
            work_of(Weights(graph), network, Extent(3, 16, isolated), 1 << 14)
            for isolated in (False, True)
        )
        head = EXTENT.scored * prod(graph[network.ends[1]].shape)
    assert twice.products - head == 2 * (once.products - head)
    assert twice.attended == 2 * once.attended


def test_small_groups_decode_again(graph: TensorGraph) -> None:
    with machine() as run_by:
        network = network_of(graph, run_by)
        one, several = (
            work_of(Weights(graph), network, Extent(64, 128), group) for group in (1 << 14, 512)
        )
    assert several.tiles > 2 * one.tiles
    assert several.products == one.products


def test_activations_are_counted_as_they_are_made(graph: TensorGraph, tmp_path: Path) -> None:
    extent = Extent(chunks=16, context=64)
    recorded = Recorded(tmp_path)
    with pool(1) as workers:
        run_by = Machine(NumpyArithmetic(), workers, recorded)
        run(graph, run_by, extent)
        model = Weights(graph), network_of(graph, run_by)
        found = memory_of([model], extent, run_by.group_tokens, 1, None)
    # Experts are used unevenly, which the count knows nothing of.
    assert found.activations == pytest.approx(recorded.peak, rel=0.4)


def test_what_does_not_fit_lies_in_a_file(graph: TensorGraph) -> None:
    with machine() as run_by:
        model = Weights(graph), network_of(graph, run_by)

        def found(budget: int | None) -> work.Memory:
            return memory_of([model, model], Extent(64, 64), 1 << 14, 1, budget)

        free = found(None)
        assert free.in_file == 0
        assert found(1).in_file == pytest.approx(free.states + free.layer, rel=0.01)
        assert found(free.states).in_file == free.layer
        assert found(free.states).resident < free.resident


def test_time_follows_from_rates(graph: TensorGraph) -> None:
    with machine() as run_by:
        network = network_of(graph, run_by)
        counted = work_of(Weights(graph), network, EXTENT, 1 << 14)
    rates = Rates(products=counted.products / 10, decoded=[counted.tiles / 8], attended=1e30)
    found = seconds_of([counted], EXTENT, network, rates, cores=4)
    assert found.products == pytest.approx(10)
    whole = 8 * counted.whole / counted.tiles
    assert found.total == pytest.approx(whole + 10 + 8 / 4)
    # A device is not slowed down by decoding, but waits for it.
    fast = Rates(products=counted.products, decoded=[counted.tiles / 8])
    found = seconds_of([counted], EXTENT, network, fast, cores=float("inf"))
    assert found.total == pytest.approx(whole + 4)
    slow = Rates(products=counted.products, decoded=[1e30], read=counted.read_bytes / 100)
    assert seconds_of([counted], EXTENT, network, slow, 1).total == pytest.approx(100)


@pytest.fixture(scope="module")
def lines(graph: TensorGraph) -> list[str]:
    found = estimate([graph, graph], EXTENT, Settings(jobs=1, memory=1000))
    json.dumps(found.describe(), allow_nan=False)
    return list(estimate_lines(found, EXTENT))


def test_lines_tell_bytes_work_memory_and_time(lines: list[str]) -> None:
    assert [line.split()[0] for line in lines] == [
        "reads",
        "computes",
        "memory:",
        lines[3].split()[0],
        "time:",
    ]
    assert "TFLOP over 3 chunks of 16 tokens" in lines[1]
    assert lines[3].endswith("of the activations lie in a file")
