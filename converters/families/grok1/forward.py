"""Grok-1's mathematics in float32 numpy over any graph: the oracle between artifacts.

One matrix is in memory at a time, so the whole release runs (slowly) where it could never be held.
Source: model.py in xai-org/grok-1, with its bf16 rounding left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightcast.converters.families.grok1.spec import Grok1Spec, grok1_spec
from weightcast.converters.families.grok1.synthetic import sample_tokens
from weightcast.converters.graph import TensorGraph, take
from weightcast.converters.graph.read import load_float32
from weightcast.errors import CheckpointError, LayoutError

# Float32 throughout; numpy's stubs lose track of it in mixed expressions.
Floats = NDArray[np.floating[Any]]
# A tensor by name, or one expert of it, as float32 [out, in].
Load = Callable[..., Floats]
# Where two experts are closer than this, rounding decides between them, in any implementation.
_ROUTING_MARGIN: Final = 5e-3
_TRIES: Final = 50
_SEQUENCES, _POSITIONS = 4, 24


@dataclass(frozen=True, slots=True)
class Result:
    """Logits [sequences, positions, vocab], and how far each position's routing was from a tie.

    `margins` [sequences, positions] is the least distance, over the layers, between the router
    logits of the last expert chosen and the first one not chosen.
    """

    logits: Floats
    margins: Floats


def logits(graph: TensorGraph, tokens: ArrayLike) -> Floats:
    """Compute logits [sequences, positions, vocab] for token ids [sequences, positions]."""
    return run(graph, tokens).logits


def run(graph: TensorGraph, tokens: ArrayLike) -> Result:
    """Run the model over a graph. Raises LayoutError for token ids outside the vocabulary."""

    def load(name: str, expert: int | None = None) -> Floats:
        tensor = graph[name]
        return load_float32(tensor if expert is None else take(tensor, expert))

    return forward(grok1_spec(graph.spec), load, tokens)


def clear_tokens(graph: TensorGraph, seed: int) -> NDArray[np.int64]:
    """Draw token ids [sequences, positions] that no routing decision is close for."""
    rng = np.random.default_rng(seed)
    chosen: list[NDArray[np.int64]] = []
    for _ in range(_TRIES):
        tokens = sample_tokens(rng, graph.spec.describe(), _SEQUENCES, _POSITIONS)
        margins = run(graph, tokens).margins
        chosen += [row for row, m in zip(tokens, margins, strict=True) if m.min() > _ROUTING_MARGIN]
        if len(chosen) >= _SEQUENCES:
            return np.stack(chosen[:_SEQUENCES])
    raise CheckpointError("found no token ids with clear routing")


def gelu_tanh(x: Floats) -> Floats:
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def forward(
    spec: Grok1Spec, load: Load, tokens: ArrayLike, gelu: Callable[[Floats], Floats] = gelu_tanh
) -> Result:
    """Run the model with weights from `load(name)` and `load(name, expert)`."""
    ids = np.atleast_2d(np.asarray(tokens))
    if ids.size and not 0 <= ids.min() <= ids.max() < spec.vocab_size:
        raise LayoutError(f"token ids must lie in [0, {spec.vocab_size})")
    table = load("token_embd.weight")
    h = table[ids] * np.float32(spec.embedding_multiplier_scale)
    margins = np.full(ids.shape, np.inf, np.float32)
    for layer in range(spec.num_layers):
        name = f"blk.{layer}."
        a = _attention(spec, load, name, _norm(spec, h, load(name + "attn_norm.weight")))
        h = h + _norm(spec, a, load(name + "attn_output_norm.weight"))
        x = _norm(spec, h, load(name + "ffn_norm.weight"))
        y, margin = _experts(spec, load, name, x, gelu)
        margins = np.minimum(margins, margin)
        h = h + _norm(spec, y, load(name + "post_ffw_norm.weight"))
    h = _norm(spec, h, load("output_norm.weight"))
    logits: Floats = h @ table.T * np.float32(spec.output_multiplier_scale)
    return Result(logits, margins)


def _norm(spec: Grok1Spec, x: Floats, scale: Floats) -> Floats:
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    result: Floats = x / np.sqrt(mean_square + np.float32(spec.rms_norm_eps)) * scale
    return result


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Floats = e / e.sum(axis=-1, keepdims=True)
    return result


def _rotate(spec: Grok1Spec, x: Floats) -> Floats:
    """Rotary positions, half-split: component i turns with component i + key_size / 2."""
    half = spec.key_size // 2
    frequency = spec.rope_base ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.arange(x.shape[1])[:, None] * frequency
    cos = np.cos(angle).astype(np.float32)[None, :, None, :]
    sin = np.sin(angle).astype(np.float32)[None, :, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _attention(spec: Grok1Spec, load: Load, name: str, x: Floats) -> Floats:
    n, t, _ = x.shape
    kv_heads, group = spec.num_kv_heads, spec.num_q_heads // spec.num_kv_heads

    def heads(projection: str, count: int) -> Floats:
        values: Floats = x @ load(name + projection).T
        return values.reshape(n, t, count, spec.key_size)

    q = _rotate(spec, heads("attn_q.weight", spec.num_q_heads))
    k = _rotate(spec, heads("attn_k.weight", kv_heads))
    v = heads("attn_v.weight", kv_heads)
    # Query heads [j * group, (j + 1) * group) share key/value head j.
    q = q.reshape(n, t, kv_heads, group, spec.key_size)
    scores: Any = np.einsum("ntkgd,nskd->nkgts", q, k, optimize=True)
    scores = scores * np.float32(spec.attn_output_multiplier)
    cap = np.float32(spec.attn_logit_cap)
    scores = cap * np.tanh(scores / cap)
    causal = np.tril(np.ones((t, t), bool))
    weights = _softmax(np.where(causal, scores, np.float32(-1e30)))
    mixed = np.einsum("nkgts,nskd->ntkgd", weights, v, optimize=True)
    result: Floats = mixed.reshape(n, t, -1) @ load(name + "attn_output.weight").T
    return result


def _experts(
    spec: Grok1Spec, load: Load, name: str, x: Floats, gelu: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    router_logits = x @ load(name + "ffn_gate_inp.weight").T
    p = _softmax(router_logits)
    top = spec.num_selected_experts
    order = np.argsort(-p, axis=-1, kind="stable")
    margin: Floats = np.full(x.shape[:2], np.inf, np.float32)
    if top < spec.num_experts:
        ranked = np.take_along_axis(router_logits, order, axis=-1)
        margin = ranked[..., top - 1] - ranked[..., top]
    y = np.zeros_like(x)
    for expert in range(spec.num_experts):
        at = (order[..., :top] == expert).any(axis=-1)
        if not at.any():
            continue
        chosen = x[at]
        gate = gelu(chosen @ load(name + "ffn_gate_exps.weight", expert).T)
        up = chosen @ load(name + "ffn_up_exps.weight", expert).T
        down = (gate * up) @ load(name + "ffn_down_exps.weight", expert).T
        # The probabilities are those over all experts, not renormalized over the chosen ones.
        y[at] += p[at, expert, None] * down
    return y, margin
