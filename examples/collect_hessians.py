#!/usr/bin/env -S .venv/bin/python
"""Collect the second moments of a model's inputs, which `--hessian` rounds weights by.

    pip install torch transformers safetensors gguf sentencepiece
    examples/collect_hessians.py MODEL TEXT hessians.safetensors
    weightcast convert MODEL model-Q4_K_M.gguf --hessian hessians.safetensors

MODEL is a directory of transformers, with its tokenizer, or a GGUF file that transformers reads. It
runs in float32 over windows of TEXT, as many as `--windows`; some tens of thousands of tokens will
do, of what the model is to be used for. For each linear layer H = sum of x x' over all inputs x
goes to the file, float32 [in, in], by the name that the layer's weight has in a GGUF file; experts
are stacked, [experts, in, in].
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# Names of GGUF by those of modules in Llama, Qwen, Mistral, Gemma and Grok-1. More are in
# gguf-py/gguf/tensor_mapping.py of llama.cpp.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
}
_MODULE = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<rest>.+)")


def gguf_name(module: str) -> tuple[str, int | None] | None:
    """Name a linear layer's weight as GGUF does, and say which expert it is of; None if unknown."""
    found = _MODULE.fullmatch(module)
    if found is None:
        return None
    expert = re.search(r"(?<=experts\.)\d+", found["rest"])
    rest = found["rest"] if expert is None else re.sub(r"(?<=experts\.)\d+", "*", found["rest"])
    name = NAMES.get(rest)
    if name is None:
        return None
    return f"blk.{found['layer']}.{name}.weight", None if expert is None else int(expert[0])


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Add up x x' of what goes into each linear layer, [in, in] in float64 by module name."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            size = module.in_features
            total = sums[name] = torch.zeros(size, size, dtype=torch.float64)

            def add(_: nn.Module, inputs: tuple[Tensor, ...], total: Tensor = total) -> None:
                x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
                total += (x.T @ x).to("cpu", torch.float64)

            hooks.append(module.register_forward_pre_hook(add))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run(model: nn.Module, windows: Iterable[Tensor]) -> None:
    """Run a model over windows of token ids."""
    for window in windows:
        model(window[None])


def in_gguf(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give sums the names of GGUF, float32, and stack those of experts."""
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for module, total in sums.items():
        named = gguf_name(module)
        if named is None:
            print(f"left out, for its name in GGUF is not known here: {module}")
        elif named[1] is None:
            found[named[0]] = total.float()
        else:
            experts[named[0]][named[1]] = total.float()
    for name, of in experts.items():
        found[name] = torch.stack([of[number] for number in range(len(of))])
    return found


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--window", type=int, default=512, help="tokens that see each other")
    parser.add_argument("--windows", type=int, default=128, help="the most windows")
    asked = parser.parse_args()
    folder, file = asked.model, {}
    if folder.is_file():
        folder, file = folder.parent, {"gguf_file": folder.name}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, **file)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True, **file
    ).eval()
    ids = torch.tensor(tokenizer(asked.text.read_text()).input_ids)
    windows = ids[: len(ids) // asked.window * asked.window].reshape(-1, asked.window)
    windows = windows[: asked.windows]
    if not len(windows):
        parser.error(f"{asked.text} has {len(ids)} tokens, less than one window of {asked.window}")
    with recorded(model) as sums:
        run(model, windows)
    hessians = in_gguf(sums)
    save_file(hessians, asked.output, {"tokens": str(windows.numel())})
    print(f"{asked.output}: {len(hessians)} tensors, {windows.numel():,} tokens")


if __name__ == "__main__":
    main()
