#!/usr/bin/env python3
"""Run all that a device is to tell: proofs, speeds, variants, conversions, memory checks.

Each part is a program with a time limit, and one that fails does not stop the others. What they
found is in one JSON file and one table, written anew after each part. `gpu_session.sh` installs
what this needs and starts it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import gpu, gpu_pipeline, gpu_variants
from benchmarks.gpu_timing import write_json
from benchmarks.gpu_work import STAND_IN, python

LIMIT_S: Final = 470  # of all parts together
TAIL_CHARACTERS: Final = 3000
SANITIZER: Final = "compute-sanitizer"
SANITIZED: Final = "Q8_0,Q4_K,IQ3_S,BF16"  # by the slower tools
SEARCHED: Final = "Q8_0,Q4_K,Q6_K,IQ4_XS,IQ3_S,NVFP4"  # for the least error
# Of a dry run.
FEW_TYPES: Final = "Q8_0,Q4_0"
FEW_ROWS: Final = "Q8_0 lossless,Q8_0,int4-g128"

Markdown = Callable[[dict[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Part:
    """One program: its command, its time limit, and the table of the JSON it writes, if it does."""

    name: str
    limit_s: float
    command: list[str]
    markdown: Markdown | None = None


def proved(report: dict[str, Any]) -> str:
    """Say how many units were proven, and list the others."""
    found = report["found"]
    failed = {unit: words for unit, words in found.items() if words != "proven"}
    lines = [
        f"{len(found) - len(failed)} of {report['units']} units make the CPU's bytes; compiled in "
        f"{report['compile_s']:.0f} s, proven in {report['prove_s']:.0f} s.",
        *(f"- {unit}: {words}" for unit, words in failed.items()),
    ]
    return "\n".join(lines) + "\n"


def sanitize(tool: str, limit_s: float, *options: str) -> Part:
    program = shutil.which(SANITIZER) or f"/usr/local/cuda/bin/{SANITIZER}"
    watch = [program, "--tool", tool, "--error-exitcode", "9"]
    return Part(
        f"{SANITIZER} {tool}", limit_s, [*watch, *python("tests.cuda.every_kernel"), *options]
    )


def parts(folder: Path, dry: bool) -> list[Part]:
    """List what to run, the surest and the most wanted first; each writes NAME.json in a folder."""

    def written(module: str, limit_s: float, markdown: Markdown, *options: str) -> Part:
        name = "searches" if "--effort" in options else module.removeprefix("gpu_")
        command = [*python(f"benchmarks.{module}"), "--output", str(folder / f"{name}.json")]
        return Part(name, limit_s, [*command, *options], markdown)

    if dry:
        small = ("--columns", "128", "--repeat", "1", "--types")
        few = ("--types", FEW_TYPES, "--sources", "I8")
        return [
            written("gpu_proofs", 200, proved, *few),
            written("gpu", 100, gpu.markdown, *small, FEW_ROWS),
            written("gpu", 100, gpu.markdown, *small, "NVFP4", "--effort", "2"),
            written("gpu_variants", 100, gpu_variants.markdown, *small, "NVFP4"),
            written("gpu_pipeline", 100, gpu_pipeline.markdown, "--tiny", "--repeat", "1"),
        ]
    return [
        Part("nvidia-smi", 10, ["nvidia-smi"]),
        Part("nvcc", 10, ["nvcc", "--version"]),
        written("gpu_proofs", 90, proved),
        written("gpu", 110, gpu.markdown, "--repeat", "7"),
        written("gpu", 40, gpu.markdown, "--effort", "2", "--repeat", "3", "--types", SEARCHED),
        written("gpu_variants", 50, gpu_variants.markdown, "--repeat", "5"),
        written("gpu_pipeline", 70, gpu_pipeline.markdown, "--repeat", "2"),
        sanitize("racecheck", 30, SANITIZED),
        sanitize("initcheck", 30, SANITIZED),
        sanitize("memcheck", LIMIT_S),
    ]


def run(part: Part, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a part and tell how it ended, what it said last, and what it wrote."""
    start = time.monotonic()
    said, status = "", "done"
    try:
        process = subprocess.Popen(
            part.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        status = f"not run: {error}"
    else:
        try:
            said, _ = process.communicate(timeout=limit_s)
            if process.returncode:
                status = f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            status = f"stopped after {limit_s:.0f} s"
    written = folder / f"{part.name}.json"
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "said": said[-TAIL_CHARACTERS:],
        "result": json.loads(written.read_text()) if written.exists() else None,
    }


def markdown(found: dict[str, dict[str, Any]], listed: list[Part]) -> str:
    """Lay out how each part ended, then their tables."""
    lines = ["# A session on a device", "", "| part | ended | seconds |", "| --- | --- | ---: |"]
    for name, one in found.items():
        lines.append(f"| {name} | {one['status']} | {one['seconds']:.0f} |")
    for part in listed:
        one = found.get(part.name)
        if one is None:
            continue
        lines += ["", f"## {part.name}", ""]
        if part.markdown and one["result"]:
            lines += [part.markdown(one["result"]).rstrip()]
        if one["status"] != "done" or part.markdown is None:
            lines += ["", "```", one["said"].strip()[-1500:], "```"]
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A folder.")
@click.option("--spent", default=0, help="Seconds of the session that are over.")
@click.option("--stand-in", is_flag=True, help="A few kernels, on the stand-in for a driver.")
def main(output: Path, spent: int, stand_in: bool) -> None:
    end = time.monotonic() + LIMIT_S - spent
    if stand_in:
        os.environ[STAND_IN] = "1"
    folder = output / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = parts(folder, stand_in)
    found: dict[str, dict[str, Any]] = {}
    for part in listed:
        limit_s = min(part.limit_s, end - time.monotonic())
        if limit_s < 1:
            found[part.name] = {"status": "no time left", "seconds": 0, "said": "", "result": None}
        else:
            found[part.name] = run(part, folder, limit_s)
        click.echo(f"{part.name}: {found[part.name]['status']}", err=True)
        write_json(output / "gpu-session.json", found)
        (output / "gpu-session.md").write_text(markdown(found, listed))
    shutil.rmtree(folder)
    click.echo((output / "gpu-session.md").read_text())
    raise SystemExit(any(one["status"] != "done" for one in found.values()))


if __name__ == "__main__":
    main()
