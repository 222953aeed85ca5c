#!/usr/bin/env python3
"""What the kernels take of a device, as NVRTC's assembler counts it; no device is needed.

Registers a thread, stack (local memory) and spills in bytes a thread, shared memory that is fixed
at compile time in bytes a block (quantizers ask for more when they are launched), and instructions
of machine code. Threads a block are what the kernel is compiled for (its launch bounds).

    .venv/bin/python -m benchmarks.cuda_resources
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import click

from weightcast.quant.cpu.library import installed
from weightcast.quant.cuda.compile import SOURCE, UNITS, Compiled, compile_unit, nvrtc_version

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
INSTRUCTION_BYTES = 16  # since sm_70
RESULTS = Path(__file__).with_name("results")
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'"
    r"(?:(?!Compiling entry).)*?(?P<stack_bytes>\d+) bytes stack frame, "
    r"(?P<spill_store_bytes>\d+) bytes spill stores, (?P<spill_load_bytes>\d+) bytes spill loads"
    r"\s+ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
LAUNCH_BOUNDS = re.compile(r"\.entry (\w+)\((?:(?!\.entry).)*?\.maxntid (\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel takes on one architecture; no threads where it has no launch bounds."""

    kernel: str
    architecture: str
    threads: int | None
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    instructions: int


def code_bytes(cubin: bytes) -> dict[str, int]:
    """Size of each kernel's machine code, a section of an ELF file of 64 bits."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each section: where its name is among the names, its place, its size.
    headers = [struct.unpack_from("<I20xQQ", cubin, sections + size * n) for n in range(count)]
    first_name = headers[names][1]
    found = {}
    for name, _, nbytes in headers:
        begin = first_name + name
        text = cubin[begin : cubin.index(b"\0", begin)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = nbytes
    return found


def usages(compiled: Compiled) -> Iterator[Usage]:
    """Read what each kernel of a unit takes from the assembler's log."""
    code = code_bytes(compiled.cubin)
    bounds = dict(LAUNCH_BOUNDS.findall(compiled.ptx.decode()))
    for match in ENTRY.finditer(compiled.log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        yield Usage(
            kernel=match["kernel"],
            architecture=match["architecture"],
            threads=int(bounds[match["kernel"]]) if match["kernel"] in bounds else None,
            registers=int(match["registers"]),
            stack_bytes=int(match["stack_bytes"]),
            spill_store_bytes=int(match["spill_store_bytes"]),
            spill_load_bytes=int(match["spill_load_bytes"]),
            shared_bytes=int(shared[1]) if shared else 0,
            instructions=code[match["kernel"]] // INSTRUCTION_BYTES,
        )


def compile_all(
    units: Iterable[str] = UNITS, architectures: Iterable[str] = ARCHITECTURES
) -> dict[tuple[str, str], Compiled]:
    """Compile units for architectures, as many at a time as there are processors."""
    source = installed(SOURCE)
    wanted = [(unit, architecture) for unit in units for architecture in architectures]
    # NVRTC releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(lambda w: compile_unit(source, *w), wanted), strict=True))


def shown(usage: Usage | None) -> list[str]:
    if usage is None:
        return ["-"] * 5
    spills = f"{usage.spill_store_bytes}/{usage.spill_load_bytes}"
    numbers = (usage.stack_bytes, spills, usage.shared_bytes, usage.instructions)
    return [str(usage.registers), *map(str, numbers)]


def markdown(all_usages: list[Usage], unit_count: int, architectures: list[str]) -> str:
    """Lay out one row a kernel, with the figures of each architecture beside each other."""
    by_place = {(usage.kernel, usage.architecture): usage for usage in all_usages}
    lines = [
        "# What the CUDA kernels take",
        "",
        f"Compiled by NVRTC {nvrtc_version()} on {date.today().isoformat()}: {unit_count} units of "
        f"{len(UNITS)} for {', '.join(architectures)}. "
        "Registers and bytes of stack and of spills (stores/loads) a thread, bytes of static "
        "shared memory a block, instructions of code. Counted by the assembler, not measured on a "
        "device.",
        "",
    ]
    header, groups = ["kernel", "threads a block"], []
    for architecture in architectures:
        groups += [f"{architecture} registers", "stack", "spills", "shared", "code"]
    lines += [f"| {' | '.join([*header, *groups])} |"]
    lines += [f"| --- | {' | '.join(['---:'] * (1 + len(groups)))} |"]
    threads = {usage.kernel: usage.threads for usage in all_usages}
    for kernel in sorted(threads):
        cells = [kernel.removeprefix("weightcast_"), str(threads[kernel] or "any")]
        for architecture in architectures:
            cells += shown(by_place.get((kernel, architecture)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=RESULTS / "cuda-resources.json",
    show_default=True,
    help="Figures as JSON; a table is written beside it, with .md.",
)
@click.option(
    "--architectures", default=",".join(ARCHITECTURES), show_default=True, help="Of devices."
)
@click.option("--units", default=".*", help="A regular expression for the names of units.")
def main(output: Path, architectures: str, units: str) -> None:
    chosen = [unit for unit in UNITS if re.fullmatch(units, unit)]
    compiled = compile_all(chosen, architectures.split(","))
    # Kernels that several units contain are listed once.
    found = {
        (usage.kernel, usage.architecture): usage
        for unit in compiled.values()
        for usage in usages(unit)
    }
    table = [found[place] for place in sorted(found)]
    record = {
        "date": date.today().isoformat(),
        "nvrtc": nvrtc_version(),
        "units": len(chosen),
        "kernels": [asdict(usage) for usage in table],
    }
    # One line a kernel.
    output.write_text(json.dumps(record).replace('{"kernel"', '\n {"kernel"') + "\n")
    table_of = markdown(table, len(chosen), architectures.split(","))
    output.with_suffix(".md").write_text(table_of)


if __name__ == "__main__":
    main()
