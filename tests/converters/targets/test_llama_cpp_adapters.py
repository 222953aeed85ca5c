"""Real llama.cpp: a model beside its adapter, and the model that the adapter is merged into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.adapters import llama_modules, write_adapter, write_llama, write_peft
from weightcast.commands import llama_cpp
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.errors import CheckpointError

# Largest difference of logits of some units; sums of llama.cpp have another order.
MAX_DIFFERENCE = 1e-3


def check(base: Path, adapter: Path, merged: Path, n_vocab: int, scale: float) -> None:
    """Hold both ways against each other, and make sure that the adapter changes something."""
    tokens = [np.random.default_rng(4).integers(0, n_vocab, 12).tolist()]
    beside = llama_cpp.logits(base, tokens, adapters={adapter: scale})
    whole, without = llama_cpp.logits(merged, tokens), llama_cpp.logits(base, tokens)
    assert np.abs(beside - whole).max() < MAX_DIFFERENCE
    assert np.abs(without - whole).max() > 100 * MAX_DIFFERENCE


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_llamas_heads(tmp_path: Path, architecture: str, scale: float) -> None:
    """llama.cpp rotates neighbours in Llama and halves in Qwen2, whose rows stay."""
    base = write_llama(tmp_path / "m.gguf", architecture=architecture)
    adapter = write_peft(tmp_path / "a", llama_modules(), lora_alpha=3)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=base)
    weightcast.convert(base, tmp_path / "m-F32.gguf", lora={adapter: scale})
    check(base, tmp_path / "a-F32.gguf", tmp_path / "m-F32.gguf", 48, scale)


def test_groks_experts(tmp_path: Path) -> None:
    source = tmp_path / "grok"
    write_checkpoint(source, tiny_spec(), seed=3)
    sizes = {n: t.shape for n, t in weightcast.open(source).items()}
    modules = {}
    for n in range(2):
        for word in ("q", "k", "v"):
            n_out, n_in = sizes[f"blk.{n}.attn_{word}.weight"]
            modules[f"model.layers.{n}.self_attn.{word}_proj"] = (n_out, n_in)
        for word, stem in {"w1": "gate", "w2": "down", "w3": "up"}.items():
            n_experts, n_out, n_in = sizes[f"blk.{n}.ffn_{stem}_exps.weight"]
            for e in range(n_experts):
                modules[f"model.layers.{n}.block_sparse_moe.experts.{e}.{word}"] = (n_out, n_in)
    adapter = write_peft(tmp_path / "a", modules, use_rslora=True)
    plain, merged = tmp_path / "g-F32.gguf", tmp_path / "m-F32.gguf"
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=source)
    weightcast.convert(source, plain, no_tokenizer=True)
    weightcast.convert(source, merged, no_tokenizer=True, lora=adapter)
    check(plain, tmp_path / "a-F32.gguf", merged, 1024, 1.0)


def test_llama_cpp_refuses_another_models_adapter(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "m.gguf")
    arrays = {
        "blk.7.ffn_up.weight.lora_a": np.ones((2, 64), np.float32),
        "blk.7.ffn_up.weight.lora_b": np.ones((96, 2), np.float32),
    }
    adapter = write_adapter(tmp_path / "a.gguf", arrays)
    with pytest.raises(CheckpointError, match=r"does not load .*a\.gguf"):
        llama_cpp.logits(base, [[1]], adapters={adapter: 1.0})
