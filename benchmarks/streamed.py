#!/usr/bin/env python3
"""Layers that run over a text, as a share of what products alone reach on the same machine.

Each way to run them is a process of its own, and they take turns: numpy in float32, torch in
float32 and bfloat16, without a budget of memory and with one that leaves activations in a file.
A process measures products of blocks before and after its layers, by all workers at once, and then
tells tokens and FLOPs a second, their share of that, CPU seconds by operation, and how long workers
waited for tiles. Memory is the peak without files (RssAnon) and with them.

A layer of the release's sizes is made once (`--data DIR` keeps it; 5 GB); `--source` runs another
model, `--experts 2` a layer that takes a quarter of everything.

    .venv/bin/python -m benchmarks.streamed --tokens 2048 --output streamed.json
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import click

from benchmarks.children import measured
from benchmarks.convert import checkpoint
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

WAYS = "numpy-float32", "torch-float32", "torch-bfloat16"
_SMALL_VOCABULARY = 4096


@click.command()
@click.option(
    "--source", type=click.Path(path_type=Path), help="Run this model, not synthetic ones."
)
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--layers", default=1, show_default=True)
@click.option("--experts", default=8, show_default=True)
@click.option("--tokens", default=2048, show_default=True)
@click.option("--context", default=512, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS)
@click.option("--memory", "budgets", multiple=True, default=("", "2G"), show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    source: Path | None,
    data: Path | None,
    layers: int,
    experts: int,
    tokens: int,
    context: int,
    ways: tuple[str, ...],
    budgets: tuple[str, ...],
    repeat: int,
    output: Path | None,
) -> None:
    """Run layers in every way, in turn, `repeat` times, and tell medians."""
    spec = {
        **RELEASE, "num_layers": layers, "num_experts": experts, "vocab_size": _SMALL_VOCABULARY
    }  # fmt: skip
    with ExitStack() as stack:
        synthetic = checkpoint(data, spec)
        folder = stack.enter_context(nullcontext(source) if source else synthetic)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(repeat):
            for way in ways:
                for budget in budgets:
                    asked = [way, str(layers), str(tokens), str(context), budget, str(log.parent)]
                    command = [sys.executable, "-m", "benchmarks.streamed_run", str(folder), *asked]
                    child = measured(command, log)
                    told = json.loads(log.read_text().splitlines()[-1])
                    own = {key: child[key] for key in ("peak_gb", "own_gb")}
                    runs.setdefault((way, budget), []).append({**told, **own})
    rows = [
        {"way": way, "memory": budget or "no budget", **_medians(found)}
        for (way, budget), found in runs.items()
    ]
    for row in rows:
        click.echo(json.dumps(row))
    if output is not None:
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {isa()} kernels",
            "source": "synthetic" if source is None else source.name,
            "layers": layers,
            "experts": experts,
            "tokens": tokens,
            "context": context,
            "repeat": repeat,
        }
        output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def _medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Take the median of each number, also in the tables within."""
    return {
        key: _medians([run[key] for run in found])
        if isinstance(value, dict)
        else float(f"{statistics.median(run.get(key, 0.0) for run in found):.4g}")
        for key, value in found[0].items()
    }


if __name__ == "__main__":
    main()
