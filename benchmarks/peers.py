#!/usr/bin/env python3
"""One real-size Grok-1 layer to Q8_0 and Q4_K_M: weightcast, llama.cpp's way and torch, in one run.

8.1 GB of shards are made once (`--data DIR` keeps them). Each repetition runs every step in turn,
as a process of its own. Steps start from files that are in the page cache as far as memory goes
(`--cold`: dropped from it) and after a flush; what a step makes is deleted when no later one reads
it. Only weightcast and `cp`, flushed, wait until the output is on the disk.

llama.cpp's way starts from the bf16 directory that weightcast writes, since nothing else reads the
shards; the time of that is not counted. Needs about 45 GB of free disk, torch and transformers, and
cmake and a network if llama.cpp is not there (`--llama-cpp DIR`: source, with build/bin in it).

    .venv/bin/python -m benchmarks.peers --data layer --output benchmarks/results/peers
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.children import measured, nbytes, prepare
from benchmarks.convert import checkpoint
from benchmarks.llama_cpp_source import CONVERTER, PACKAGE, QUANTIZE, llama_cpp
from benchmarks.peers_table import markdown
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.quant.cpu.library import isa

Run = dict[str, float]


@dataclass(frozen=True)
class Step:
    """A command that makes one file or folder of another; `keeps`: later steps read it."""

    name: str
    command: list[str]
    reads: Path
    makes: Path
    keeps: bool = False


# What is compared: the steps that take a user from the shards (llama.cpp: from the bf16 directory)
# to an output, and what to compare that with.
WAYS = {
    "cp": ("cp",),
    "cp, flushed": ("cp, flushed",),
    "weightcast: Q8_0": ("weightcast: Q8_0",),
    "weightcast: Q4_K_M": ("weightcast: Q4_K_M",),
    "llama.cpp: Q8_0": ("llama.cpp: bf16 GGUF", "llama.cpp: llama-quantize Q8_0"),
    "llama.cpp: Q8_0 in one step": ("llama.cpp: converter to Q8_0",),
    "llama.cpp: Q4_K_M": ("llama.cpp: bf16 GGUF", "llama.cpp: llama-quantize Q4_K_M"),
    "torch and gguf-py: Q8_0": ("torch and gguf-py: Q8_0",),
    "torch alone: Q8_0": ("torch alone: Q8_0",),
}


def steps(folder: Path, work: Path, peer: Path) -> Iterator[Step]:
    """All steps, in an order in which each finds what it reads."""
    shards, python = folder / "ckpt-0", sys.executable
    copy, directory, gguf = work / "copy", work / "x-bf16", work / "llama-bf16.gguf"
    weightcast = [str(Path(python).with_name("weightcast")), "convert", "--quiet"]
    torch = [python, "-m", "benchmarks.torch_pipeline", str(shards), str(work / "torch.bin")]
    converter = [python, str(peer / CONVERTER), str(directory), "--outfile"]
    flushed = f"cp -r '{shards}' '{copy}' && sync '{copy}'/*"
    yield Step("cp", ["cp", "-r", str(shards), str(copy)], shards, copy)
    yield Step("cp, flushed", ["sh", "-c", flushed], shards, copy)
    for name in ("Q8_0", "Q4_K_M"):
        target = work / f"x-{name}.gguf"
        command = [*weightcast, "--no-tokenizer", str(shards), str(target)]
        yield Step(f"weightcast: {name}", command, shards, target)
    for quantize, name in (("gguf", "torch and gguf-py"), ("torch", "torch alone")):
        command = [*torch, "--quantize", quantize]
        yield Step(f"{name}: Q8_0", command, shards, work / "torch.bin")
    tokenizer = str(work / "tokenizer.model")
    command = [*weightcast, "--tokenizer", tokenizer, str(shards), str(directory)]
    yield Step("weightcast: bf16 directory", command, shards, directory, keeps=True)
    command = [*converter, str(gguf), "--outtype", "bf16"]
    yield Step("llama.cpp: bf16 GGUF", command, directory, gguf, keeps=True)
    for name in ("Q8_0", "Q4_K_M"):
        target = work / f"llama-{name}.gguf"
        command = [str(peer / QUANTIZE), str(gguf), str(target), name]
        yield Step(f"llama.cpp: llama-quantize {name}", command, gguf, target)
    target = work / "llama-one-Q8_0.gguf"
    command = [*converter, str(target), "--outtype", "q8_0"]
    yield Step("llama.cpp: converter to Q8_0", command, directory, target)


def chosen(all_steps: list[Step], only: str) -> list[Step]:
    """The steps whose names begin with something, and those that make what they read."""
    todo: list[Step] = []
    for step in reversed(all_steps):
        if step.name.startswith(only) or any(later.reads == step.makes for later in todo):
            todo.insert(0, step)
    return todo


def write_tokenizer(path: Path) -> None:
    """Make a small SentencePiece model: llama.cpp's converter insists on one."""
    from sentencepiece import SentencePieceTrainer

    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]
    SentencePieceTrainer.Train(
        sentence_iterator=iter([" ".join(words[n:] + words[:n]) for n in range(0, 240, 5)]),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )


def remove(path: Path) -> None:
    """Delete what a step made, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_all(todo: list[Step], work: Path, *, cold: bool) -> dict[str, Run]:
    """Run every step once."""
    found: dict[str, Run] = {}
    try:
        for step in todo:
            remove(step.makes)
            prepare([step.reads], cold=cold)
            run = measured(step.command, work / "log.txt")
            sizes = {"read_gb": nbytes([step.reads]) / 1e9, "made_gb": nbytes([step.makes]) / 1e9}
            found[step.name] = {**run, **sizes}
            numbers = ", ".join(f"{key} {value:.2f}" for key, value in found[step.name].items())
            click.echo(f"{step.name}: {numbers}")
            if not step.keeps:
                remove(step.makes)
    finally:
        for step in todo:
            remove(step.makes)
    return found


def summary(runs: list[dict[str, Run]]) -> dict[str, dict[str, Run]]:
    """Medians of the steps, and of the ways: times and bytes added up, the largest memory."""

    def way(run: Mapping[str, Run], names: tuple[str, ...]) -> Run:
        join = {"peak_gb": max, "own_gb": max}
        keys = run[names[0]]
        return {key: join.get(key, sum)(run[name][key] for name in names) for key in keys}

    def medians(found: list[Run]) -> Run:
        return {key: round(statistics.median(r[key] for r in found), 3) for key in found[0]}

    done = {name: names for name, names in WAYS.items() if all(n in runs[0] for n in names)}
    return {
        "steps": {name: medians([run[name] for run in runs]) for name in runs[0]},
        "ways": {n: medians([way(run, names) for run in runs]) for n, names in done.items()},
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Keep the checkpoint in DIR.")
@click.option("--work", type=click.Path(path_type=Path), help="Make files there (default: DIR).")
@click.option("--llama-cpp", "peer", type=click.Path(path_type=Path), help="Source and build.")
@click.option("--repeat", default=3, show_default=True)
@click.option("--only", default="", help="Only steps whose names begin so.")
@click.option("--cold", is_flag=True, help="Drop from the cache what a step reads.")
@click.option("--output", type=click.Path(path_type=Path), help="Write OUT.json and OUT.md.")
def main(
    data: Path | None,
    work: Path | None,
    peer: Path | None,
    repeat: int,
    only: str,
    cold: bool,
    output: Path | None,
) -> None:
    """Measure all ways, one after the other, `--repeat` times."""
    with checkpoint(data, {**RELEASE, "num_layers": 1}) as folder:
        work = (work or folder).resolve()
        peer = llama_cpp((peer or work / "llama.cpp").resolve())
        write_tokenizer(work / "tokenizer.model")
        todo = chosen(list(steps(folder.resolve(), work, peer)), only)
        runs = [run_all(todo, work, cold=cold) for _ in range(repeat)]
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {isa()} kernels",
        "cache": "cold" if cold else "warm, as far as memory goes",
        "versions": {name: version(name) for name in ("weightcast", "torch", "numpy", "gguf")},
        "llama_cpp": PACKAGE,
        "repeat": repeat,
        **summary(runs),
        "runs": runs,
    }
    text = markdown(report)
    click.echo(text)
    if output is not None:
        output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
