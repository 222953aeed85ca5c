#!/usr/bin/env python3
"""What `--report` costs, and packed int8 beside lossless Q8_0: one real-size layer in one run.

8.1 GB of shards are made once (`--data DIR` keeps them). Each repetition converts them to each
output without and with a report, in turn. Reported are medians of wall and CPU time and what
the report adds to both. Needs about 20 GB of free disk.

    .venv/bin/python -m benchmarks.report_cost --output benchmarks/results/report-cost.json
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from datetime import date
from pathlib import Path

import click

from benchmarks.convert import checkpoint, timed
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

OUTPUTS = ("x-Q8_0.gguf", "x-int8", "x-int8-gptq", "x-Q4_K_M.gguf", "x-int4-g128")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--repeat", default=3, show_default=True)
@click.option("--name", "names", multiple=True, default=OUTPUTS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(data: Path | None, repeat: int, names: tuple[str, ...], output: Path | None) -> None:
    """Measure conversions with and without a report."""
    spec = {**RELEASE, "num_layers": 1}
    with checkpoint(data, spec) as folder:
        found: dict[str, dict[str, list[dict[str, float]]]] = {
            name: {"plain": [], "report": []} for name in names
        }
        for _ in range(repeat):
            for name in names:
                for kind, runs in found[name].items():
                    runs.append(_convert(folder, name, with_report=kind == "report"))
                    click.echo(f"{name} {kind}: {runs[-1]}")
    rows = {name: _row(kinds) for name, kinds in found.items()}
    _print(rows)
    if output is not None:
        machine = {"date": date.today().isoformat(), "cores": os.cpu_count(), "isa": isa()}
        output.write_text(json.dumps({**machine, "repeat": repeat, "rows": rows}, indent=1) + "\n")


def _convert(folder: Path, name: str, *, with_report: bool) -> dict[str, float]:
    """Convert once, from files in the cache as far as memory goes."""
    main_program = [sys.executable, "-c", "from weightcast.cli import main; main()"]
    target = folder / name
    command = [*main_program, "convert", str(folder), str(target), "--no-tokenizer", "--quiet"]
    if with_report:
        command += ["--report", str(folder / "report.json")]
    try:
        found = timed(command)
        del found["peak_mib"]  # of a child that starts as large as this process
        return found
    finally:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _row(kinds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    medians = {
        kind: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for kind, runs in kinds.items()
    }
    pairs = list(zip(kinds["plain"], kinds["report"], strict=True))
    added = {
        key: statistics.median(report[key] / plain[key] - 1 for plain, report in pairs)
        for key in ("wall_s", "cpu_s")
    }
    return {**medians, "added": added}


def _print(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    head = ("output", "wall", "wall, report", "adds", "CPU", "CPU, report", "adds")
    click.echo("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    for name, row in rows.items():
        cells = [name]
        for key in ("wall_s", "cpu_s"):
            cells += [f"{row[kind][key]:.1f} s" for kind in ("plain", "report")]
            cells.append(f"{100 * row['added'][key]:.0f} %")
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
