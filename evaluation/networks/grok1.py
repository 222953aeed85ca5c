"""Grok-1: attention with a cap on its scores, two of eight experts, norms around both.

Source: model.py in xai-org/grok-1, with its bfloat16 rounding left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from weightcast.evaluation.arithmetic import F32, Array, Attention
from weightcast.evaluation.networks.network import (
    FeedForward,
    Heads,
    Hidden,
    Ids,
    Machine,
    Part,
    Routing,
    Watch,
    angles,
    multiply,
    sequences,
)
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.workers import blocks


@dataclass(frozen=True)
class Grok1:
    """See `Network`."""

    weights: Weights
    machine: Machine
    spec: Mapping[str, Any]

    @property
    def source(self) -> str:
        return self.weights.graph.source

    @property
    def num_layers(self) -> int:
        return int(self.spec["num_layers"])

    @property
    def emb_size(self) -> int:
        return int(self.spec["emb_size"])

    @property
    def vocab_size(self) -> int:
        return int(self.spec["vocab_size"])

    @property
    def ends(self) -> tuple[str, str]:
        return "token_embd.weight", "token_embd.weight"

    def embed(self, tokens: Ids) -> F32:
        states = self.machine.activations.empty(len(tokens), self.emb_size)
        self.weights.rows_into("token_embd.weight", tokens, states)
        states *= np.float32(self.spec["embedding_multiplier_scale"])
        return states

    def parts(self, number: int) -> tuple[Part, ...]:
        prefix = f"blk.{number}."
        attention = tuple(f"{prefix}attn_{role}.weight" for role in ("q", "k", "v", "output"))
        experts = tuple(f"{prefix}ffn_{role}_exps.weight" for role in ("gate", "up", "down"))
        spec, ops = self.spec, self.machine.arithmetic
        width, n_experts = int(spec["key_size"]), int(spec["num_experts"])
        numbers = int(spec["num_q_heads"]), int(spec["num_kv_heads"])
        heads = Heads(*numbers, width, width, self._how)
        hidden = Hidden(ops.gelu, n_experts, int(spec["num_selected_experts"]))
        return (
            Part(attention, partial(self._attention, prefix), heads),
            Part(experts, partial(self._experts, prefix), hidden),
        )

    def logits(self, states: F32, parts: Sequence[slice]) -> F32:
        ops = self.machine.arithmetic
        scale = self._vector("output_norm.weight")
        x = ops.values(ops.norm(ops.array(states), scale, self._eps))
        found = multiply(self.machine, self.weights, self.ends[1], x, parts)
        found *= np.float32(self.spec["output_multiplier_scale"])
        return found

    @property
    def _eps(self) -> float:
        return float(self.spec["rms_norm_eps"])

    @property
    def _how(self) -> Attention:
        spec = self.spec
        return Attention(float(spec["attn_output_multiplier"]), float(spec["attn_logit_cap"]))

    def _vector(self, name: str) -> Array:
        return self.machine.arithmetic.array(self.weights.whole(name))

    def _attention(self, prefix: str, states: F32, context: int, watch: Watch) -> None:
        ops, spec, width = self.machine.arithmetic, self.spec, int(self.spec["key_size"])
        wq, wk, wv, wo = (
            ops.weights(self.weights.whole(f"{prefix}{role}.weight"))
            for role in ("attn_q", "attn_k", "attn_v", "attn_output")
        )
        before, after = (
            self._vector(f"{prefix}{role}.weight") for role in ("attn_norm", "attn_output_norm")
        )
        cos, sin = map(ops.array, angles(context, width, float(spec["rope_base"])))
        how = self._how

        def attend(rows: slice) -> tuple[Any, Any]:
            h = ops.array(states[rows])
            x = ops.norm(h, before, self._eps)
            q, k, v = (ops.linear(x, w).reshape(context, -1, width) for w in (wq, wk, wv))
            q, k = (ops.rotate(heads, cos, sin, is_paired=False) for heads in (q, k))
            mixed = ops.attend(q, k, v, how)
            states[rows] = ops.values(h + ops.norm(ops.linear(mixed, wo), after, self._eps))
            return watch.moments(ops, x), watch.moments(ops, mixed)

        seen = self.machine.pool.each(sequences(states, context), attend)
        inputs, mixed = zip(*seen, strict=True)
        watch.add(
            [f"{prefix}{role}.weight" for role in ("attn_q", "attn_k", "attn_v")],
            states.shape[1],
            inputs,
        )
        watch.add([f"{prefix}attn_output.weight"], wo.shape[1], mixed)

    def _experts(self, prefix: str, states: F32, context: int, watch: Watch) -> Routing:
        ops, machine = self.machine.arithmetic, self.machine
        n_experts, used = int(self.spec["num_experts"]), int(self.spec["num_selected_experts"])
        before, after = (
            self._vector(f"{prefix}{role}.weight") for role in ("ffn_norm", "post_ffw_norm")
        )
        router = self._vector(f"{prefix}ffn_gate_inp.weight")

        def route(rows: slice) -> tuple[Any, F32, F32]:
            inputs = ops.norm(ops.array(states[rows]), before, self._eps)
            # Which experts are chosen is decided in float32, whatever the precision of products.
            logits = inputs @ router.T
            return watch.moments(ops, inputs), ops.values(logits), ops.values(ops.softmax(logits))

        seen, logits, shares = zip(*machine.pool.each(blocks(len(states)), route), strict=True)
        watch.add([f"{prefix}ffn_gate_inp.weight"], states.shape[1], seen)
        routing = choose_experts(np.concatenate(logits), used)
        probabilities = np.concatenate(shares)
        y = machine.activations.empty(*states.shape)
        y[:] = 0
        for expert in range(n_experts):
            tokens = np.flatnonzero((routing.experts == expert).any(axis=1))
            x = self._gathered(states, tokens, before)
            gate, up, down = (f"{prefix}ffn_{role}_exps.weight" for role in ("gate", "up", "down"))
            layer = FeedForward(gate, up, down, ops.gelu, expert, n_experts)
            out = layer.run(machine, self.weights, x, watch)
            # The probabilities are those over all experts, not renormalized over the chosen ones.
            out *= probabilities[tokens, expert, None]
            for rows in blocks(len(tokens)):
                y[tokens[rows]] += out[rows]

        def add(rows: slice) -> None:
            states[rows] += ops.values(ops.norm(ops.array(y[rows]), after, self._eps))

        machine.pool.each(blocks(len(states)), add)
        return routing

    def _gathered(self, states: F32, tokens: Ids, scale: Array) -> F32:
        """Copy the states of some tokens, normalized: all of them would take as much again."""
        ops, pool = self.machine.arithmetic, self.machine.pool
        x = self.machine.activations.empty(len(tokens), states.shape[1])

        def normalize(rows: slice) -> None:
            x[rows] = ops.values(ops.norm(ops.array(states[tokens[rows]]), scale, self._eps))

        pool.each(blocks(len(tokens)), normalize)
        return x


def choose_experts(logits: F32, used: int) -> Routing:
    """Choose the `used` most probable experts of router logits [tokens, experts]."""
    order = np.argsort(-logits, axis=1, kind="stable")
    margins = np.full(len(logits), np.inf, np.float32)
    if used < logits.shape[1]:
        rows = np.arange(len(logits))
        margins = logits[rows, order[:, used - 1]] - logits[rows, order[:, used]]
    return Routing(order[:, :used], margins)
