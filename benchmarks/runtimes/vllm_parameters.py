"""The parameters that vLLM's Grok model should hold after it loaded a directory.

vLLM renames modules, concatenates q, k and v, and each expert's w1 (gate) and w3 (up) as w13, and
stacks experts. It holds the experts' integers of compressed-tensors (and their scales) transposed,
all else as it lies in the file, in dtypes of its own. The parts are those of formats/packed_*.py.
"""

from __future__ import annotations

import re

import torch

Tensors = dict[str, torch.Tensor]
# What a parameter may be: alternatives, as of shapes only the part loaded last stays.
Expected = dict[str, tuple[torch.Tensor, ...]]

_NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
# The output channels' axis of each part; None: the part says something of the whole matrix.
_OUT_AXIS: dict[str, int | None] = {
    "weight": 0,
    "weight_packed": 0,
    "weight_scale": 0,
    "weight_zero_point": 0,
    "weight_global_scale": 0,
    "weight_shape": None,
    "qweight": 1,
    "qzeros": 1,
    "scales": 1,
    "g_idx": None,
}
# Parameters that no checkpoint of ours has: vLLM makes the orders of columns when it repacks for
# its kernels, and keeps the defaults for scales and zero points of a quantized KV cache. Scales of
# the experts' inputs in NVFP4 have room even where kernels take the inputs as floats.
_NOT_STORED = re.compile(
    r".*(_g_idx_sort_indices|_weight_g_idx|_input_global_scale|\.attn\.attn\.(q|k|v|prob)_(scale|zero_point))"
)


def is_stored(name: str) -> bool:
    """Whether a parameter comes from the checkpoint."""
    return _NOT_STORED.fullmatch(name) is None


def expected_parameters(tensors: Tensors, config: dict[str, int]) -> Expected:
    """Make the parameters that vLLM should have: its names, its fused matrices.

    Removes the tensors that it uses from `tensors`. Raises KeyError if one is missing.
    """
    expected: Expected = {
        name: (tensors.pop(name),) for name in ("model.embed_tokens.weight", "model.norm.weight")
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        attn, moe = f"{at}.self_attn", f"{at}.block_sparse_moe"
        fused = f"{at}.moe_block.experts.routed_experts"
        for norm in _NORMS:
            expected[f"{at}.{norm}.weight"] = (tensors.pop(f"{at}.{norm}.weight"),)
        qkv = [_take(tensors, f"{attn}.{name}_proj") for name in "qkv"]
        for part in qkv[0]:
            expected[f"{at}.attn.qkv_proj.{part}"] = _fused(part, [m[part] for m in qkv])
        for part, tensor in _take(tensors, f"{attn}.o_proj").items():
            expected[f"{at}.attn.o_proj.{part}"] = (tensor,)
        expected[f"{at}.moe_block.gate.weight"] = (tensors.pop(f"{moe}.gate.weight"),)
        experts = [f"{moe}.experts.{e}" for e in range(config["num_local_experts"])]
        for name, sources in {"w13": ("w1", "w3"), "w2": ("w2",)}.items():
            matrices = [[_take(tensors, f"{e}.{s}") for s in sources] for e in experts]
            transposed = _transposed(matrices[0][0])
            for part in matrices[0][0]:
                stack = _stacked(part, [[m[part] for m in expert] for expert in matrices])
                stack = stack.mT if part in transposed else stack
                # One number for an expert has no axis of its own.
                stack = stack.squeeze(1) if part == "weight_global_scale" else stack
                expected[f"{fused}.{name}_{part}"] = (stack,)
    return expected


def _transposed(matrix: Tensors) -> tuple[str, ...]:
    """Name the parts of an expert's matrix that vLLM holds as [in, out]: those of integers."""
    packed = matrix.get("weight_packed")
    is_integer = packed is not None and packed.dtype == torch.int32
    return ("weight_packed", "weight_scale", "weight_zero_point") if is_integer else ()


def _take(tensors: Tensors, module: str) -> Tensors:
    """Take a matrix's parts out: names after the module's, and at least one."""
    names = [name for name in tensors if name.rpartition(".")[0] == module]
    if not names:
        raise KeyError(module)
    return {name.rpartition(".")[2]: tensors.pop(name) for name in names}


def _fused(part: str, matrices: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    axis = _OUT_AXIS[part]
    return tuple(matrices) if axis is None else (torch.cat(matrices, axis),)


def _stacked(part: str, experts: list[list[torch.Tensor]]) -> torch.Tensor:
    """Stack experts, each [w1, w3] or [w2]; the two agree on what is said of whole matrices."""
    wholes = []
    for matrices in experts:
        alternatives = _fused(part, matrices)
        if any(not torch.equal(alternatives[0], other) for other in alternatives[1:]):
            raise ValueError(f"w1 and w3 have different {part}")
        wholes.append(alternatives[0])
    return torch.stack(wholes)
