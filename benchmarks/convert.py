#!/usr/bin/env python3
"""Convert one real-size Grok-1 layer with the full vocabulary to Q8_0, beside `cp` of its shards.

8.1 GB of shards are made once (`--data DIR` keeps them). Each repetition runs, in turn: cp, cp with
a flush to the disk (which the conversion does before it renames its output), and the conversion.
Reported are medians of wall time, ratios of medians, CPU time and peak resident memory.
Needs about 26 GB of free disk.

    .venv/bin/python benchmarks/convert.py --repeat 5 --output benchmarks/results/convert.json
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import click

from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import total_bytes, write_checkpoint
from weightcast.quant.cpu.library import isa


def timed(command: list[str]) -> dict[str, float]:
    """Run a command; wall seconds, CPU seconds and peak resident MiB of it."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": usage.ru_maxrss / 1024}


@contextmanager
def checkpoint(data: Path | None, spec: Mapping[str, int | float]) -> Iterator[Path]:
    """Give a folder with shards in ckpt-0, made unless they are in `data` already."""
    with tempfile.TemporaryDirectory() if data is None else nullcontext(str(data)) as folder:
        if not (Path(folder) / "ckpt-0").is_dir():
            click.echo(f"making {total_bytes(spec) / 1e9:.1f} GB of shards ...")
            # In a process of its own: no child has a smaller peak of memory than its parent had.
            arguments = Path(folder), dict(spec)
            maker = get_context("spawn").Process(target=write_checkpoint, args=arguments)
            maker.start()
            maker.join()
            if maker.exitcode:
                sys.exit("the shards could not be made")
        subprocess.run(["sync"], check=True)
        yield Path(folder)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--layers", default=1, show_default=True)
@click.option("--type", "type_name", default="Q8_0", show_default=True)
@click.option("--repeat", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(data: Path | None, layers: int, type_name: str, repeat: int, output: Path | None) -> None:
    """Measure a conversion against cp in one run."""
    spec = {**RELEASE, "num_layers": layers}
    with checkpoint(data, spec) as folder:
        figures = measure(folder, type_name, repeat)
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {isa()} kernels",
        "source_bytes": total_bytes(spec),
        "type": type_name,
        "repeat": repeat,
        **figures,
    }
    click.echo(json.dumps(report, indent=1))
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")


def measure(folder: Path, type_name: str, repeat: int) -> dict[str, object]:
    """Run all candidates in turn, `repeat` times, each without leftovers of the one before."""
    source, copy = folder / "ckpt-0", folder / "copy"
    target = folder / f"layer-{type_name}.gguf"
    weightcast = str(Path(sys.executable).with_name("weightcast"))
    commands = {
        "cp": ["cp", "-r", str(source), str(copy)],
        "cp_and_flush": ["sh", "-c", f"cp -r '{source}' '{copy}' && sync '{copy}'/*"],
        "convert": [weightcast, "convert", "--quiet", "--no-tokenizer", str(source), str(target)],
    }

    def remove() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        target.unlink(missing_ok=True)

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            remove()
            subprocess.run(["sync"], check=True)
            runs[name].append(timed(command))
    remove()
    median = {
        name: {key: round(statistics.median(run[key] for run in found), 2) for key in found[0]}
        for name, found in runs.items()
    }
    ratios = {
        f"convert_to_{name}": round(median["convert"]["wall_s"] / median[name]["wall_s"], 2)
        for name in ("cp", "cp_and_flush")
    }
    walls = {name: [round(run["wall_s"], 2) for run in found] for name, found in runs.items()}
    return {"ratios": ratios, "medians": median, "wall_s": walls}


if __name__ == "__main__":
    main()
