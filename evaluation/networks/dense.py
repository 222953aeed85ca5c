"""Dense networks of llama.cpp's GGUF files: Llama, Qwen 2 and 3, Gemma 3, and what is built alike.

What differs between them is in RULES; what a file tells itself (biases, norms of heads, a head of
its own) follows from its tensors. Sources: src/models/llama.cpp, qwen2.cpp, qwen3.cpp and
gemma3.cpp of llama.cpp, and how src/llama-model.cpp reads their metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from weightcast.errors import LayoutError
from weightcast.evaluation.arithmetic import F32, Array, Attention
from weightcast.evaluation.networks.network import (
    FeedForward,
    Heads,
    Hidden,
    Ids,
    Machine,
    Part,
    Watch,
    angles,
    multiply,
    sequences,
)
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.workers import blocks
from weightcast.text import shown


@dataclass(frozen=True, slots=True)
class Rule:
    """How an architecture differs from others.

    Rotary components turn in neighbouring pairs if `is_paired`, else with the one half a head away.
    Of `window_period` layers all but the last see only a window, with a rotary base of their own.
    """

    is_paired: bool
    activation: str
    scales_embedding: bool = False
    window_period: int | None = None
    window_rope_base: float = 10000.0


RULES: Final[Mapping[str, Rule]] = {
    "llama": Rule(is_paired=True, activation="silu"),
    "qwen2": Rule(is_paired=False, activation="silu"),
    "qwen3": Rule(is_paired=False, activation="silu"),
    "gemma3": Rule(is_paired=False, activation="gelu", scales_embedding=True, window_period=6),
}
# Of this many layers is Gemma 3 27B, whose scores are scaled by the width of its embedding.
_GEMMA3_27B_LAYERS: Final = 62


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions of some layers: components that turn, their base, a scale of positions."""

    width: int
    base: float
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A dense network's hyperparameters, as its metadata tell them."""

    num_layers: int
    vocab_size: int
    emb_size: int
    num_q_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    eps: float
    rotation: Rotation
    attention: Attention


