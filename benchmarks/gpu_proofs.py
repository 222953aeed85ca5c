#!/usr/bin/env python3
"""Compile every kernel for a device and prove that it makes the CPU's bytes there.

.venv/bin/python -m benchmarks.gpu_proofs --output build/gpu-proofs.json
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_timing import describe_machine, write_json
from weightcast.errors import DeviceError
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.device import Gpu, open_gpu
from weightcast.quant.search import Search
from weightcast.quant.types import SOURCE_TYPES, TYPES, QuantType

Proof = tuple[str, Callable[[], object]]


def proofs(gpu: Gpu, types: list[QuantType], sources: list[str]) -> Iterator[Proof]:
    """List each unit of kernels with what compiles, loads and proves it."""
    for quant_type in types:
        name = quant_type.name
        yield f"dequantize_{name}", partial(cuda_kernels.dequantizer, gpu, quant_type)
        for source in sources:
            yield (
                f"measure_{name}_from_{source}",
                partial(cuda_kernels.measurer, gpu, quant_type, source),
            )
            if not quant_type.is_plain:
                search = partial(cuda_kernels.quantizer, gpu, quant_type, True, source, Search(1))
                yield f"search_{name}_from_{source}", search
            for weighed in (False, True):
                unit = f"quantize_{'weighed_' if weighed else ''}{name}_from_{source}"
                if unit in cuda_compile.UNITS:
                    make = partial(cuda_kernels.quantizer, gpu, quant_type, weighed, source)
                    yield unit, make
    for source in sources:
        for weighed in (False, True):
            unit = f"make_{'weighed_' if weighed else ''}groups_from_{source}"
            yield unit, partial(cuda_kernels.group_quantizer, gpu, weighed, source)


def attempt(make: Callable[[], object]) -> str:
    """Say "proven", or why not."""
    try:
        make()
    except DeviceError as error:
        return str(error)
    return "proven"


@click.command(help=__doc__)
@click.option("--device", default=0, show_default=True, help="Index of the device.")
@click.option("--types", default=",".join(TYPES), help="Types, separated by commas; else all.")
@click.option("--sources", default=",".join(SOURCE_TYPES), help="Types of sources; else all.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(device: int, types: str, sources: str, output: Path) -> None:
    gpu = open_gpu(device)
    wanted = list(proofs(gpu, [TYPES[name] for name in types.split(",")], sources.split(",")))
    report: dict[str, Any] = {**describe_machine(gpu), "units": len(wanted), "found": {}}
    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NVRTC releases the GIL
        image = partial(cuda_compile.image, architecture=gpu.architecture)
        list(pool.map(lambda proof: attempt(partial(image, proof[0])), wanted))
    report["compile_s"] = time.monotonic() - start
    for unit, make in wanted:
        report["found"][unit] = attempt(make)
        report["prove_s"] = time.monotonic() - start - report["compile_s"]
        write_json(output, report)
    failed = {unit: found for unit, found in report["found"].items() if found != "proven"}
    click.echo(f"{len(wanted) - len(failed)} of {len(wanted)} units proven")
    if failed:
        raise click.ClickException(next(iter(failed.values())))


if __name__ == "__main__":
    main()
