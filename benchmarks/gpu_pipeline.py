#!/usr/bin/env python3
"""Whole conversions with a device and without, from memory to memory.

Converts one layer of Grok-1 (a small vocabulary beside it) in /dev/shm with `weightcast convert`,
`--device cuda` and `--device cpu` in turn, and copies it with cp.

    .venv/bin/python -m benchmarks.gpu_pipeline --output build/gpu-pipeline.json
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_timing import describe_machine, write_json
from benchmarks.gpu_work import python
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import tiny_spec, total_bytes, write_checkpoint
from weightcast.quant.cuda.device import open_gpu

TYPES = ("Q8_0", "Q4_K_M")
VOCABULARY = 8192


def timed(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def convert(source: Path, target: Path, device: str) -> float:
    """Seconds of one conversion, whose output is removed."""
    options = ["--quiet", "--no-tokenizer", "--device", device]
    seconds = timed([*python("weightcast"), "convert", *options, str(source), str(target)])
    target.unlink()
    return seconds


def markdown(report: dict[str, Any]) -> str:
    """Lay out one row for each conversion."""
    size = report["source_bytes"]
    lines = [
        f"Whole conversions of {size / 1e9:.2f} GB in memory, medians.",
        "",
        "| what | seconds | GB/s of source |",
        "| --- | ---: | ---: |",
    ]
    for name, took in report["seconds"].items():
        middle = statistics.median(took)
        lines.append(f"| {name} | {middle:.2f} | {size / middle / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--device", default=0, show_default=True, help="Index of the device.")
@click.option("--repeat", default=3, show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny checkpoint, for a look.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(device: int, repeat: int, tiny: bool, output: Path) -> None:
    released = {**RELEASE, "num_layers": 1, "vocab_size": VOCABULARY}
    spec = tiny_spec() if tiny else released
    seconds: dict[str, list[float]] = {}
    report: dict[str, Any] = {
        **describe_machine(open_gpu(device)),
        "source_bytes": total_bytes(spec),
        "seconds": seconds,
    }

    def note(name: str, took: float) -> None:
        seconds.setdefault(name, []).append(took)
        write_json(output, report)

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        write_checkpoint(Path(folder), spec)
        source = Path(folder) / "ckpt-0"
        for name in TYPES:  # the first compiles the kernels, and is left out
            convert(source, Path(folder) / f"model-{name}.gguf", f"cuda:{device}")
        for turn in range(repeat):
            for name in TYPES:
                target = Path(folder) / f"model-{name}.gguf"
                note(f"{name} cuda", convert(source, target, f"cuda:{device}"))
                if turn == 0:  # takes the most time, and is known
                    note(f"{name} cpu", convert(source, target, "cpu"))
            copy = Path(folder) / "copy"
            note("cp", timed(["cp", "-r", str(source), str(copy)]))
            shutil.rmtree(copy)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