def hyperparameters(metadata: Mapping[str, Any], vocab_size: int) -> Hyperparameters:
    """Read them out of a GGUF file's metadata. Raises LayoutError for what is not supported."""
    architecture = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if not isinstance(value, int | float):
            raise LayoutError(f"{architecture}.{key} is {shown(value)}, not a number")
        return value

    emb_size, heads = int(get("embedding_length")), int(get("attention.head_count"))
    layers = int(get("block_count"))
    if heads < 1 or get("expert_count", 0):
        raise LayoutError(f"{architecture} with experts cannot be run")
    key_size = int(get("attention.key_length", emb_size // heads))
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise LayoutError(f"rotary positions scaled by {shown(scaling)} cannot be run")
    factor = float(get("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0
    width = int(get("rope.dimension_count", key_size))
    window = metadata.get(f"{architecture}.attention.sliding_window")
    scaled_by = key_size
    if architecture == "gemma3" and layers == _GEMMA3_27B_LAYERS:
        scaled_by = emb_size // heads
    return Hyperparameters(
        layers,
        vocab_size,
        emb_size,
        heads,
        int(get("attention.head_count_kv", heads)),
        key_size,
        int(get("attention.value_length", key_size)),
        float(get("attention.layer_norm_rms_epsilon")),
        Rotation(width, float(get("rope.freq_base", 10000.0)), 1 / (factor or 1.0)),
        Attention(1 / math.sqrt(scaled_by), window=int(window) if window else None),
    )


@dataclass(frozen=True)
class Dense:
    """See `Network`."""

    weights: Weights
    machine: Machine
    spec: Hyperparameters
    rule: Rule

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def ends(self) -> tuple[str, str]:
        own_head = "output.weight" in self.weights
        return "token_embd.weight", "output.weight" if own_head else "token_embd.weight"

    def embed(self, tokens: Ids) -> F32:
        states = self.machine.activations.empty(len(tokens), self.spec.emb_size)
        states[:] = self.weights.rows_of("token_embd.weight", tokens)
        if self.rule.scales_embedding:
            states *= np.float32(math.sqrt(self.spec.emb_size))
        return states

    def parts(self, number: int) -> tuple[Part, ...]:
        prefix = f"blk.{number}."
        attention = tuple(f"{prefix}attn_{role}.weight" for role in ("q", "k", "v", "output"))
        feed_forward = tuple(f"{prefix}ffn_{role}.weight" for role in ("gate", "up", "down"))
        spec = self.spec
        numbers = spec.num_q_heads, spec.num_kv_heads
        heads = Heads(*numbers, spec.key_size, spec.value_size, self._how(number)[0])
        return (
            Part(attention, partial(self._attention, number, prefix), heads),
            Part(feed_forward, partial(self._feed_forward, prefix), Hidden(self._activation)),
        )

    def logits(self, states: F32, parts: Sequence[slice]) -> F32:
        ops = self.machine.arithmetic
        x = ops.values(ops.norm(ops.array(states), self._vector("output_norm"), self.spec.eps))
        return multiply(self.machine, self.weights, self.ends[1], x, parts)

    @property
    def _activation(self) -> Callable[[Array], Array]:
        ops = self.machine.arithmetic
        return {"silu": ops.silu, "gelu": ops.gelu}[self.rule.activation]

    def _vector(self, role: str) -> Array:
        """Load a vector of weights, or None if the model has none of this role."""
        name = f"{role}.weight"
        if name not in self.weights:
            return None
        return self.machine.arithmetic.array(self.weights.whole(name).reshape(-1))

    def _how(self, number: int) -> tuple[Attention, Rotation]:
        spec, period = self.spec, self.rule.window_period
        if period is None:
            return spec.attention, spec.rotation
        if (number + 1) % period:
            return spec.attention, Rotation(spec.rotation.width, self.rule.window_rope_base)
        return replace(spec.attention, window=None), spec.rotation

    def _angles(self, context: int, rotation: Rotation) -> tuple[Array, Array]:
        cos, sin = angles(context, rotation.width, rotation.base, rotation.scale)
        if "rope_freqs.weight" in self.weights:
            # Llama 3.1 divides frequencies by factors that its files have as a tensor.
            factors = self.weights.whole("rope_freqs.weight").reshape(-1).astype(np.float64)
            half = rotation.width // 2
            frequencies = rotation.base ** (-np.arange(half) / half) / factors
            turned = np.arange(context)[:, None] * frequencies
            cos, sin = np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)
        return self.machine.arithmetic.array(cos), self.machine.arithmetic.array(sin)

    def _attention(self, number: int, prefix: str, states: F32, context: int, watch: Watch) -> None:
        ops, spec = self.machine.arithmetic, self.spec
        how, rotation = self._how(number)
        cos, sin = self._angles(context, rotation)
        names = [f"{prefix}attn_{role}" for role in ("q", "k", "v", "output")]
        wq, wk, wv, wo = (ops.weights(self.weights.whole(f"{name}.weight")) for name in names)
        bq, bk, bv, bo = map(self._bias, names)
        before = self._vector(f"{prefix}attn_norm")
        after = self._vector(f"{prefix}post_attention_norm")
        q_norm, k_norm = (self._vector(f"{prefix}attn_{role}_norm") for role in "qk")

        def heads(x: Array, weights: Array, bias: Array, norm: Array, width: int) -> Array:
            found = _plus(ops.linear(x, weights), bias).reshape(context, -1, width)
            return found if norm is None else ops.norm(found, norm, spec.eps)

        def attend(rows: slice) -> tuple[Any, Any]:
            h = ops.array(states[rows])
            x = ops.norm(h, before, spec.eps)
            q = heads(x, wq, bq, q_norm, spec.key_size)
            k = heads(x, wk, bk, k_norm, spec.key_size)
            v = heads(x, wv, bv, None, spec.value_size)
            q, k = (ops.rotate(a, cos, sin, is_paired=self.rule.is_paired) for a in (q, k))
            mixed = ops.attend(q, k, v, how)
            y = _plus(ops.linear(mixed, wo), bo)
            y = y if after is None else ops.norm(y, after, spec.eps)
            states[rows] = ops.values(h + y)
            return watch.moments(ops, x), watch.moments(ops, mixed)

        seen = self.machine.pool.each(sequences(states, context), attend)
        inputs, mixed = zip(*seen, strict=True)
        watch.add([f"{name}.weight" for name in names[:3]], states.shape[1], inputs)
        watch.add([f"{names[3]}.weight"], wo.shape[1], mixed)

    def _bias(self, name: str) -> Array:
        if f"{name}.bias" not in self.weights:
            return None
        return self.machine.arithmetic.array(self.weights.whole(f"{name}.bias").reshape(-1))

    def _feed_forward(self, prefix: str, states: F32, context: int, watch: Watch) -> None:
        ops, machine, eps = self.machine.arithmetic, self.machine, self.spec.eps
        before, after = (self._vector(f"{prefix}{role}") for role in ("ffn_norm", "post_ffw_norm"))
        x = machine.activations.empty(*states.shape)

        def normalize(rows: slice) -> None:
            x[rows] = ops.values(ops.norm(ops.array(states[rows]), before, eps))

        machine.pool.each(blocks(len(states)), normalize)
        gate, up, down = (f"{prefix}ffn_{role}.weight" for role in ("gate", "up", "down"))
        y = FeedForward(gate, up, down, self._activation).run(machine, self.weights, x, watch)

        def add(rows: slice) -> None:
            out = ops.array(y[rows])
            out = out if after is None else ops.norm(out, after, eps)
            states[rows] += ops.values(out)

        machine.pool.each(blocks(len(states)), add)


def _plus(x: Array, bias: Array) -> Array:
    return x if bias is None else x + bias
