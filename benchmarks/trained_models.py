#!/usr/bin/env python3
"""Convert trained models beside llama.cpp's own tools: whole files compared, times as ratios.

SmolLM2-135M and Gemma 3 270M come as GGUF files in packages on PyPI (`--models DIR` keeps them).
Each is dequantized to F16, and that is quantized by every recipe, by both programs in turn, from
files in the page cache; an importance matrix for the lowest is made by llama-imatrix from the
documentation's text. Then the types of the file as it came are copied, split and merged. Times are
those of whole processes, on as many threads as there are cores. Needs cmake, if llama.cpp is not
there (`--llama-cpp DIR`: source, with build/bin in it), and 3 GB of disk.

    .venv/bin/python -m benchmarks.trained_models > benchmarks/results/trained-models.md
"""

from __future__ import annotations

import filecmp
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from benchmarks.children import measured, prepare
from benchmarks.llama_cpp_source import PACKAGE, PROGRAMS, llama_cpp
from benchmarks.packages import GGUF_MODELS, fetch_gguf
from weightcast.quant.cpu.library import isa

RECIPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K", "TQ2_0"]
WITH_IMPORTANCE = ["Q4_K_M", "IQ3_XXS", "IQ2_XS", "IQ1_M"]
SPLIT_MB = 40
_TOOLS = ("llama-quantize", "llama-gguf-split", "llama-imatrix")


@dataclass(frozen=True)
class Job:
    """The same work by both programs: commands, and the files that each of them makes."""

    name: str
    ours: Sequence[str]
    theirs: Sequence[str]
    made: Sequence[tuple[Path, Path]]
    reads: Path


def jobs(model: Path, peer: Path, work: Path, importance: Path) -> Iterator[Job]:
    """List what is done with a model, in an order in which each finds what it reads."""
    convert = [_program("weightcast"), "convert", "--quiet", "--no-resume"]
    quantize = str(peer / PROGRAMS / "llama-quantize")
    both = work / "ours-F16.gguf", work / "theirs-F16.gguf"
    theirs = [quantize, "--allow-requantize", str(model), str(both[1]), "F16"]
    yield Job("F16", [*convert, str(model), str(both[0])], theirs, [both], model)
    base = both[0]
    for recipe in RECIPES:
        made = work / f"ours-{recipe}.gguf", work / f"theirs-{recipe}.gguf"
        ours = [*convert, str(base), str(made[0])]
        yield Job(recipe, ours, [quantize, str(base), str(made[1]), recipe], [made], base)
    for recipe in WITH_IMPORTANCE:
        made = work / f"ours-{recipe}.gguf", work / f"theirs-{recipe}.gguf"
        matrix = ["--imatrix", importance.name]
        ours = [*convert, *matrix, str(base), str(made[0])]
        theirs = [quantize, *matrix, str(base), str(made[1]), recipe]
        yield Job(f"{recipe}, importance", ours, theirs, [made], base)
    yield from _copies(model, peer, work)


def _copies(model: Path, peer: Path, work: Path) -> Iterator[Job]:
    """Keep the types: copy, split by size, and merge what was split."""
    weightcast, quiet = _program("weightcast"), ["--quiet", "--no-resume"]
    made = work / "ours-COPY.gguf", work / "theirs-COPY.gguf"
    theirs = [str(peer / PROGRAMS / "llama-quantize"), str(model), str(made[1]), "COPY"]
    ours = [weightcast, "convert", *quiet, "--type", "COPY", str(model), str(made[0])]
    yield Job("COPY", ours, theirs, [made], model)
    tool, size = str(peer / PROGRAMS / "llama-gguf-split"), f"{SPLIT_MB}M"
    n_parts = _count_parts(tool, model, size)
    parts = [
        (work / f"ours-{n:05}-of-{n_parts:05}.gguf", work / f"theirs-{n:05}-of-{n_parts:05}.gguf")
        for n in range(1, n_parts + 1)
    ]
    ours = [weightcast, "split", *quiet, "--max-size", size, str(model), str(work / "ours.gguf")]
    theirs = [tool, "--split", "--split-max-size", size, str(model), str(work / "theirs")]
    yield Job(f"split, {n_parts} parts", ours, theirs, parts, model)
    made = work / "ours-merged.gguf", work / "theirs-merged.gguf"
    ours = [weightcast, "merge", *quiet, str(parts[0][1]), str(made[0])]
    yield Job("merge", ours, [tool, "--merge", str(parts[0][1]), str(made[1])], [made], model)


