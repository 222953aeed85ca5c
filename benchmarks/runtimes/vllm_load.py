#!/usr/bin/env python3
"""Load a directory with vLLM's own loader and compare every parameter with the safetensors.

vLLM's Grok loader skips tensors whose names it does not know, and then leaves a parameter as it was
allocated: "it loaded" says nothing. So every parameter is NaN before loading; afterwards each must
hold the bits of the tensors it is made of, in the model's dtype. The virtual environment that this
runs in is described in the README beside it.

    python benchmarks/runtimes/vllm_load.py DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import vllm
from safetensors import safe_open
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

Tensors = dict[str, torch.Tensor]
NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")


def read_tensors(directory: Path) -> Tensors:
    """Read every tensor of every file."""
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


def expected_parameters(tensors: Tensors, config: dict[str, int], dtype: torch.dtype) -> Tensors:
    """Make the parameters that vLLM should have: its names, its fused matrices, its dtype.

    Removes the tensors that it uses from `tensors`. Raises KeyError if one is missing.
    """

    def take(name: str) -> torch.Tensor:
        return tensors.pop(name).to(dtype)

    expected = {name: take(name) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        attn, moe = f"{at}.self_attn", f"{at}.block_sparse_moe"
        fused = f"{at}.moe_block.experts.routed_experts"
        for norm in NORMS:
            expected[f"{at}.{norm}.weight"] = take(f"{at}.{norm}.weight")
        expected[f"{at}.attn.qkv_proj.weight"] = torch.cat(
            [take(f"{attn}.{name}_proj.weight") for name in "qkv"]
        )
        expected[f"{at}.attn.o_proj.weight"] = take(f"{attn}.o_proj.weight")
        expected[f"{at}.moe_block.gate.weight"] = take(f"{moe}.gate.weight")
        experts = [f"{moe}.experts.{e}" for e in range(config["num_local_experts"])]
        expected[f"{fused}.w13_weight"] = torch.stack(
            [torch.cat([take(f"{e}.w1.weight"), take(f"{e}.w3.weight")]) for e in experts]
        )
        expected[f"{fused}.w2_weight"] = torch.stack([take(f"{e}.w2.weight") for e in experts])
    return expected


def load(directory: Path, dtype: str, prepare: Callable[[nn.Module], None]) -> nn.Module:
    """Build vLLM's model, let `prepare` change it, then run vLLM's loader over the directory.

    The dtype is said because vLLM's "auto" makes bfloat16 of float32 on a CPU.
    """
    engine = EngineArgs(
        model=str(directory), dtype=dtype, skip_tokenizer_init=True, enforce_eager=True
    ).create_engine_config()
    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(engine),
        set_default_torch_dtype(engine.model_config.dtype),
    ):
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        initialize_model_parallel(1, 1)
        model = initialize_model(engine)
        prepare(model)
        DefaultModelLoader(engine.load_config).load_weights(model, engine.model_config)
    return model


def fill_with_nan(model: nn.Module) -> None:
    """Make every parameter NaN, so that what the loader leaves out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def main() -> None:
    """Compare, print the counts as JSON, and fail unless every parameter is equal."""
    if len(sys.argv) != 2:
        sys.exit("usage: vllm_load.py DIRECTORY")
    directory = Path(sys.argv[1]).resolve()
    config = json.loads((directory / "config.json").read_bytes())
    model = load(directory, config["torch_dtype"], fill_with_nan)
    parameters = {name: p.detach() for name, p in model.named_parameters()}  # tied ones once
    tensors = read_tensors(directory)
    expected = expected_parameters(tensors, config, getattr(torch, config["torch_dtype"]))
    equal = {
        name
        for name in parameters.keys() & expected.keys()
        if same_bits(parameters[name], expected[name])
    }
    differing = sorted((parameters.keys() | expected.keys()) - equal)
    never_loaded = sorted(name for name, p in parameters.items() if p.isnan().any())
    result = {
        "vllm": vllm.__version__,
        "model": type(model).__name__,
        "dtype": config["torch_dtype"],
        "parameters_compared": len(parameters),
        "parameters_equal": len(equal),
        "parameters_never_loaded": len(never_loaded),
        "differing": differing,
        "never_loaded": never_loaded,
        "tensors_not_used": sorted(tensors),
    }
    print(json.dumps(result, indent=2))
    sys.exit(bool(differing or never_loaded))


if __name__ == "__main__":
    main()
