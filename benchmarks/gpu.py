#!/usr/bin/env python3
"""The kernels on a CUDA device: Gweights/s, and their share of what the device can copy.

Kernels are timed by the device's own events, as medians, on a matrix as large as one expert of
Grok-1: from int8 [in, out] with a scale per column, and from float32 and bfloat16 [out, in]. The
share is bytes read and written a second over those of a copy in device memory, measured in the
same run. Beside them: our library on this machine's processors, and quantization written in torch
operations as scripts do it. Rows and groups are compared with the CPU's before anything is timed.

    .venv/bin/python -m benchmarks.gpu --output benchmarks/results/gpu.json
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_peers import torch_version, torch_works
from benchmarks.gpu_timing import Clock, describe_machine, write_json
from benchmarks.gpu_work import (
    GROUP_ROWS,
    LOSSLESS,
    N_IN,
    Source,
    Sources,
    Work,
    block_work,
    group_work,
    part,
    quantized_floats,
)
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.search import Search
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


def measure_row(
    clock: Clock, sources: Sources, work: Work, row: str, n_out: int, copy_gb: float
) -> dict[str, Any]:
    """Speeds of one row of the table, by source."""
    result: dict[str, Any] = {}
    for dtype in SOURCES:
        if row == LOSSLESS and dtype != "I8":
            continue
        source = sources.source(dtype, exact=row == LOSSLESS)
        work.enqueue(source)
        clock.stream.synchronize()
        compare(work, row, source)
        times = clock.times_ms(lambda source=source: work.enqueue(source))
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


def markdown(report: dict[str, Any]) -> str:
    """Lay out one row a type."""
    lines = [
        f"{report['device']}, driver {report['driver']}, NVRTC {report['nvrtc']}, "
        f"{report['date']}; copy in device memory {report['copy_gb_s']:.0f} GB/s, link "
        f"{report['link_gb_s']['to_device']:.1f} GB/s to the device and "
        f"{report['link_gb_s']['to_host']:.1f} GB/s back; CPU {report['processors']} processors "
        f"({report['isa']}); torch {report['torch']}.",
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
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--device", default=0, show_default=True, help="Index of the device.")
@click.option("--types", help="Rows of the table, separated by commas; all if not given.")
@click.option("--columns", default=N_OUT, show_default=True, help="Columns of the matrix.")
@click.option("--repeat", default=9, show_default=True)
@click.option("--importance", is_flag=True, help="Give an importance to all that take one.")
@click.option("--effort", default=0, help="Search blocks for the least error: 1, 2 or 3.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, row after row.")
def main(
    device: int,
    types: str | None,
    columns: int,
    repeat: int,
    importance: bool,
    effort: int,
    output: Path | None,
) -> None:
    gpu = open_gpu(device)
    rows = types.split(",") if types else ROWS
    clock = Clock(gpu.stream(), gpu.allocate(max(columns * N_IN, 1 << 20) // 256 * 512), repeat)
    copy_gb = clock.copy_gb_s()
    codes, scales = quantized_floats(columns, exact=False)
    report: dict[str, Any] = {
        **describe_machine(gpu),
        "torch": torch_version(),
        "matrix": [columns, N_IN],
        "repeat": repeat,
        "importance": importance,
        "effort": effort,
        "targets": {"share": TARGET_SHARE, "gweights_s": TARGET_GWEIGHTS},
        "copy_gb_s": copy_gb,
        "link_gb_s": clock.link_gb_s(columns * N_IN),
        "torch_gweights_s": torch_works(device, codes, scales, repeat),
        "kernels": {},
    }
    sources = Sources(clock.stream, columns)
    for row in rows:
        if row in GROUP_ROWS:
            work = group_work(clock.stream, row, columns, importance)
        else:
            search = Search(effort)
            work = block_work(clock.stream, row, columns, importance, search=search)
        found = measure_row(clock, sources, work, row, columns, copy_gb)
        report["kernels"][row] = found
        click.echo(f"{row}: {found['I8']['gweights_s']:.1f} Gweights/s", err=True)
        if output:
            write_json(output, report)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
