"""Measure what the type of each tensor alone costs: its local effect, and maybe the model's KL.

A local effect is the mean over tokens of |h' - h|^2 / |h|^2: h is what the tensor's layer gives for
the states that reach it in the source, h' the same with that tensor alone in another type. It ranks
tensors by what they cost the whole model far better than errors of weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.networks import (
    Ids,
    Machine,
    Network,
    Unwatched,
    network,
    run_layer,
)
from weightcast.evaluation.scoring import score
from weightcast.evaluation.weights import Rounding, Weights
from weightcast.evaluation.workers import blocks
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

OnTensor = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Effects:
    """What types cost a tensor, by their names: `local` effects, and `probe`, mean KL in nats."""

    local: Mapping[str, float]
    probe: Mapping[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """Measures the tensors of a source over tokens [sequences, context], type by type.

    `importance` has the importance [matrices, in] of tensors by name; types that need it are left
    out where there is none, and so are those whose blocks do not divide a row. With a `probe`, the
    model's predictions are compared, too, with each tensor alone in that type.
    """

    weights: Weights
    machine: Machine
    tokens: Ids
    types: Sequence[QuantType]
    importance: Mapping[str, F32]
    search: Search = GGML
    probe: QuantType | None = None

    def measure(self, on_tensor: OnTensor = lambda done, total: None) -> dict[str, Effects]:
        """Run the source, and each of its layers again for each tensor and type in it."""
        layers = range(self._source.num_layers)
        total = sum(len(part.matrices) for n in layers for part in self._source.parts(n))
        found: dict[str, Effects] = {}
        states = self._embedded()
        for number in layers:
            inputs = []
            for part in self._source.parts(number):
                inputs.append(states.copy())
                part.run(states, self._context, Unwatched())
            for place, part in enumerate(self._source.parts(number)):
                for name in part.matrices:
                    on_tensor(len(found), total)
                    found[name] = self._effects(number, place, name, inputs[place], states)
        on_tensor(total, total)
        return found

    @cached_property
    def _source(self) -> Network:
        return network(self.weights, self.machine)

    @property
    def _context(self) -> int:
        return int(self.tokens.shape[1])

    def _embedded(self) -> F32:
        return self._source.embed(self.tokens.reshape(-1))

    def _effects(self, number: int, place: int, name: str, given: F32, expected: F32) -> Effects:
        """Measure a tensor in a part of a layer, which is `given` states and makes `expected`."""
        local, probe = {}, {}
        n_in = self.weights.shape(name)[-1]
        importance = self.importance.get(name)
        wanted = self.types if self.probe is None else [*self.types, self.probe]
        for quant_type in dict.fromkeys(wanted):
            if not quant_type.fits(n_in):
                continue
            if quant_type.importance == "required" and importance is None:
                continue
            rounding = Rounding(quant_type, importance, self.search)
            changed = network(replace(self.weights, rounded={name: rounding}), self.machine)
            states = given.copy()
            for part in changed.parts(number)[place:]:
                part.run(states, self._context, Unwatched())
            local[quant_type.name] = local_effect(expected, states)
            if quant_type == self.probe:
                probe[quant_type.name] = self._divergence(number, states)
        return Effects(local, probe)

    def _divergence(self, number: int, states: F32) -> float:
        """Run the layers after one on changed states, in place, and average the KL of tokens."""
        for later in range(number + 1, self._source.num_layers):
            run_layer(self._source, later, states, self._context)
        both = (self._source, self._source)
        scores = score(both, (self._final, states), self.tokens, self.machine.pool)
        return float(scores.records[0].kld.mean())

    @cached_property
    def _final(self) -> F32:
        """The states that the source's head gets."""
        states = self._embedded()
        for number in range(self._source.num_layers):
            run_layer(self._source, number, states, self._context)
        return states


def local_effect(expected: F32, states: F32) -> float:
    """Average |h' - h|^2 / |h|^2 over the tokens of states [tokens, emb]."""
    total = 0.0
    for rows in blocks(len(expected)):
        own = expected[rows].astype(np.float64)
        squares = np.square(own).sum(axis=1)
        difference = np.square(states[rows] - own).sum(axis=1)
        total += float(np.divide(difference, squares, where=squares > 0, out=difference).sum())
    return total / max(1, len(expected))
