#!/usr/bin/env -S .venv/bin/python
"""The Python API on a tiny checkpoint: open, read, plan, convert, verify, compare, quantize.

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

        # A mapping from names to tensors. Nothing is loaded until it is asked for.
        model = weightcast.open(checkpoint)
        print(f"{model.parameters:,} parameters, {model.spec.num_layers} layers")
        query = model["blk.0.attn_q.weight"]
        assert query.name == model["transformer/decoder_layer_0/multi_head_attention/query/w"].name
        print(query)

        # Rows are read without the rest; experts are stacked.
        print(f"ten rows: {query[10:20].shape}, of dtype {query.dtype}")
        experts = model["blk.0.ffn_down_exps.weight"]
        print(f"experts {experts.shape}, rows of the fourth: {experts[3, :2, :4].tolist()}")

        # All tensors in bounded memory, however large they are.
        squares = 0.0
        for tensor in model.values():
            for _, values in tensor.chunks(max_bytes=1 << 20):
                squares += float(np.square(values, dtype=np.float64).sum())
        print(f"root mean square of all weights: {np.sqrt(squares / model.parameters):.4f}")

        # Exact sizes before anything is written, then several outputs from one read of the source.
        names = ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tiny-bf16")
        outputs = [Path(folder) / name for name in names]
        planned = weightcast.plan(checkpoint, outputs, no_tokenizer=True)
        print(f"{planned.write_bytes:,} bytes will be written")
        summary = weightcast.convert(checkpoint, outputs, no_tokenizer=True, baseline="stored")
        for output in summary.outputs:
            assert output.errors is not None
            bits, error = output.bits_per_weight, output.errors.total.relative_rms
            print(f"{output.path.name}: {output.size:,} bytes, {bits:.2f} bits, error {error:.4f}")

        # What was written holds the source's weights, and is a source too.
        gguf = summary.outputs[0].path
        assert weightcast.verify(gguf, checkpoint).is_good
        print(f"compared: {weightcast.compare(checkpoint, gguf).total.sqnr_db:.2f} dB")
        tokens = [[17, 5, 230, 99]]
        difference = logits(weightcast.open(gguf).graph, tokens) - logits(model.graph, tokens)
        print(f"largest logit difference of {gguf.name}: {np.abs(difference).max():.1e}")

    # The kernels alone, on any array [..., out, in].
    weights = np.random.default_rng(0).standard_normal((3, 256), np.float32)
    blocks = weightcast.quantize(weights, "Q4_K")
    print(f"Q4_K: {weights.nbytes} bytes become {blocks.nbytes}")
    print(weightcast.measure(weights, blocks, "Q4_K"))
    groups = weightcast.quantize(weights, "int4-g128")
    print(groups, groups.codes.shape, groups.scales.shape)


if __name__ == "__main__":
    main()
