#!/usr/bin/env python3
"""Kernels compiled otherwise, side by side: what one device shows that compiled code cannot.

Questions: does Q3_K descend faster with one block at a time or two; how many thread blocks are to
fit a multiprocessor; what do the checks of values take. Each kernel is compared with the CPU before
it is timed.

    .venv/bin/python -m benchmarks.gpu_variants --output build/gpu-variants.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.gpu import N_OUT, compare
from benchmarks.gpu_timing import Clock, describe_machine, write_json
from benchmarks.gpu_work import LOSSLESS, N_IN, Sources, block_work
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.device import Gpu, open_gpu
from weightcast.quant.cuda.jobs import FOUND_BYTES, Quantizer, enqueue_checks
from weightcast.quant.types import TYPES


@dataclass(frozen=True, slots=True)
class Question:
    """A macro of kernels/device with values to compare, on rows of the table of benchmarks.gpu.

    The value "" leaves the macro out: the kernel that the package uses.
    """

    macro: str
    values: tuple[str, ...]
    rows: tuple[str, ...]


QUESTIONS: Final = (
    Question("WC_DESCENT_WAYS", ("1", "2"), ("Q3_K",)),
    Question(
        "WC_RESIDENT_BLOCKS",
        ("", "0", "2", "3", "4", "5"),
        ("Q8_0", "Q4_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    ),
    Question("WC_RESIDENT_BLOCKS", ("0", "1", "2"), ("NVFP4", "Q2_0")),
    Question("WC_UNCHECKED", ("", "1"), (LOSSLESS, "Q8_0", "Q4_0", "Q4_K", "BF16")),
)
SOURCES: Final = ("I8", "F32")


def variant(gpu: Gpu, row: str, macro: str, value: str) -> Callable[[str], Quantizer]:
    """Give what makes a quantizer for a type of source with a macro set."""

    @cache
    def of(dtype: str) -> Quantizer:
        quant_type = TYPES[row.split()[0]]
        own = cuda_kernels.quantizer(gpu, quant_type, False, dtype)
        if not value:
            return own
        unit = f"quantize_{quant_type.name}_from_{dtype}"
        other = f"{unit} {macro}={value}"
        cuda_compile.UNITS[other] = (*cuda_compile.UNITS[unit], (macro, value))
        image = cuda_compile.image(other, gpu.architecture)
        return replace(own, quantize=gpu.load(image, own.quantize.name))

    return of


def time_checks(clock: Clock, sources: Sources) -> float:
    """Milliseconds of the checks of int8's scales, which are a launch of their own."""
    source = sources.source("I8", exact=False).device
    kernels = cuda_kernels.quantizer(clock.stream.gpu, TYPES["Q8_0"], False, "I8")
    found = clock.stream.gpu.allocate(FOUND_BYTES)
    return clock.median_ms(lambda: enqueue_checks(clock.stream, kernels, source, 0, found.address))


def markdown(report: dict[str, Any]) -> str:
    """Lay out one row for each kernel that was compiled otherwise."""
    lines = [
        f"Checks of int8's scales: {report['check_scales_ms']:.3f} ms for {report['matrix'][0]:,} "
        "columns.",
        "",
        "| type | compiled with | " + " | ".join(f"from {s}, Gw/s" for s in SOURCES) + " |",
        "| --- | --- " + "| ---: " * len(SOURCES) + "|",
    ]
    for found in report["variants"]:
        speeds = [f"{found[s]:.1f}" if s in found else "-" for s in SOURCES]
        with_ = f"{found['macro']}={found['value']}" if found["value"] else "as the package"
        lines.append(f"| {found['row']} | {with_} | {' | '.join(speeds)} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--device", default=0, show_default=True, help="Index of the device.")
@click.option("--types", help="Rows to ask about, separated by commas; all if not given.")
@click.option("--columns", default=N_OUT, show_default=True, help="Columns of the matrix.")
@click.option("--repeat", default=9, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(device: int, types: str | None, columns: int, repeat: int, output: Path) -> None:
    gpu = open_gpu(device)
    clock = Clock(gpu.stream(), gpu.allocate(max(columns * N_IN, 1 << 20) // 256 * 512), repeat)
    sources = Sources(clock.stream, columns)
    report: dict[str, Any] = {
        **describe_machine(gpu),
        "matrix": [columns, N_IN],
        "check_scales_ms": time_checks(clock, sources),
        "variants": [],
    }
    for question in QUESTIONS:
        rows = [row for row in question.rows if types is None or row in types.split(",")]
        for row in rows:
            for value in question.values:
                kernels = variant(gpu, row, question.macro, value)
                work = block_work(clock.stream, row, columns, False, kernels)
                found: dict[str, Any] = {"row": row, "macro": question.macro, "value": value}
                for dtype in SOURCES[:1] if row == LOSSLESS else SOURCES:
                    source = sources.source(dtype, exact=row == LOSSLESS)
                    work.enqueue(source)
                    compare(work, row, source)
                    ms = clock.median_ms(lambda source=source, work=work: work.enqueue(source))
                    found[dtype] = columns * N_IN / ms / 1e6
                report["variants"].append(found)
                write_json(output, report)
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
