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

from weightcast.converters.graph import TensorGraph
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.evaluation.arithmetic import F32, Array, Attention
from weightcast.evaluation.networks.checks import Shape, check_keys, check_tensors
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
from weightcast.text import count, option, shown


@dataclass(frozen=True, slots=True)
class Rule:
    """How an architecture differs from others.

    Rotary components turn in neighbouring pairs if `is_paired`, else with the one half a head away.
    Heads of queries and keys are normalized if `has_head_norms`, and what attention and
    feed-forward give if `has_post_norms`. With a `window_period`, of so many layers all but the
    last see only a window, with a rotary base of their own, unless a file says otherwise.
    """

    is_paired: bool
    activation: str
    has_head_norms: bool = False
    has_post_norms: bool = False
    has_output_bias: bool = False
    has_rope_factors: bool = False
    scales_embedding: bool = False
    window_period: int | None = None


RULES: Final[Mapping[str, Rule]] = {
    "llama": Rule(is_paired=True, activation="silu", has_output_bias=True, has_rope_factors=True),
    "qwen2": Rule(is_paired=False, activation="silu"),
    "qwen3": Rule(is_paired=False, activation="silu", has_head_norms=True),
    "gemma3": Rule(
        is_paired=False,
        activation="gelu",
        has_head_norms=True,
        has_post_norms=True,
        scales_embedding=True,
        window_period=6,
    ),
}
# Of this many layers is Gemma 3 27B, whose scores are scaled by the width of its embedding.
_GEMMA3_27B_LAYERS: Final = 62
_WINDOW_ROPE_BASE: Final = 10000.0
_LARGEST: Final = 1 << 31
_USED_KEYS: Final = frozenset(
    (
        *("block_count", "embedding_length"),
        *("attention.head_count", "attention.head_count_kv"),
        *("attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "attention.sliding_window"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
        *("rope.scaling.type", "rope.scaling.factor"),
    )
)
_WINDOW_KEYS: Final = frozenset(("attention.sliding_window_pattern", "rope.freq_base_swa"))


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions of some layers: components that turn, their base, a scale of positions."""

    width: int
    base: float
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Windows:
    """What the layers with a window have for their own: who they are, and their positions."""

    layers: frozenset[int]
    rotation: Rotation


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A dense network's hyperparameters, as its metadata tell them.

    Without `windows` no layer has one. The model was trained with a window of `trained_window`
    positions that llama.cpp does not apply, if that is given.
    """

    num_layers: int
    emb_size: int
    num_q_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    eps: float
    rotation: Rotation
    attention: Attention
    windows: Windows | None = None
    trained_window: int | None = None


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Numbers of an architecture in metadata. Raises LayoutError for what is none."""

    values: Mapping[str, Any]
    architecture: str

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Give a whole number."""
        value = self._get(name, default)
        if not isinstance(value, int) or not least <= value < _LARGEST:
            raise self._wrong(name, value, f"a whole number from {least:,} on")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Give a number from 0 on."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self._wrong(name, value, "a number from 0 on")
        return float(value)

    def any(self, name: str) -> Any:
        """Give a value of any kind; None if it is absent."""
        return self.values.get(f"{self.architecture}.{name}")

    def _get(self, name: str, default: float | None) -> Any:
        value = self.any(name)
        if value is None and default is None:
            raise LayoutError(f"has no {self.architecture}.{name}")
        return default if value is None else value

    def _wrong(self, name: str, value: object, wanted: str) -> LayoutError:
        return LayoutError(f"{self.architecture}.{name} is {shown(value)}, not {wanted}")


def hyperparameters(values: Mapping[str, Any], architecture: str) -> Hyperparameters:
    """Read them out of a GGUF file's metadata. Raises LayoutError for what cannot be run.

    Source of keys and defaults: load_hparams in src/llama-model.cpp.
    """
    rule, metadata = RULES[architecture], _Metadata(values, architecture)
    if metadata.whole("expert_count", 0, least=0):
        raise LayoutError(f"{architecture} with experts cannot be run")
    check_keys(values, architecture, _USED_KEYS | (_WINDOW_KEYS if rule.window_period else set()))
    emb_size, heads = metadata.whole("embedding_length"), metadata.whole("attention.head_count")
    layers, kv_heads = (
        metadata.whole("block_count"),
        metadata.whole("attention.head_count_kv", heads),
    )
    if heads % kv_heads:
        raise LayoutError(f"{heads} heads cannot share {kv_heads} of keys and values")
    key_size = metadata.whole("attention.key_length", emb_size // heads)
    rotation = _rotation(metadata, key_size)
    window = metadata.whole("attention.sliding_window", 0, least=0) or None
    windows = None
    if window and rule.window_period:
        base = metadata.number("rope.freq_base_swa", _WINDOW_ROPE_BASE)
        own = Rotation(rotation.width, base)
        windows = Windows(_windowed(metadata, layers, rule.window_period), own)
    scaled_by = key_size
    if architecture == "gemma3" and layers == _GEMMA3_27B_LAYERS:
        scaled_by = emb_size // heads
    return Hyperparameters(
        layers,
        emb_size,
        heads,
        kv_heads,
        key_size,
        metadata.whole("attention.value_length", emb_size // heads),
        metadata.number("attention.layer_norm_rms_epsilon"),
        rotation,
        Attention(1 / math.sqrt(scaled_by), window=window if windows else None),
        windows,
        None if windows else window,
    )


def _rotation(metadata: _Metadata, key_size: int) -> Rotation:
    # A factor without a type is one of linear scaling.
    scaling = metadata.any("rope.scaling.type") or "linear"
    if scaling not in ("none", "linear"):
        raise LayoutError(f"rotary positions scaled by {shown(scaling)} cannot be run")
    older = metadata.number("rope.scale_linear", 0)
    factor = metadata.number("rope.scaling.factor", older) if scaling == "linear" else 0.0
    width, base = (
        metadata.whole("rope.dimension_count", key_size),
        metadata.number("rope.freq_base", 10000.0),
    )
    if width % 2 or width > key_size or not base:
        raise LayoutError(f"{width} rotary components of base {base:g} in heads of {key_size}")
    return Rotation(width, base, 1 / factor if factor else 1.0)


def _windowed(metadata: _Metadata, layers: int, period: int) -> frozenset[int]:
    """Tell which layers see a window: by a pattern for each, or all but one of a period."""
    pattern = metadata.any("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, int):
        flags = [bool(flag) for flag in pattern]
        if len(flags) != layers:
            raise LayoutError(f"{len(flags)} flags of sliding windows for {layers} layers")
        return frozenset(n for n, flag in enumerate(flags) if flag)
    period = metadata.whole("attention.sliding_window_pattern", period, least=0)
    return frozenset(n for n in range(layers) if not period or n % period < period - 1)


def check_dense(graph: TensorGraph, spec: Hyperparameters, rule: Rule) -> None:
    """Refuse a model with other tensors than llama.cpp computes with.

    Raises LayoutError, MissingTensorError.
    """
    if spec.num_layers > len(graph.tensors):
        raise MissingTensorError(
            f"{graph.source}: {count(len(graph.tensors), 'tensor')} for {spec.num_layers:,} layers"
        )
    emb = spec.emb_size
    q, k = spec.num_q_heads * spec.key_size, spec.num_kv_heads * spec.key_size
    v, mixed = spec.num_kv_heads * spec.value_size, spec.num_q_heads * spec.value_size
    in_layer: dict[str, Shape] = {
        "attn_norm.weight": (emb,),
        "attn_q.weight": (q, emb),
        "attn_k.weight": (k, emb),
        "attn_v.weight": (v, emb),
        "attn_output.weight": (emb, mixed),
        "ffn_norm.weight": (emb,),
    }
    if rule.has_head_norms:
        norm = (spec.key_size,)
        in_layer |= {"attn_q_norm.weight": norm, "attn_k_norm.weight": norm}
    if rule.has_post_norms:
        in_layer |= {"post_attention_norm.weight": (emb,), "post_ffw_norm.weight": (emb,)}
    maybe: dict[str, Shape] = {"attn_q.bias": (q,), "attn_k.bias": (k,), "attn_v.bias": (v,)}
    if rule.has_output_bias:
        maybe["attn_output.bias"] = (emb,)
    required, optional = _by_layer(spec.num_layers, in_layer), _by_layer(spec.num_layers, maybe)
    for n in range(spec.num_layers):
        gate = f"blk.{n}.ffn_gate.weight"
        hidden = _rows(graph, gate)
        up = {gate: (hidden, emb), f"blk.{n}.ffn_up.weight": (hidden, emb)}
        required |= {**up, f"blk.{n}.ffn_down.weight": (emb, hidden)}
    vocab_size = _rows(graph, "token_embd.weight")
    required |= {"token_embd.weight": (vocab_size, emb), "output_norm.weight": (emb,)}
    optional["output.weight"] = (vocab_size, emb)
    if rule.has_rope_factors:
        optional["rope_freqs.weight"] = (spec.rotation.width // 2,)
    factors = graph.factors
    check_tensors(graph, required.items(), optional, factors.names | factors.input_scales)


def _rows(graph: TensorGraph, name: str) -> int:
    """Give the rows of a matrix, which nothing else tells; -1 if it is none."""
    shape = graph.tensors[name].shape if name in graph.tensors else ()
    return shape[-2] if len(shape) >= 2 else -1


def _by_layer(layers: int, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"blk.{n}.{name}": shape for n in range(layers) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Dense:
    """See `Network`."""

    weights: Weights
    machine: Machine
    spec: Hyperparameters
    rule: Rule

    @property
    def source(self) -> str:
        return self.weights.graph.source

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def emb_size(self) -> int:
        return self.spec.emb_size

    @property
    def vocab_size(self) -> int:
        return self.weights.shape("token_embd.weight")[-2]

    @property
    def ends(self) -> tuple[str, str]:
        own_head = "output.weight" in self.weights
        return "token_embd.weight", "output.weight" if own_head else "token_embd.weight"

    def embed(self, tokens: Ids) -> F32:
        states = self.machine.activations.empty(len(tokens), self.emb_size)
        self.weights.rows_into("token_embd.weight", tokens, states)
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

    def _check_context(self, context: int) -> None:
        trained = self.spec.trained_window
        if self.spec.windows is None and trained is not None and trained < context:
            raise LayoutError(
                f"{self.source}: was trained with a window of {trained:,} tokens, "
                "which llama.cpp does not apply; give chunks no longer than that "
                f"({option('context', trained)})"
            )

    def _how(self, number: int) -> tuple[Attention, Rotation]:
        spec = self.spec
        if spec.windows is None:
            return spec.attention, spec.rotation
        if number in spec.windows.layers:
            return spec.attention, spec.windows.rotation
        return replace(spec.attention, window=None), spec.rotation

    def _angles(self, context: int, rotation: Rotation) -> tuple[Array, Array]:
        factors = None
        if "rope_freqs.weight" in self.weights:
            # Llama 3.1 divides frequencies by factors that its files have as a tensor.
            factors = self.weights.whole("rope_freqs.weight").reshape(-1).astype(np.float64)
        found = angles(context, rotation.width, rotation.base, rotation.scale, factors)
        cos, sin = map(self.machine.arithmetic.array, found)
        return cos, sin

    def _attention(self, number: int, prefix: str, states: F32, context: int, watch: Watch) -> None:
        ops, spec = self.machine.arithmetic, self.spec
        self._check_context(context)
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
