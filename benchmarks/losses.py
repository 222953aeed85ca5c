#!/usr/bin/env python3
"""Measure what each kind of output loses on Grok-like weights.

A synthetic layer in the format of the release (int8 codes, bfloat16 scales, rows of 2048 and 4096
values) is converted to every output in one read, with a report.

    .venv/bin/python -m benchmarks.losses > benchmarks/results/losses.md
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import weightcast
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint

SPEC = tiny_spec(emb_size=2048, widening_factor=3, vocab_size=512, num_layers=1, num_q_heads=16)


def output_names() -> Iterator[str]:
    """Name an output of each type that needs no importance matrix; groups in one layout."""
    for t in weightcast.types():
        if t.importance != "required" and t.layout in (None, "compressed-tensors"):
            yield f"x-{t.name}.gguf" if t.target == "gguf" else f"x-{t.name}"


def main() -> None:
    """Convert, and print a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder), {**SPEC, "key_size": 128}, seed=1)
        names = list(output_names())
        report = Path(folder, "report.json")
        targets = [Path(folder, name) for name in names]
        # int8 by channel cannot keep codes whose scales cover an eighth of a row.
        options = {"no_tokenizer": True, "allow_requantize": True, "report": report}
        weightcast.convert(source, *targets, **options)
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
