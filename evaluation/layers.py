"""Run networks side by side, layer by layer, and compare what they make of the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.memory import Activations, in_memory
from weightcast.evaluation.networks import Ids, Network, Routing, Unwatched, Watch, run_layer
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.workers import blocks
from weightcast.text import count

OnLayer = Callable[[int, int], None]


class Kept(Protocol):
    """What a run gathers besides states, and a run that goes on needs back."""

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Give it as arrays by name."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `arrays` gave."""


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """How far an artifact's states are from the source's after a layer.

    `relative` is the norm of the difference of all states by that of the source's, `cosine` the
    mean over the tokens. Of networks that route, `same_experts` is the share of tokens that go to
    the same set of experts, `same_first` that of those whose most probable expert is the same.
    `alone` is `relative` where only this layer is the artifact's.
    """

    layer: int
    relative: float
    cosine: float
    same_experts: float | None = None
    same_first: float | None = None
    alone: float | None = None


@dataclass(slots=True)
class Comparison:
    """Errors by layer of each artifact, gathered while all run; `isolated` adds those alone."""

    isolated: bool = False
    errors: list[list[LayerErrors]] = field(default_factory=list)

    def arrays(self) -> dict[str, NDArray[Any]]:
        layers = [[asdict(each) for each in artifact] for artifact in self.errors]
        return {"errors": np.array(json.dumps(layers))}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        layers = json.loads(str(arrays["errors"]))
        self.errors = [[LayerErrors(**each) for each in artifact] for artifact in layers]


_STATES: Final = "states"


@dataclass(frozen=True)
class Run:
    """Networks of one shape on the same tokens [sequences, context]; the first is the source.

    The source is watched. With `saved`, states are kept on disk after each layer, once `check` has
    found that what they were made of is what it was.
    """

    networks: Sequence[Network]
    tokens: Ids
    watch: Watch = field(default_factory=Unwatched)
    comparison: Comparison = field(default_factory=Comparison)
    kept: Sequence[Kept] = ()
    saved: SavedStates | None = None
    activations: Activations = field(default_factory=in_memory)
    check: Callable[[], None] = lambda: None

    def states(self, on_layer: OnLayer = lambda done, total: None) -> list[F32]:
        """Run all layers: states [tokens, emb] that each network's head gets.

        Raises LayoutError for tokens that are not in the vocabulary and networks of other shapes,
        OutputError for states that cannot be kept, and what `check` raises.
        """
        self._check_kinds()
        total, context = self.networks[0].num_layers, self.tokens.shape[1]
        done, states = self._start()
        for number in range(done, total):
            on_layer(number, total)
            isolated = self.comparison.isolated and len(states) > 1
            before = self.activations.copy(states[0]) if isolated else None
            routings = [
                run_layer(network, number, own, context, None if n else self.watch)
                for n, (network, own) in enumerate(zip(self.networks, states, strict=True))
            ]
            self._compare(number, states, routings, before)
            self.check()
            if self.saved is not None:
                self.saved.save(number + 1, self._arrays(states))
        on_layer(total, total)
        return states

    def _check_kinds(self) -> None:
        first = self.networks[0]
        for network in self.networks:
            if _sizes(network) != _sizes(first):
                raise LayoutError(
                    f"{network.source}: {_sizes(network)}, and {_sizes(first)} in the source: this "
                    "is another model"
                )
        if self.tokens.size and not 0 <= self.tokens.min() <= self.tokens.max() < first.vocab_size:
            raise LayoutError(
                f"{first.source}: token {self.tokens.max()} is not in the vocabulary of "
                f"{first.vocab_size}: the text was tokenized for another model"
            )

    def _start(self) -> tuple[int, list[F32]]:
        flat = self.tokens.reshape(-1)
        earlier = None if self.saved is None else self.saved.load(self.activations.empty)
        if earlier is None:
            self.comparison.errors = [[] for _ in self.networks[1:]]
            return 0, [network.embed(flat) for network in self.networks]
        done, arrays = earlier
        for kept in (self.comparison, *self.kept):
            kept.restore(arrays)
        return done, [arrays[f"{_STATES}-{n}"] for n in range(len(self.networks))]

    def _arrays(self, states: Sequence[F32]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {f"{_STATES}-{n}": own for n, own in enumerate(states)}
        for kept in (self.comparison, *self.kept):
            found |= kept.arrays()
        return found

    def _compare(
        self,
        number: int,
        states: Sequence[F32],
        routings: Sequence[Routing | None],
        before: F32 | None,
    ) -> None:
        base = states[0]
        for n, artifact in enumerate(self.networks[1:], 1):
            relative, cosine = compare_states(base, states[n])
            alone = None
            if before is not None:
                alone_states = self.activations.copy(before)
                run_layer(artifact, number, alone_states, self.tokens.shape[1])
                alone = compare_states(base, alone_states)[0]
            agreement = same_routing(routings[0], routings[n])
            found = LayerErrors(number, relative, cosine, *agreement, alone)
            self.comparison.errors[n - 1].append(found)


def _sizes(network: Network) -> str:
    layers, width = count(network.num_layers, "layer"), network.emb_size
    return f"{layers} {width:,} wide, {count(network.vocab_size, 'token')} in the vocabulary"


def compare_states(base: F32, other: F32) -> tuple[float, float]:
    """Give the relative norm of the difference of states [tokens, emb], and their mean cosine."""
    difference = squares = cosines = 0.0
    for rows in blocks(len(base)):
        a, b = base[rows].astype(np.float64), other[rows].astype(np.float64)
        difference += float(np.square(a - b).sum())
        own, others = np.square(a).sum(axis=1), np.square(b).sum(axis=1)
        squares += float(own.sum())
        # Exactly 1 for equal states.
        norms = np.sqrt(own * others)
        cosines += float(np.divide((a * b).sum(axis=1), norms, where=norms > 0, out=norms).sum())
    return (difference / squares) ** 0.5 if squares else 0.0, cosines / max(1, len(base))


def same_routing(base: Routing | None, other: Routing | None) -> tuple[float | None, float | None]:
    """Give the shares of tokens with the same experts, and with the same first one."""
    if base is None or other is None:
        return None, None
    same = (np.sort(base.experts) == np.sort(other.experts)).all(axis=1)
    return float(same.mean()), float((base.experts[:, 0] == other.experts[:, 0]).mean())
