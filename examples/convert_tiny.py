#!/usr/bin/env -S .venv/bin/python
"""The Python API on a tiny checkpoint: open, look, convert, read back, quantize an array.

Run it from the project's directory after `make demo`: examples/convert_tiny.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import weightcast
from weightcast.converters.families.grok1.forward import logits
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), tiny_spec())

        # The graph: names, shapes and where the bytes lie. Nothing is loaded.
        graph = weightcast.open(checkpoint)
        print(f"{graph.parameters:,} parameters, {graph.spec.num_layers} layers")
        experts = graph["transformer/decoder_layer_0/moe/linear/w"]
        print(experts.name, experts.shape)

        # Several outputs from one read of the source.
        gguf, directory = Path(folder) / "tiny-Q8_0.gguf", Path(folder) / "tiny-bf16"
        summary = weightcast.convert(checkpoint, gguf, directory, no_tokenizer=True)
        origins = summary.block_origins(0)
        print(f"{len(origins['lossless'])} tensors are lossless in {gguf.name}")

        # Outputs are sources too; the forward runs over any of them.
        tokens = [[17, 5, 230, 99]]
        difference = logits(weightcast.open(gguf), tokens) - logits(graph, tokens)
        print(f"largest logit difference of {gguf.name}: {np.abs(difference).max():.1e}")

    # The kernels alone, on any array [..., out, in].
    weights = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    blocks = weightcast.quantize(weights, "Q8_0")
    error = np.abs(weightcast.dequantize(blocks, "Q8_0") - weights).max()
    print(f"Q8_0: {weights.nbytes} bytes become {blocks.nbytes}, largest error {error:.4f}")


if __name__ == "__main__":
    main()
