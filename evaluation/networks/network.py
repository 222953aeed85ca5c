"""What all networks share: the protocol that the engine runs, and feed-forward layers in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.evaluation.arithmetic import F32, F64, Arithmetic, Array, Attention
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.workers import Pool, blocks

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over some tokens of a matrix's inputs and of their squares, float64 [in]."""

    tokens: int
    squares: F64
    sums: F64


class Watch(Protocol):
    """See the inputs of every matrix: `Importance` keeps them, `Unwatched` does not."""

    def moments(self, arithmetic: Arithmetic, x: Array) -> Moments | None:
        """Sum up the inputs [tokens, in] of a block."""

    def add(
        self,
        names: Sequence[str],
        n_in: int,
        found: Sequence[Moments | None],
        expert: int = 0,
        n_experts: int = 1,
    ) -> None:
        """Add the sums of all blocks, in their order, to tensors with matrices [out, n_in].

        Of a tensor of experts they belong to one, which may have seen nothing.
        """


class Unwatched:
    """Keep nothing."""

    def moments(self, arithmetic: Arithmetic, x: Array) -> None:
        return None

    def add(
        self,
        names: Sequence[str],
        n_in: int,
        found: Sequence[Moments | None],
        expert: int = 0,
        n_experts: int = 1,
    ) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Routing:
    """Where tokens went in a layer: the experts [tokens, used], most probable first, and margins.

    A margin [tokens] is the distance of router logits between the last expert that was chosen and
    the first that was not; infinite if all are.
    """

    experts: Ids
    margins: F32


@dataclass(frozen=True, slots=True)
class Machine:
    """What networks are run by: operations, workers, and room for activations.

    `group_tokens` is how many tokens go through a feed-forward layer at once.
    """

    arithmetic: Arithmetic
    pool: Pool
    activations: Activations
    group_tokens: int = 1 << 14


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of attention: their numbers and sizes, and how scores become weights."""

    queries: int
    keys: int
    key_size: int
    value_size: int
    how: Attention


@dataclass(frozen=True, slots=True)
class Hidden:
    """A hidden layer: its activation, and how many of the experts that there are a token uses."""

    activation: Callable[[Array], Array]
    experts: int = 1
    used: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Attention or feed-forward of a layer: the matrices in it, what runs it, and its kind.

    It runs on all states [tokens, emb], in place, and gives where tokens went if they are routed.
    From `kind` follows what it costs.
    """

    matrices: tuple[str, ...]
    run: Callable[[F32, int, Watch], Routing | None]
    kind: Heads | Hidden


class Network(Protocol):
    """A model that runs layer by layer, on all tokens of a text at once.

    Tokens and states are rows of one array, sequence after sequence of `context` tokens each.
    """

    @property
    def source(self) -> str:
        """What the model was read from, for messages."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""

    @property
    def emb_size(self) -> int:
        """Width of states."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens that there are."""

    @property
    def ends(self) -> tuple[str, str]:
        """Name the matrices of embedding and head, which may be one and the same."""

    def embed(self, tokens: Ids) -> F32:
        """Give the states [tokens, emb] that the first layer gets."""

    def parts(self, number: int) -> tuple[Part, ...]:
        """Give the parts of a layer, in order."""

    def logits(self, states: F32, parts: Sequence[slice]) -> F32:
        """Give logits [tokens, vocab] for what the last layer gave, one part of rows at a time."""


def run_layer(
    network: Network, number: int, states: F32, context: int, watch: Watch | None = None
) -> Routing | None:
    """Run one layer on all states [tokens, emb], in place, and tell where tokens went.

    Raises LayoutError for states that are not finite: what follows would mean nothing.
    """
    routing = None
    for part in network.parts(number):
        routing = part.run(states, context, watch or Unwatched()) or routing
    check_finite(network, number, states)
    return routing


