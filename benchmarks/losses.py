#!/usr/bin/env python3
"""Measure what each kind of output loses on Grok-like weights.

A synthetic layer in the format of the release (int8 codes, bfloat16 scales, rows of 2048 and 4096
values) is converted to every output in one read, with a report.

    .venv/bin/python -m benchmarks.losses > benchmarks/results/losses.md
"""

from __future__ import annotations

import json
import tempfile
from datetime import date
from pathlib import Path

import weightcast
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint

GGUF = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K", "TQ2_0")
DIRECTORIES = (
    *("bf16", "int8", "int8-gptq", "int4-g32", "int4-g128", "int4-g128-asym", "int4-g128-awq"),
    *("mxfp4", "nvfp4", "fp8", "fp8-block"),
)
SPEC = tiny_spec(emb_size=2048, widening_factor=3, vocab_size=512, num_layers=1, num_q_heads=16)


def main() -> None:
    """Convert, and print a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder), {**SPEC, "key_size": 128}, seed=1)
        names = [f"x-{name}.gguf" for name in GGUF] + [f"x-{name}" for name in DIRECTORIES]
        report = Path(folder, "report.json")
        targets = [Path(folder, name) for name in names]
        weightcast.convert(source, *targets, no_tokenizer=True, report=report)
        errors = json.loads(report.read_text())["outputs"]
    print(f"# What each output loses, {date.today().isoformat()}\n")
    print(__doc__.split("\n\n")[1].replace("\n", " "))
    print("Errors are those of all weights together, against the values as stored.\n")
    print("| output | relative RMS error | SQNR | exact weights |")
    print("| --- | ---: | ---: | ---: |")
    for name, output in zip(names, errors, strict=True):
        total = output["total"]
        sqnr = "" if total["sqnr_db"] is None else f"{total['sqnr_db']:.1f} dB"
        exact = f"{100 * total['share_exact']:.1f} %"
        print(f"| {name} | {total['relative_rms']:.4f} | {sqnr} | {exact} |")


if __name__ == "__main__":
    main()
