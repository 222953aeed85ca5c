"""Adapters as peft saves them, and models of Llama's architecture, written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests import gguf_files
from tests.gguf_files import Part, floats, string, u32

Shape = tuple[int, int]
HEADS, KV_HEADS = 4, 2
# A layer of the tiny Llama: modules in transformers, their tensors in GGUF, and [out, in].
LAYER: Mapping[str, tuple[str, Shape]] = {
    "self_attn.q_proj": ("attn_q", (64, 64)),
    "self_attn.k_proj": ("attn_k", (32, 64)),
    "self_attn.v_proj": ("attn_v", (32, 64)),
    "self_attn.o_proj": ("attn_output", (64, 64)),
    "mlp.gate_proj": ("ffn_gate", (96, 64)),
    "mlp.down_proj": ("ffn_down", (64, 96)),
    "mlp.up_proj": ("ffn_up", (96, 64)),
}


def float32(value: float) -> bytes:
    """A metadata value."""
    return struct.pack("<If", 6, value)


def llama_modules(layers: int = 2) -> dict[str, Shape]:
    """All linear layers of the tiny Llama."""
    return {
        f"model.layers.{n}.{module}": shape
        for n in range(layers)
        for module, (_, shape) in LAYER.items()
    }


def factors(
    modules: Mapping[str, Shape], rank: int = 4, seed: int = 1, dtype: Any = np.float32
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Random A [rank, in] and B [out, rank] of each module."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            (rng.standard_normal((rank, n_in)) / n_in**0.5).astype(dtype),
            (rng.standard_normal((n_out, rank)) / rank**0.5).astype(dtype),
        )
        for name, (n_out, n_in) in modules.items()
    }


def write_peft(
    folder: Path,
    modules: Mapping[str, Shape],
    *,
    rank: int = 4,
    seed: int = 1,
    dtype: Any = np.float32,
    ending: str = ".weight",
    extra: Mapping[str, NDArray[Any]] | None = None,
    **config: Any,
) -> Path:
    """Write an adapter's directory; `config` replaces values of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(extra or {})
    for name, (a, b) in factors(modules, rank, seed, dtype).items():
        tensors[f"base_model.model.{name}.lora_A{ending}"] = a
        tensors[f"base_model.model.{name}.lora_B{ending}"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    """Write config.json of the tiny Llama into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def llama_tensors(layers: int = 2, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The weights of the tiny Llama under their names in GGUF."""
    rng = np.random.default_rng(seed)

    def matrix(n_out: int, n_in: int) -> NDArray[np.float32]:
        return (rng.standard_normal((n_out, n_in)) / n_in**0.5).astype(np.float32)

    tensors = {"token_embd.weight": matrix(48, 64)}
    for n in range(layers):
        tensors[f"blk.{n}.attn_norm.weight"] = np.ones(64, np.float32)
        for stem, shape in LAYER.values():
            tensors[f"blk.{n}.{stem}.weight"] = matrix(*shape)
        tensors[f"blk.{n}.ffn_norm.weight"] = np.ones(64, np.float32)
    tensors["output_norm.weight"] = np.ones(64, np.float32)
    tensors["output.weight"] = matrix(48, 64)
    return tensors


def write_llama(path: Path, layers: int = 2, *, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a tiny Llama that llama.cpp runs, as F32."""
    key = f"{architecture}."
    metadata = {
        "general.architecture": string(architecture),
        f"{key}block_count": u32(layers),
        f"{key}context_length": u32(256),
        f"{key}embedding_length": u32(64),
        f"{key}feed_forward_length": u32(96),
        f"{key}attention.head_count": u32(HEADS),
        f"{key}attention.head_count_kv": u32(KV_HEADS),
        f"{key}attention.layer_norm_rms_epsilon": float32(1e-5),
        f"{key}rope.dimension_count": u32(16),
        f"{key}vocab_size": u32(48),
        "tokenizer.ggml.model": string("no_vocab"),
    }
    tensors = {name: floats(values) for name, values in llama_tensors(layers, seed).items()}
    return gguf_files.write(path, metadata, tensors)


def write_adapter(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    architecture: str = "llama",
    alpha: float | None = 8.0,
    **metadata: bytes,
) -> Path:
    """Write an adapter's GGUF file."""
    values = {
        "general.architecture": string(architecture),
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
    }
    if alpha is not None:
        values["adapter.lora.alpha"] = float32(alpha)
    parts: dict[str, Part] = {name: floats(array) for name, array in tensors.items()}
    return gguf_files.write(path, {**values, **metadata}, parts)


def interleaved(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Put the halves of each head's rows side by side, as llama.cpp wants those of q and k."""
    rows = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """b [..., out, rank] @ a [..., rank, in], each step in float32, in the order of the rank."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    total = b[..., :, 0:1] * a[..., 0:1, :]
    for rank in range(1, a.shape[-2]):
        total = total + b[..., :, rank : rank + 1] * a[..., rank : rank + 1, :]
    return total
