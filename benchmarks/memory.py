#!/usr/bin/env python3
"""Peak resident memory of conversions with matrices of the release's true sizes, by output kind.

1.7 GB of shards are made once (`--data DIR` keeps them): one layer with two experts and a small
vocabulary, since neither changes the largest buffers. Needs 6 GB of free disk.

    .venv/bin/python -m benchmarks.memory --output benchmarks/results/memory.json
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import date
from pathlib import Path

import click

from benchmarks.convert import checkpoint, timed
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

OUTPUTS = (
    *("x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-IQ4_XS.gguf", "x-BF16.gguf", "x-F32.gguf", "x-bf16"),
    *("x-int8", "x-int8-gptq", "x-int8-g128-weightcast", "x-int4-g128", "x-int4-channel"),
    *("x-int4-g128-asym-gptq_v2", "x-int4-g128-gptq", "x-int4-g128-awq"),
    *("x-mxfp4", "x-nvfp4", "x-fp8", "x-fp8-block"),
)
SEVERAL = "x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-int4-g128-gptq", "x-int8-gptq"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--memory", "budgets", multiple=True, default=("", "500M"), show_default=True)
@click.option("--name", "chosen", multiple=True, help="Only these kinds.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    data: Path | None,
    jobs: int,
    budgets: tuple[str, ...],
    chosen: tuple[str, ...],
    output: Path | None,
) -> None:
    """Convert to every kind, with a report and without, and within budgets of --memory."""
    spec = {**RELEASE, "num_layers": 1, "num_experts": 2, "vocab_size": 16384}
    rows = []
    with checkpoint(data, spec) as folder:
        several = () if chosen else (SEVERAL,)
        for names in (*((name,) for name in chosen or OUTPUTS), *several):
            row: dict[str, object] = {"outputs": ", ".join(names)}
            for budget in budgets:
                options = ["--memory", budget] if budget else []
                row[budget or "no budget"] = _peak(folder, names, jobs, options)
            report = ["--report", str(folder / "report.json")]
            row["with a report"] = _peak(folder, names, jobs, report)
            rows.append(row)
            click.echo(row)
    columns = list(rows[0])
    click.echo(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        click.echo(f"| {' | '.join(str(row[column]) for column in columns)} |")
    if output is not None:
        machine = {"date": date.today().isoformat(), "cores": os.cpu_count(), "isa": isa()}
        output.write_text(json.dumps({**machine, "jobs": jobs, "peak_mib": rows}, indent=1) + "\n")


def _peak(folder: Path, names: tuple[str, ...], jobs: int, options: list[str]) -> int:
    """Peak resident MiB of one conversion."""
    program = [sys.executable, "-c", "from weightcast.cli import main; main()", "convert"]
    targets = [folder / "out" / name for name in names]
    targets[0].parent.mkdir()
    what = [str(folder / "ckpt-0"), *map(str, targets), "--no-tokenizer", "--quiet"]
    try:
        found = timed([*program, *what, "--jobs", str(jobs), *options])
    finally:
        shutil.rmtree(folder / "out")
    return round(found["peak_mib"])


if __name__ == "__main__":
    main()
