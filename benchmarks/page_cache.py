#!/usr/bin/env python3
"""What it does to pass the page cache by: conversions of a real-size layer, with and without.

8.1 GB of shards are made once (`--data DIR` keeps them). Before each conversion the shards are
dropped from the cache, and another file of `--bystander` bytes is read into it: how much of that is
still there afterwards is what other programs on the machine keep. Reported are medians. Needs about
30 GB of free disk.

    .venv/bin/python -m benchmarks.page_cache --output benchmarks/results/page-cache.json
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import click

from benchmarks.children import cached, measured, prepare
from benchmarks.convert import checkpoint
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

OUTPUTS = (
    *("x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-int8", "x-int4-g128"),
    "x-Q8_0.gguf x-Q4_K_M.gguf x-int8",
)
PAST, KEPT = "past the cache", "kept in the cache"
# A conversion takes this decision by its size and the memory of the machine.
PROGRAM = """
from weightcast.converters import page_cache
page_cache.outgrows = lambda nbytes: {past}
from weightcast.cli import main
main()
"""


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--repeat", default=3, show_default=True)
@click.option("--name", "names", multiple=True, default=OUTPUTS, show_default=True)
@click.option("--bystander", default=6.0, show_default=True, help="GB of the other file.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    data: Path | None, repeat: int, names: tuple[str, ...], bystander: float, output: Path | None
) -> None:
    """Measure conversions past the page cache and through it, in turn."""
    with (
        checkpoint(data, {**RELEASE, "num_layers": 1}) as folder,
        _other_file(folder, bystander) as other,
    ):
        runs: dict[str, dict[str, list[dict[str, float]]]] = {
            name: {KEPT: [], PAST: []} for name in names
        }
        for _ in range(repeat):
            for name in names:
                for how, found in runs[name].items():
                    found.append(_convert(folder, name.split(), other, past=how == PAST))
                    click.echo(f"{name}, {how}: {found[-1]}")
    rows = {
        name: {
            how: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for how, found in of_name.items()
        }
        for name, of_name in runs.items()
    }
    _print(rows)
    if output is not None:
        machine = {"date": date.today().isoformat(), "cores": os.cpu_count(), "isa": isa()}
        output.write_text(json.dumps({**machine, "repeat": repeat, "rows": rows}, indent=1) + "\n")


@contextmanager
def _other_file(folder: Path, gigabytes: float) -> Iterator[Path]:
    path = folder / "bystander"
    try:
        with path.open("wb") as file:
            for _ in range(round(gigabytes * 1e9) >> 24):
                file.write(os.urandom(1 << 24))
        yield path
    finally:
        path.unlink(missing_ok=True)


def _convert(folder: Path, names: list[str], other: Path, *, past: bool) -> dict[str, float]:
    targets = [folder / name for name in names]
    prepare([folder / "ckpt-0"], cold=True)
    prepare([other], cold=True)
    prepare([other], cold=False)
    program = [sys.executable, "-c", PROGRAM.format(past=past), "convert", str(folder)]
    try:
        found = measured(
            [*program, *map(str, targets), "--no-tokenizer", "--quiet"], folder / "log"
        )
        found["bystander_kept"] = cached(other)
    finally:
        for target in targets:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return {key: found[key] for key in ("wall_s", "cpu_s", "bystander_kept")}


def _print(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    head = ("output", "kept: wall", "CPU", "past: wall", "CPU", "faster", "bystander: kept", "past")
    click.echo("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    for name, row in rows.items():
        kept, past = row[KEPT], row[PAST]
        cells = [name.replace("x-", "").replace(" ", ", ")]
        cells += [f"{way[key]:.1f} s" for way in (kept, past) for key in ("wall_s", "cpu_s")]
        cells.append(f"{kept['wall_s'] / past['wall_s']:.1f}")
        cells += [f"{way['bystander_kept']:.0%}" for way in (kept, past)]
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
