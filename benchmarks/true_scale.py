#!/usr/bin/env python3
"""Two real-size layers with the full vocabulary: what --dry-run estimates, and what it then takes.

12.9 GB of shards are made once (`--data DIR` keeps them). Each output is estimated, converted, and
removed. Needs 35 GB of free disk.

    .venv/bin/python -m benchmarks.true_scale --output benchmarks/results/true-scale.json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import click

from benchmarks.convert import checkpoint, timed
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

OUTPUTS = "x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-bf16", "x-int8-gptq", "x-int4-g128"
_PROGRAM = [sys.executable, "-c", "from weightcast.cli import main; main()", "convert"]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--layers", default=2, show_default=True)
@click.option("--name", "names", multiple=True, default=OUTPUTS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(data: Path | None, layers: int, names: tuple[str, ...], output: Path | None) -> None:
    """Compare the estimated time of each output with what it takes."""
    rows = []
    with checkpoint(data, {**RELEASE, "num_layers": layers}) as folder:
        for name in names:
            target = folder / name
            what = [*_PROGRAM, str(folder), str(target), "--no-tokenizer"]
            row: dict[str, Any] = {"output": name, **_estimate(what)}
            found = timed([*what, "--quiet"])
            row |= {key: round(value, 1) for key, value in found.items()}
            row["ratio"] = round(row["wall_s"] / row["total_s"], 2)
            rows.append(row)
            click.echo(row)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            subprocess.run(["sync"], check=True)
    if output is not None:
        machine = {"date": date.today().isoformat(), "cores": os.cpu_count(), "isa": isa()}
        output.write_text(json.dumps({**machine, "layers": layers, "rows": rows}, indent=1) + "\n")


def _estimate(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([*command, "--dry-run", "--json"], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)["estimate"]
    return {key: None if value is None else round(value, 1) for key, value in found.items()}


if __name__ == "__main__":
    main()
