"""Networks that can be run: a table by the architecture that a graph's family has in GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from weightcast.errors import LayoutError
from weightcast.evaluation.networks.dense import RULES, Dense, hyperparameters
from weightcast.evaluation.networks.grok1 import Grok1
from weightcast.evaluation.networks.network import (
    Heads,
    Hidden,
    Ids,
    Machine,
    Moments,
    Network,
    Part,
    Routing,
    Unwatched,
    Watch,
    run_layer,
)
from weightcast.evaluation.weights import Weights

__all__ = [
    "NETWORKS",
    "Heads",
    "Hidden",
    "Ids",
    "Machine",
    "Moments",
    "Network",
    "Part",
    "Routing",
    "Unwatched",
    "Watch",
    "network",
    "run_layer",
]


def _grok1(weights: Weights, machine: Machine) -> Network:
    return Grok1(weights, machine, weights.graph.spec.describe())


def _dense(weights: Weights, machine: Machine) -> Network:
    graph = weights.graph
    metadata = graph.metadata
    assert metadata is not None  # dense models are read from GGUF files
    try:
        spec = hyperparameters(metadata, weights.shape("token_embd.weight")[0])
    except KeyError as missing:
        raise LayoutError(f"{graph.source}: has no {missing.args[0]}") from None
    except LayoutError as problem:
        raise LayoutError(f"{graph.source}: {problem}") from None
    return Dense(weights, machine, spec, RULES[graph.family.architecture])


NETWORKS: Final[dict[str, Callable[[Weights, Machine], Network]]] = {
    "grok": _grok1,
    **dict.fromkeys(RULES, _dense),
}


def network(weights: Weights, machine: Machine) -> Network:
    """Make the network that a graph is of. Raises LayoutError if there is none for it."""
    architecture = weights.graph.family.architecture
    make = NETWORKS.get(architecture)
    if make is None:
        raise LayoutError(
            f"{weights.graph.source}: cannot run the architecture {architecture}; possible: "
            f"{', '.join(NETWORKS)}"
        )
    return make(weights, machine)