def check_finite(network: Network, number: int, states: F32) -> None:
    """Raise LayoutError if states [tokens, emb] after a layer are not finite."""
    for rows in blocks(len(states)):
        if not np.isfinite(states[rows]).all():
            raise LayoutError(
                f"{network.source}: layer {number} gives NaN or infinity: weights in it are "
                "damaged, or too large for float32"
            )


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A gated feed-forward layer: down(activation(gate(x)) * up(x)); names are of its matrices."""

    gate: str
    up: str
    down: str
    activation: Callable[[Array], Array]
    expert: int = 0
    n_experts: int = 1

    def run(self, machine: Machine, weights: Weights, x: F32, watch: Watch) -> F32:
        """Run rows x [tokens, emb] through it: [tokens, emb], in groups that memory holds."""
        out = machine.activations.empty(len(x), weights.shape(self.down)[-2])
        seen: _Seen = _Seen()
        for start in range(0, max(1, len(x)), machine.group_tokens):
            rows = slice(start, start + machine.group_tokens)
            self._group(machine, weights, x[rows], out[rows], watch, seen)
        which = (self.expert, self.n_experts)
        watch.add((self.gate, self.up), x.shape[1], seen.x, *which)
        watch.add((self.down,), weights.shape(self.down)[-1], seen.hidden, *which)
        return out

    def _group(
        self, machine: Machine, weights: Weights, x: F32, out: F32, watch: Watch, seen: _Seen
    ) -> None:
        ops, parts = machine.arithmetic, blocks(len(x))
        if not parts:
            return
        hidden = machine.activations.empty(len(x), weights.shape(self.down)[-1])
        pairs = zip(
            weights.tiles(self.gate, self.expert),
            weights.tiles(self.up, self.expert),
            strict=True,
        )
        for gate_tile, up_tile in pairs:
            gate, up = ops.weights(gate_tile.values), ops.weights(up_tile.values)
            columns = gate_tile.rows

            def widen(rows: slice, gate: Array = gate, up: Array = up, to: slice = columns) -> None:
                inputs = ops.array(x[rows])
                product = self.activation(ops.linear(inputs, gate)) * ops.linear(inputs, up)
                hidden[rows, to] = ops.values(product)

            machine.pool.each(parts, widen)
        seen.x += machine.pool.each(parts, lambda rows: watch.moments(ops, ops.array(x[rows])))
        seen.hidden += machine.pool.each(
            parts, lambda rows: watch.moments(ops, ops.array(hidden[rows]))
        )
        for tile in weights.tiles(self.down, self.expert):
            down, columns = ops.weights(tile.values), tile.rows

            def narrow(rows: slice, down: Array = down, to: slice = columns) -> None:
                out[rows, to] = ops.values(ops.linear(ops.array(hidden[rows]), down))

            machine.pool.each(parts, narrow)


@dataclass(slots=True)
class _Seen:
    x: list[Moments | None] = field(default_factory=list)
    hidden: list[Moments | None] = field(default_factory=list)


def multiply(machine: Machine, weights: Weights, name: str, x: F32, parts: Sequence[slice]) -> F32:
    """Multiply parts of rows x [tokens, in] with a matrix, tile by tile: [tokens, out]."""
    ops = machine.arithmetic
    out = machine.activations.empty(len(x), weights.shape(name)[-2])
    for tile in weights.tiles(name):
        matrix, columns = ops.weights(tile.values), tile.rows

        def product(rows: slice, matrix: Array = matrix, to: slice = columns) -> None:
            out[rows, to] = ops.values(ops.linear(ops.array(x[rows]), matrix))

        machine.pool.each(parts, product)
    return out


def sequences(states: F32, context: int) -> list[slice]:
    """Cut rows into their sequences."""
    return [slice(start, start + context) for start in range(0, len(states), context)]


def angles(
    context: int, width: int, base: float, scale: float = 1.0, factors: F64 | None = None
) -> tuple[F32, F32]:
    """Give cosines and sines [context, width / 2] of rotary positions, of heads `width` wide.

    Component i turns by position * scale * base ** (-2 i / width), as in RoFormer
    (https://arxiv.org/abs/2104.09864), divided by its own of the `factors` [width / 2], if given.
    """
    half = width // 2
    frequencies = base ** (-np.arange(half, dtype=np.float64) / half)
    if factors is not None:
        frequencies = frequencies / factors
    turned = np.arange(context)[:, None] * frequencies * scale
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)
