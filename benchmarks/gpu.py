#!/usr/bin/env python3
"""The kernels on a CUDA device: Gweights/s, and their share of what the device can copy.

Kernels are timed by the device's own events, as medians, on a matrix as large as one expert of
Grok-1: from int8 [in, out] with a scale per column, and from float32 and bfloat16 [out, in]. The
share is bytes read and written a second over those of a copy in device memory, measured in the
same run. Beside them: our library on this machine's processors, and quantization written in torch
operations as scripts do it. Rows and groups are compared with the CPU's before anything is timed.

The pipeline is `weightcast convert` from the page cache to memory (/dev/shm), with `--device cuda`
and `--device cpu`, beside the measured speed of the link.

    .venv/bin/python -m benchmarks.gpu --output benchmarks/results/gpu.json
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.gpu_peers import torch_version, torch_works
from benchmarks.gpu_work import (
    GROUP_ROWS,
    LOSSLESS,
    N_IN,
    Source,
    Work,
    block_work,
    group_work,
    make_source,
    part,
    quantized_floats,
)
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import tiny_spec, total_bytes, write_checkpoint
from weightcast.quant.cpu.library import isa
from weightcast.quant.cuda.compile import nvrtc_version
from weightcast.quant.cuda.device import Gpu, Memory, Stream, open_gpu
from weightcast.quant.cuda.driver import call
from weightcast.quant.types import I_TYPES, K_TYPES, SIMPLE_TYPES

N_OUT = 32768  # an expert matrix of Grok-1, with N_IN
ROWS = [t.name for t in (*SIMPLE_TYPES, *K_TYPES, *I_TYPES)]
ROWS.insert(ROWS.index("Q8_0"), LOSSLESS)
ROWS += GROUP_ROWS
# Shares of the copy bandwidth from float32, bfloat16 or int8 for simple types, and Gweights/s.
TARGET_SHARE, TARGET_GWEIGHTS = 0.7, {"Q4_K": 20.0}
SOURCES = ("I8", "F32", "BF16")
COMPARED = 64  # rows at each end
CPU_COLUMNS = 1024  # of the matrix, for the processors


def driver_version() -> str:
    """The driver's release as nvidia-smi knows it, and the CUDA version it serves."""
    number = int(call("asking for the driver's version", "cuDriverGetVersion"))
    cuda = f"CUDA {number // 1000}.{number % 1000 // 10}"
    program = shutil.which("nvidia-smi")
    if program is None:
        return cuda
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = said.stdout.split()
    return f"{lines[0]} ({cuda})" if said.returncode == 0 and lines else cuda


def event_ms(stream: Stream, work: Callable[[], object], repeat: int, ahead: Memory) -> list[float]:
    """Milliseconds of some work on the device; the host runs ahead of it, so gaps do not count."""
    work()
    found = []
    half = ahead.nbytes // 2
    for _ in range(repeat):
        for _ in range(4):
            stream.copy(ahead.address, ahead.address + half, half)
        start = stream.record(timing=True)
        work()
        end = stream.record(timing=True)
        end.synchronize()
        found.append(end.elapsed_ms(start))
    return found


def measure_row(
    gpu: Gpu, row: str, n_out: int, repeat: int, ahead: Memory, weighed: bool, copy_gb: float
) -> dict[str, Any]:
    """Speeds of one row of the table, by source."""
    stream = gpu.stream()
    work = (group_work if row in GROUP_ROWS else block_work)(stream, row, n_out, weighed)
    result: dict[str, Any] = {}
    for dtype in SOURCES:
        if row == LOSSLESS and dtype != "I8":
            continue
        source = make_source(stream, dtype, n_out, exact=row == LOSSLESS)
        work.enqueue(source)
        stream.synchronize()
        compare(work, row, source)
        times = event_ms(stream, lambda source=source: work.enqueue(source), repeat, ahead)
        ms = statistics.median(times)
        moved = source.nbytes + work.nbytes
        result[dtype] = {
            "ms": times,
            "gweights_s": n_out * N_IN / ms / 1e6,
            "gb_s": moved / ms / 1e6,
            "share": moved / ms / 1e6 / copy_gb,
        }
        if dtype == "I8":
            result["cpu_gweights_s"] = cpu_gweights(source, work, 3)
    return result


def compare(work: Work, row: str, source: Source) -> None:
    """Refuse to time what makes other rows than the CPU."""
    for row0 in (0, source.host.n_out - COMPARED):
        if not work.same(source, row0, row0 + COMPARED):
            raise click.ClickException(f"{row} from {source.host.dtype} differs")


def cpu_gweights(source: Source, work: Work, repeat: int) -> float:
    """Speed of the library on all processors, on some of the columns."""
    threads = os.cpu_count() or 1
    columns = min(CPU_COLUMNS, source.host.n_out) // threads

    def share(n: int) -> None:
        work.on_cpu(part(source.host, n * columns, (n + 1) * columns))

    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.monotonic()
            list(pool.map(share, range(threads)))
            seconds.append(time.monotonic() - start)
    return threads * columns * N_IN / statistics.median(seconds) / 1e9


def copy_speed(gpu: Gpu, ahead: Memory, repeat: int) -> float:
    """GB/s of a copy in device memory, bytes read and bytes written."""
    stream, half = gpu.stream(), ahead.nbytes // 2

    def copy() -> None:
        stream.copy(ahead.address, ahead.address + half, half)

    return 2 * half / statistics.median(event_ms(stream, copy, repeat, ahead)) / 1e6


