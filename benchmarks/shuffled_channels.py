"""Reorder a model's hidden channels, which changes none of its results.

Weights that come from a 4-bit file lie on the grid of its blocks, and a quantizer with the same
blocks finds that grid again: it would seem to lose nothing. In another order of the channels, a new
block has values of many old ones, as it would in a model that was never quantized. Each order also
rounds a model in another way, which tells how much of a result is the luck of one rounding.
Reordered are the channels of the residual stream, of each feed-forward layer and of each head's
values; names and shapes are those of llama.cpp's llama, gemma3 and grok, or of a BERT's modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL_ORDER = 1
_OF_EXPERTS = "_exps"
_FROM_STREAM = (
    *("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_gate_inp", "token_embd", "output"),
)
_TO_STREAM = ("attn_output", "ffn_down")
# Weights of norms over a head's own channels.
_OF_HEADS = ("attn_q_norm", "attn_k_norm")


def shuffle_channels(
    tensors: Mapping[str, NDArray[Any]], heads: int, kv_heads: int, order: int = USUAL_ORDER
) -> None:
    """Reorder the channels of all tensors in place, matrices [out, in] or [experts, out, in].

    Each number of an `order` is another one, always the same. Raises KeyError for tensors of other
    architectures.
    """
    rng = np.random.default_rng(order)
    stream = rng.permutation(tensors["token_embd.weight"].shape[1])
    hidden: dict[str, NDArray[np.int64]] = {}
    values: dict[str, NDArray[np.int64]] = {}
    for name in sorted(tensors):
        layer, role = _layer_and_role(name)
        if role == "ffn_down":
            hidden[layer] = rng.permutation(tensors[name].shape[-1])
        if role == "attn_v":
            values[layer] = _within_heads(rng, len(tensors[name]), kv_heads)
    for name, tensor in tensors.items():
        layer, role = _layer_and_role(name)
        if role in _OF_HEADS:
            continue
        if role.endswith("norm"):
            tensor[:] = tensor[stream]
        elif role in _FROM_STREAM:
            tensor[:] = tensor[..., stream]
        elif role in _TO_STREAM:
            tensor[:] = tensor[..., stream, :]
        else:
            raise KeyError(name)
        if role in ("ffn_gate", "ffn_up"):
            tensor[:] = tensor[..., hidden[layer], :]
        elif role == "ffn_down":
            tensor[:] = tensor[..., hidden[layer]]
        elif role == "attn_v":
            tensor[:] = tensor[values[layer]]
        elif role == "attn_output":
            tensor[:] = tensor[:, _per_query_head(values[layer], heads, kv_heads)]


def shuffle_bert(tensors: Mapping[str, NDArray[Any]], heads: int, order: int) -> None:
    """Reorder the channels of a BERT's parameters in place, those of its embeddings with them.

    Raises KeyError for parameters of other modules.
    """
    rng = np.random.default_rng(order)
    stream = rng.permutation(tensors["embeddings.word_embeddings.weight"].shape[1])
    hidden: dict[str, NDArray[np.int64]] = {}
    values: dict[str, NDArray[np.int64]] = {}
    for name in sorted(tensors):
        layer = _bert_layer(name)
        if name.endswith("intermediate.dense.bias"):
            hidden[layer] = rng.permutation(len(tensors[name]))
        if name.endswith("self.value.bias"):
            values[layer] = _within_heads(rng, len(tensors[name]), heads)
    for name, tensor in tensors.items():
        layer = _bert_layer(name)
        module, _, part = name.rpartition(".")
        rows, columns = _bert_orders(name, stream, hidden.get(layer), values.get(layer))
        if rows is not None:
            tensor[:] = tensor[rows]
        if columns is not None and part == "weight" and not module.endswith("LayerNorm"):
            tensor[:] = tensor[:, columns]


_Order = NDArray[np.int64] | None


def _bert_orders(
    name: str, stream: NDArray[np.int64], hidden: _Order, values: _Order
) -> tuple[_Order, _Order]:
    """Give the orders of a parameter's rows and columns. Raises KeyError for what it is not."""
    module = name.rpartition(".")[0]
    if module.endswith("LayerNorm"):
        return stream, None
    if module.endswith("_embeddings"):
        return None, stream
    for ending, orders in {
        "self.query": (None, stream),
        "self.key": (None, stream),
        "self.value": (values, stream),
        "attention.output.dense": (stream, values),
        "intermediate.dense": (hidden, stream),
        "output.dense": (stream, hidden),
        "pooler.dense": (None, stream),
    }.items():
        if module.endswith(ending):
            return orders
    raise KeyError(name)


def _bert_layer(name: str) -> str:
    return ".".join(name.split(".")[:3])


def _layer_and_role(name: str) -> tuple[str, str]:
    """Split a name of GGUF: the prefix of its layer, and what it is there, of experts too."""
    layer, _, role = name.removesuffix(".weight").rpartition(".")
    return layer, role.removesuffix(_OF_EXPERTS)


def _within_heads(rng: np.random.Generator, rows: int, heads: int) -> NDArray[np.int64]:
    """Draw an order of rows in which each stays in its head."""
    width = rows // heads
    return np.concatenate([rng.permutation(width) + head * width for head in range(heads)])


def _per_query_head(order: NDArray[np.int64], heads: int, kv_heads: int) -> NDArray[np.int64]:
    """Repeat the order of each head of keys and values for the query heads that share it."""
    width = len(order) // kv_heads
    within = order.reshape(kv_heads, width) % width
    found = [within[head * kv_heads // heads] + head * width for head in range(heads)]
    return np.concatenate(found)
