#!/usr/bin/env -S .venv/bin/python
"""The Python API on arrays: quantize, with and without importance, dequantize, measure.

Run it from the project's directory after `make demo`: examples/quantize_arrays.py
"""

from __future__ import annotations

import numpy as np

import weightcast
from weightcast.quant.arrays import type_named

try:
    import torch
except ImportError:
    torch = None


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def main() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 1024), np.float32)  # [out, in]
    importance = np.exp(2 * rng.standard_normal(1024, np.float32))  # how much each column matters

    print("type     bits/weight  rms error  weighted  weighted, with importance")
    for name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "IQ2_XS"):
        quant_type = type_named(name)
        bits = 8 * quant_type.block_bytes / quant_type.block_elements
        line = f"{name:8s} {bits:11.2f}"
        # Types that are told apart by a coarse grid cannot be made without importance.
        for given in (None, importance):
            if given is None and quant_type.importance == "required":
                line += "          -         -"
                continue
            blocks = weightcast.quantize(weights, name, given)
            error = weightcast.dequantize(blocks, name) - weights
            line += f"  {rms(error):9.4f}" if given is None else ""
            line += f"  {rms(error * np.sqrt(importance)):8.4f}"
        print(line)

    # All matrices of a stack at once, each with its own importance or one for all.
    experts = rng.standard_normal((4, 16, 512), np.float32)
    each = rng.random((4, 512), np.float32)
    blocks = weightcast.quantize(experts, "Q4_K", each)
    print(f"experts {experts.shape} become {blocks.shape} bytes")

    # Transposed views and torch tensors are read in place, bfloat16 too.
    same = weightcast.quantize(np.asfortranarray(weights), "Q4_K")
    assert np.array_equal(same, weightcast.quantize(weights, "Q4_K"))
    if torch is not None:
        tensor = torch.from_numpy(weights).to(torch.bfloat16)
        print(f"torch bfloat16: {weightcast.quantize(tensor, 'Q4_K').nbytes} bytes")

    weights[3, 5] = np.nan
    try:
        weightcast.quantize(weights, "Q4_K")
    except weightcast.LayoutError as refusal:
        print(f"refused: {refusal}")


if __name__ == "__main__":
    main()
