#!/usr/bin/env -S .venv/bin/python
"""Quantize torch tensors where they are, on a CUDA device, and check them against the CPU.

Needs a CUDA device, torch built for it, and pip install 'weightcast[cuda]'. Without a device it
says so and shows the same on the CPU. Run it from the project's directory after `make demo`.
"""

from __future__ import annotations

import sys

import weightcast

try:
    import torch
except ImportError:
    sys.exit("this example needs torch: pip install torch")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"quantizing on {torch.cuda.get_device_name() if device == 'cuda' else 'the CPU'}")
    torch.manual_seed(0)

    # [out, in], as nn.Linear keeps its weight. Nothing is copied; work is enqueued on the current
    # stream, and the call returns when the rows are there.
    weight = torch.randn(4096, 6144, device=device).to(torch.bfloat16)
    rows = weightcast.quantize(weight, "Q4_K")
    print(f"{tuple(weight.shape)} {weight.dtype} becomes {tuple(rows.shape)} {rows.dtype}")

    # The bytes are those that the CPU makes.
    same = weightcast.quantize(weight[:64].cpu(), "Q4_K").to(device)
    assert torch.equal(rows[:64], same)

    # All experts at once, each with its own importance; transposed views are read in place.
    experts = torch.randn(
        8, 6144, 512, device=device
    ).mT  # [experts, out, in] of stored [.., in, out]
    importance = torch.rand(8, 6144, device=device)
    blocks = weightcast.quantize(experts, "IQ2_XXS", importance)
    print(f"experts {tuple(experts.shape)} become {tuple(blocks.shape)}")

    # And back to float32.
    for name in ("Q8_0", "Q6_K", "Q4_K", "IQ4_XS", "MXFP4"):
        values = weightcast.dequantize(weightcast.quantize(weight, name), name)
        error = values - weight.float()
        print(f"{name:7s} rms error {error.square().mean().sqrt().item():.4f}")

    weight[3, 5] = torch.inf
    try:
        weightcast.quantize(weight, "Q4_K")
    except weightcast.LayoutError as refusal:
        print(f"refused: {refusal}")


if __name__ == "__main__":
    main()
