"""What tests of running models share: machines, networks, tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import TensorGraph
from weightcast.evaluation.arithmetic import Arithmetic, NumpyArithmetic
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.networks import Machine, Network, network, run_layer
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.workers import pool

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-grok"


@contextmanager
def machine(
    ops: Arithmetic | None = None, jobs: int = 1, memory: int | None = None
) -> Iterator[Machine]:
    with pool(jobs) as workers, tempfile.TemporaryDirectory() as folder:
        yield Machine(ops or NumpyArithmetic(), workers, Activations(memory, Path(folder)))


def network_of(graph: TensorGraph, run_by: Machine) -> Network:
    return network(Weights(graph), run_by)


def logits(
    graph: TensorGraph, tokens: NDArray[np.int64], ops: Arithmetic | None = None
) -> NDArray[np.float32]:
    """Run a model: logits [sequences, positions, vocab]."""
    with machine(ops) as run_by:
        net = network_of(graph, run_by)
        states = net.embed(tokens.reshape(-1))
        for layer in range(net.num_layers):
            run_layer(net, layer, states, tokens.shape[1])
        rows = [slice(n, n + 100) for n in range(0, len(states), 100)]
        return net.logits(states, rows).reshape(*tokens.shape, -1)


def draw_tokens(sequences: int, context: int, vocabulary: int) -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, vocabulary, (sequences, context))
