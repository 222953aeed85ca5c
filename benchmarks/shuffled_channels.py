"""Reorder a model's hidden channels, which changes none of its results.

Weights that come from a 4-bit file lie on the grid of its blocks, and a quantizer with the same
blocks finds that grid again: it would seem to lose nothing. In another order of the channels, a new
block has values of many old ones, as it would in a model that was never quantized. Reordered are
the channels of the residual stream, of each feed-forward layer and of each head's values; names and
shapes are those of llama.cpp's llama and gemma3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FROM_STREAM = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "token_embd", "output")
_TO_STREAM = ("attn_output", "ffn_down")
# Weights of norms over a head's own channels.
_OF_HEADS = ("attn_q_norm", "attn_k_norm")


def shuffle_channels(tensors: Mapping[str, NDArray[Any]], heads: int, kv_heads: int) -> None:
    """Reorder the channels of all tensors in place, matrices [out, in], always in one way.

    Raises KeyError for tensors of other architectures.
    """
    rng = np.random.default_rng(1)
    stream = rng.permutation(tensors["token_embd.weight"].shape[1])
    hidden: dict[str, NDArray[np.int64]] = {}
    values: dict[str, NDArray[np.int64]] = {}
    for name in sorted(tensors):
        if name.endswith("ffn_down.weight"):
            hidden[name[: -len("ffn_down.weight")]] = rng.permutation(tensors[name].shape[1])
        if name.endswith("attn_v.weight"):
            width = len(tensors[name]) // kv_heads
            orders = [rng.permutation(width) + head * width for head in range(kv_heads)]
            values[name[: -len("attn_v.weight")]] = np.concatenate(orders)
    for name, tensor in tensors.items():
        layer, _, role = name.removesuffix(".weight").rpartition(".")
        prefix = f"{layer}." if layer else ""
        if role in _OF_HEADS:
            continue
        if role.endswith("norm"):
            tensor[:] = tensor[stream]
        elif role in _FROM_STREAM:
            tensor[:] = tensor[:, stream]
        elif role in _TO_STREAM:
            tensor[:] = tensor[stream]
        else:
            raise KeyError(name)
        if role in ("ffn_gate", "ffn_up"):
            tensor[:] = tensor[hidden[prefix]]
        elif role == "ffn_down":
            tensor[:] = tensor[:, hidden[prefix]]
        elif role == "attn_v":
            tensor[:] = tensor[values[prefix]]
        elif role == "attn_output":
            tensor[:] = tensor[:, _per_query_head(values[prefix], heads, kv_heads)]


def _per_query_head(order: NDArray[np.int64], heads: int, kv_heads: int) -> NDArray[np.int64]:
    """Repeat the order of each head of keys and values for the query heads that share it."""
    width = len(order) // kv_heads
    within = order.reshape(kv_heads, width) % width
    found = [within[head * kv_heads // heads] + head * width for head in range(heads)]
    return np.concatenate(found)