def _count_parts(tool: str, model: Path, size: str) -> int:
    plan = [tool, "--split", "--split-max-size", size, "--dry-run", str(model), "x"]
    said = subprocess.run(plan, check=True, capture_output=True, text=True).stdout
    return int(said.partition("n_split: ")[2].split()[0])


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def make_importance(model: Path, peer: Path, path: Path) -> None:
    """Let llama-imatrix make an importance matrix of the documentation."""
    text = path.with_name("text.txt")
    pages = sorted(Path(__file__).parent.parent.joinpath("docs").glob("*.md"))
    text.write_text("\n\n".join(page.read_text() for page in pages))
    tool = peer / PROGRAMS / "llama-imatrix"
    chunks = ["-c", "512", "--chunks", "10", "-ngl", "0"]
    command = [str(tool), "-m", str(model), "-f", str(text), "-o", str(path), *chunks]
    subprocess.run(command, check=True, capture_output=True)


def run(job: Job, work: Path, repeat: int) -> tuple[float, float, float, bool]:
    """Do it by both programs in turn; median seconds, median ratio, and whether files are equal."""
    ours, theirs = [], []
    for _ in range(repeat):
        for file in (file for pair in job.made for file in pair):
            file.unlink(missing_ok=True)
        prepare([job.reads], cold=False)
        ours.append(measured(list(job.ours), work / "log")["wall_s"])
        theirs.append(measured(list(job.theirs), work / "log")["wall_s"])
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    equal = all(filecmp.cmp(*pair, shallow=False) for pair in job.made)
    return statistics.median(ours), statistics.median(theirs), ratio, equal


@click.command()
@click.option("--models", type=click.Path(path_type=Path), help="Where the models are kept.")
@click.option("--llama-cpp", "peer", type=click.Path(path_type=Path), help="llama.cpp's source.")
@click.option("--repeat", default=5, show_default=True)
@click.option("--fetch", "only_fetch", is_flag=True, help="Only bring the models to their folder.")
def main(models: Path | None, peer: Path | None, repeat: int, *, only_fetch: bool) -> None:
    """Compare, and print a table in Markdown; exit code 1 if files differ."""
    if models is not None:
        models.mkdir(parents=True, exist_ok=True)
        models = models.absolute()
    if only_fetch:
        for name in GGUF_MODELS:
            click.echo(fetch_gguf(models or Path(), name))
        return
    differ = 0
    with (
        tempfile.TemporaryDirectory() as work,
        nullcontext(models) if models else tempfile.TemporaryDirectory() as kept,
    ):
        os.chdir(work)  # the path of an importance matrix is left in what is made with it
        tools = llama_cpp((peer or Path(work, "llama.cpp")).absolute(), *_TOOLS)
        print(f"# Trained models, {date.today().isoformat()}\n")
        print(f"{platform.machine()}, {os.cpu_count()} cores, kernels for {isa()}; {PACKAGE}; ")
        print(f"medians of {repeat} runs.")
        for name in GGUF_MODELS:
            model = fetch_gguf(Path(kept), name)
            importance = Path(work, "importance.gguf")
            make_importance(model, tools, importance)
            print(f"\n## {model.stem}, {model.stat().st_size / 1e6:.0f} MB\n")
            print("| | weightcast | llama.cpp | times as fast | whole files |")
            print("| --- | ---: | ---: | ---: | --- |")
            for job in jobs(model, tools, Path(work), importance):
                ours, theirs, ratio, equal = run(job, Path(work), repeat)
                differ += not equal
                same = "equal" if equal else "DIFFER"
                print(f"| {job.name} | {ours:.2f} s | {theirs:.2f} s | {ratio:.1f} | {same} |")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
