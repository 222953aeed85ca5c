"""Networks that can be run: a table by the architecture that a graph's family has in GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from weightcast.converters.graph import TensorGraph
from weightcast.errors import LayoutError
from weightcast.evaluation.networks.checks import check_keys
from weightcast.evaluation.networks.dense import RULES, Dense, check_dense, hyperparameters
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
    check_finite,
    run_layer,
)
from weightcast.evaluation.weights import Weights
from weightcast.formats.gguf.read import read_file

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
    "check_finite",
    "network",
    "prepare",
    "run_layer",
]


# What makes the network of a graph that was found to be fit for it.
Make = Callable[[Weights, Machine], Network]


def _grok1(graph: TensorGraph) -> Make:
    spec = graph.spec.describe()
    if graph.container == "gguf":
        rows = graph.family.hyperparameters
        used = {row.gguf.name.partition(".")[2] for row in rows if row.gguf is not None}
        # llama.cpp stores the cap of router logits, and does not use it.
        used |= {"expert_feed_forward_length", "router_logit_softcapping"}
        as_one = {"attention.value_length": "key_size", "rope.dimension_count": "key_size"}
        same = {key: int(spec[name]) for key, name in as_one.items()}
        for path in graph.files[:1]:
            check_keys(read_file(path).metadata, graph.family.architecture, used, same)
    return partial(Grok1, spec=spec)


def _dense(graph: TensorGraph) -> Make:
    assert graph.metadata is not None  # dense models are read from GGUF files
    architecture = graph.family.architecture
    spec, rule = hyperparameters(graph.metadata, architecture), RULES[architecture]
    check_dense(graph, spec, rule)
    return partial(Dense, spec=spec, rule=rule)


NETWORKS: Final[dict[str, Callable[[TensorGraph], Make]]] = {
    "grok": _grok1,
    **dict.fromkeys(RULES, _dense),
}


def prepare(graph: TensorGraph) -> Make:
    """Look whether a graph can be run, before its weights are read, and give what makes it run.

    Raises LayoutError for an architecture, metadata or tensors that no network here computes with,
    MissingTensorError.
    """
    architecture = graph.family.architecture
    if graph.metadata is not None and graph.metadata.get("general.type") == "adapter":
        raise LayoutError(f"{graph.source}: an adapter, not a model; name the model it is for")
    make = NETWORKS.get(architecture)
    if make is None:
        raise LayoutError(
            f"{graph.source}: cannot run the architecture {architecture}; possible: "
            f"{', '.join(NETWORKS)}"
        )
    try:
        return make(graph)
    except LayoutError as problem:
        raise LayoutError(f"{graph.source}: {problem}") from None


def network(weights: Weights, machine: Machine) -> Network:
    """Make the network that a graph is of. Raises what `prepare` raises."""
    return prepare(weights.graph)(weights, machine)
