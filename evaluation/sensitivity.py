"""Measure what the type of each tensor alone costs: its local effect, and maybe the model's KL.

A local effect is the mean over tokens of |h' - h|^2 / |h|^2: h is what the tensor's layer gives for
the states that reach it in the source, h' the same with that tensor alone in another type. It ranks
tensors by what they cost the whole model far better than errors of weights do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.networks import (
    Ids,
    Machine,
    Network,
    Unwatched,
    check_finite,
    network,
    run_layer,
)
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.scoring import divergences, head_effect, score
from weightcast.evaluation.weights import Rounding, Weights
from weightcast.evaluation.workers import blocks
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

OnTensor = Callable[[int, int], None]
# Two are a coarse choice: Q8_0 alone of the usual types has blocks that most rows fill.
_FEWEST_TYPES: Final = 3
# Names of what is kept after a layer.
_STATES: Final = "states"
_LOCAL: Final = "local"
_PROBED: Final = "probed:"


@dataclass(frozen=True, slots=True)
class Effects:
    """What types cost a tensor, by their names: `local` effects, and `probe`, mean KL in nats."""

    local: Mapping[str, float]
    probe: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known after some layers: states [tokens, emb], and by tensor effects and states.

    `probed` are the states of the model with that tensor alone in the type of the probe.
    """

    states: F32
    local: dict[str, dict[str, float]] = field(default_factory=dict)
    probed: dict[str, F32] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> _Found:
        """Take back what `arrays` gave."""
        probed = {
            key.removeprefix(_PROBED): states
            for key, states in arrays.items()
            if key.startswith(_PROBED)
        }
        return cls(arrays[_STATES], json.loads(str(arrays[_LOCAL])), probed)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all of it as arrays by name."""
        probed = {_PROBED + name: states for name, states in self.probed.items()}
        return {_STATES: self.states, _LOCAL: np.array(json.dumps(self.local)), **probed}


@dataclass(frozen=True)
class Sensitivity:
    """Measures the tensors of a source over tokens [sequences, context], type by type.

    `importance` has the importance [matrices, in] of tensors by name; types that need it are left
    out where there is none, and so are those whose blocks do not divide a row: where none does,
    there are `fallbacks`. With a `probe`, the model's predictions are compared, too, with each
    tensor alone in that type. With `saved`, what was found is kept after each layer, once `check`
    has found that the source is what it was.
    """

    weights: Weights
    machine: Machine
    tokens: Ids
    types: Sequence[QuantType]
    importance: Mapping[str, F32]
    search: Search = GGML
    probe: QuantType | None = None
    fallbacks: Sequence[QuantType] = ()
    saved: SavedStates | None = None
    check: Callable[[], None] = lambda: None

    def measure(self, on_tensor: OnTensor = lambda done, total: None) -> dict[str, Effects]:
        """Run the source, and each of its layers again for each tensor and type in it.

        Embedding and head are layers, too: what they give are states and logits, less their mean.
        States that a probe changed go through the later layers beside the source's, as more
        sequences, so that weights are read once for all of them. Raises CheckpointError for weights
        that cannot be read, OutputError for states that cannot be kept, and what `check` raises.
        """
        source, head = self._source, self._source.ends[1]
        layers = range(source.num_layers)
        total = sum(len(part.matrices) for n in layers for part in source.parts(n)) + 1
        done, found = self._start()
        for number in layers[done:]:
            self._measure_layer(number, found, lambda: on_tensor(len(found.local), total))
            self.check()
            if self.saved is not None:
                self.saved.save(number + 1, found.arrays())
        self._measure_head(head, found.states, found.local)
        probes = self._divergences(found.states, found.probed)
        on_tensor(total, total)
        return {name: Effects(own, probes.get(name, {})) for name, own in found.local.items()}

    def _start(self) -> tuple[int, _Found]:
        """Give what an interrupted run had found, and after how many layers, or begin."""
        earlier = None if self.saved is None else self.saved.load(self.machine.activations.empty)
        if earlier is not None:
            return earlier[0], _Found.of(earlier[1])
        found = _Found(self._source.embed(self._flat))
        self._measure_embedding(self._source.ends[0], found.states, found.local, found.probed)
        return 0, found

    def _measure_layer(self, number: int, found: _Found, on_tensor: Callable[[], None]) -> None:
        parts, states = self._source.parts(number), found.states
        self._advance(number, found.probed)
        inputs = []
        for part in parts:
            inputs.append(self.machine.activations.copy(states))
            part.run(states, self._context, Unwatched())
        check_finite(self._source, number, states)
        for place, part in enumerate(parts):
            for name in part.matrices:
                on_tensor()
                found.local[name] = {}
                types = self._types_of(name)
                for quant_type in types:
                    changed = self._changed(number, place, name, quant_type, inputs[place])
                    found.local[name][quant_type.name] = local_effect(states, changed)
                    if quant_type == self._probe_of(types):
                        found.probed[name] = changed

    def _measure_embedding(
        self,
        name: str,
        states: F32,
        local: dict[str, dict[str, float]],
        probed: dict[str, F32],
    ) -> None:
        types = self._types_of(name)
        local[name] = {}
        for quant_type in types:
            changed = self._with(name, quant_type).embed(self._flat)
            local[name][quant_type.name] = local_effect(states, changed)
            if quant_type == self._probe_of(types):
                probed[name] = changed

    def _measure_head(self, name: str, final: F32, local: dict[str, dict[str, float]]) -> None:
        """Add what the head's own types cost to what they cost the embedding, if it is that."""
        found = local.setdefault(name, {})
        for quant_type in self._types_of(name):
            effect = head_effect(self._source, self._with(name, quant_type), final, self.tokens)
            found[quant_type.name] = found.get(quant_type.name, 0.0) + effect

    @cached_property
    def _source(self) -> Network:
        return network(self.weights, self.machine)

    @property
    def _context(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def _flat(self) -> Ids:
        return self.tokens.reshape(-1)

    def _with(self, name: str, quant_type: QuantType) -> Network:
        """Give the network with one tensor in another type."""
        rounding = Rounding(quant_type, self.importance.get(name), self.search)
        return network(replace(self.weights, rounded={name: rounding}), self.machine)

    def _types_of(self, name: str) -> list[QuantType]:
        n_in = self.weights.shape(name)[-1]
        wanted = [each for each in self.types if each.fits(n_in)]
        if len(wanted) < _FEWEST_TYPES:
            wanted += [each for each in self.fallbacks if each.fits(n_in)]
        if self.probe is not None and self.probe.fits(n_in):
            wanted.append(self.probe)
        has_importance = name in self.importance
        usable = (each for each in wanted if each.importance != "required" or has_importance)
        return list(dict.fromkeys(usable))

    def _probe_of(self, types: Sequence[QuantType]) -> QuantType | None:
        """Choose the type in which a tensor is probed: the one asked for, or the next in size."""
        wanted = self.probe
        if wanted is None or not types:
            return None
        bits = wanted.bits_per_weight
        return min(types, key=lambda each: (abs(each.bits_per_weight - bits), each.name))

    def _changed(
        self, number: int, place: int, name: str, quant_type: QuantType, given: F32
    ) -> F32:
        """Run the parts of a layer from one on, with a tensor of that in another type."""
        states = self.machine.activations.copy(given)
        for part in self._with(name, quant_type).parts(number)[place:]:
            part.run(states, self._context, Unwatched())
        return states

    def _advance(self, number: int, probed: dict[str, F32]) -> None:
        """Run one layer on all states that probes changed."""
        if not probed:
            return
        n_tokens = self.tokens.size
        together = self.machine.activations.empty(len(probed) * n_tokens, self._source.emb_size)
        for n, states in enumerate(probed.values()):
            together[n * n_tokens : (n + 1) * n_tokens] = states
        probed.update(zip(probed, np.split(together, len(probed)), strict=True))
        run_layer(self._source, number, together, self._context)

    def _divergences(self, final: F32, probed: Mapping[str, F32]) -> dict[str, dict[str, float]]:
        """Average the KL of what the source predicts from what is predicted from changed states."""
        head = self._source.ends[1]
        types = {name: self._probe_of(self._types_of(name)) for name in (*probed, head)}
        wanted = {name: each for name, each in types.items() if each is not None}
        others = [states for name, states in probed.items() if name != head]
        klds = divergences(self._source, final, others, self.tokens) if others else []
        found = dict(zip((name for name in probed if name != head), klds, strict=True))
        if head in wanted:
            # What the probe changed is the head itself, and the embedding if that is the same.
            both = (self._source, self._with(head, wanted[head]))
            states = (final, probed.get(head, final))
            scores = score(both, states, self.tokens, self.machine.pool)
            found[head] = float(scores.records[0].kld.mean())
        return {name: {wanted[name].name: kld} for name, kld in found.items()}


def local_effect(expected: F32, states: F32) -> float:
    """Average |h' - h|^2 / |h|^2 over the tokens of states [tokens, emb]."""
    total = 0.0
    for rows in blocks(len(expected)):
        own = expected[rows].astype(np.float64)
        squares = np.square(own).sum(axis=1)
        difference = np.square(states[rows] - own).sum(axis=1)
        total += float(np.divide(difference, squares, where=squares > 0, out=difference).sum())
    return total / max(1, len(expected))