def link_speed(gpu: Gpu, nbytes: int, repeat: int) -> dict[str, float]:
    """GB/s between page-locked host memory and the device, one way at a time."""
    stream, memory, host = gpu.stream(), gpu.allocate(nbytes), np.zeros(nbytes, np.uint8)
    pinned = gpu.pin(host)
    ways = {
        "to_device": lambda: stream.copy_in(memory.address, host),
        "to_host": lambda: stream.copy_out(host, memory.address),
    }
    found = {
        name: nbytes / statistics.median(event_ms(stream, way, repeat, memory)) / 1e6
        for name, way in ways.items()
    }
    pinned.unpin()
    return found


def timed(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def pipeline(types: list[str], devices: list[str], repeat: int, tiny: bool) -> dict[str, Any]:
    """Seconds of whole conversions from memory to memory, devices in turn."""
    spec = tiny_spec() if tiny else {**RELEASE, "num_layers": 1}
    program = str(Path(sys.executable).with_name("weightcast"))
    result: dict[str, Any] = {"source_bytes": total_bytes(spec), "seconds": {}}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        write_checkpoint(Path(folder), spec)
        source = Path(folder) / "ckpt-0"
        seconds: dict[str, list[float]] = {}
        for _ in range(repeat + 1):  # the first compiles the kernels, and is left out
            for name in types:
                for device in devices:
                    target = Path(folder) / f"model-{name}.gguf"
                    command = [program, "convert", "--quiet", "--no-tokenizer", "--device", device]
                    took = timed([*command, str(source), str(target)])
                    seconds.setdefault(f"{name} {device}", []).append(took)
                    target.unlink()
            copy = Path(folder) / "copy"
            seconds.setdefault("cp", []).append(timed(["cp", "-r", str(source), str(copy)]))
            shutil.rmtree(copy)
    result["seconds"] = {name: took[1:] for name, took in seconds.items()}
    return result


def markdown(report: dict[str, Any]) -> str:
    """One table of kernels, one of whole conversions."""
    lines = [
        f"{report['device']}, driver {report['driver']}, NVRTC {report['nvrtc']}, "
        f"{report['date']}; copy in device memory {report['copy_gb_s']:.0f} GB/s; CPU "
        f"{report['processors']} processors ({report['isa']}); torch {report['torch']}.",
        "",
        "| type | from int8, Gw/s | share | from F32, Gw/s | share | from BF16, Gw/s | share "
        "| CPU, Gw/s | torch operations, Gw/s |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for row, found in report["kernels"].items():
        cells = [row]
        for dtype in SOURCES:
            one = found.get(dtype)
            cells += ["-", "-"]
            if one is not None:
                cells[-2:] = [f"{one['gweights_s']:.1f}", f"{one['share']:.0%}"]
        cells.append(f"{found['cpu_gweights_s']:.2f}")
        peer = report["torch_gweights_s"].get(row.split()[0])
        cells.append("-" if peer is None else f"{peer:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    whole = report.get("pipeline")
    if whole:
        size = whole["source_bytes"]
        link = report["link_gb_s"]
        lines += [
            "",
            f"Whole conversions of {size / 1e9:.2f} GB in memory; the link moves "
            f"{link['to_device']:.1f} GB/s to the device, {link['to_host']:.1f} GB/s back.",
            "",
            "| what | seconds | GB/s of source |",
            "| --- | ---: | ---: |",
        ]
        for name, took in whole["seconds"].items():
            middle = statistics.median(took)
            lines.append(f"| {name} | {middle:.2f} | {size / middle / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--device", default=0, show_default=True, help="Index of the device.")
@click.option("--types", help="Rows of the table, separated by commas; all if not given.")
@click.option("--columns", default=N_OUT, show_default=True, help="Columns of the matrix.")
@click.option("--repeat", default=9, show_default=True)
@click.option("--importance", is_flag=True, help="Give an importance to all that take one.")
@click.option("--tiny", is_flag=True, help="A tiny checkpoint for the pipeline, for a look.")
@click.option("--no-pipeline", is_flag=True, help="Time kernels only.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(
    device: int,
    types: str | None,
    columns: int,
    repeat: int,
    importance: bool,
    tiny: bool,
    no_pipeline: bool,
    output: Path | None,
) -> None:
    gpu = open_gpu(device)
    rows = types.split(",") if types else ROWS
    ahead = gpu.allocate(max(columns * N_IN, 1 << 20) // 256 * 512)
    copy_gb = copy_speed(gpu, ahead, repeat)
    codes, scales = quantized_floats(columns, exact=False)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": f"{gpu.name} ({gpu.architecture}, {gpu.multiprocessors} multiprocessors)",
        "driver": driver_version(),
        "nvrtc": nvrtc_version(),
        "torch": torch_version(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "isa": isa(),
        "matrix": [columns, N_IN],
        "repeat": repeat,
        "importance": importance,
        "targets": {"share": TARGET_SHARE, "gweights_s": TARGET_GWEIGHTS},
        "copy_gb_s": copy_gb,
        "link_gb_s": link_speed(gpu, columns * N_IN, repeat),
        "torch_gweights_s": torch_works(device, codes, scales, repeat),
        "kernels": {},
    }
    for row in rows:
        found = measure_row(gpu, row, columns, repeat, ahead, importance, copy_gb)
        report["kernels"][row] = found
        click.echo(f"{row}: {found['I8']['gweights_s']:.1f} Gweights/s", err=True)
    if not no_pipeline:
        devices = [f"cuda:{device}", "cpu"]
        report["pipeline"] = pipeline(["Q8_0", "Q4_K_M"], devices, min(repeat, 3), tiny)
    click.echo(markdown(report))
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
