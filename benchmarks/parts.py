#!/usr/bin/env python3
"""Split a GGUF file and merge it again, beside llama-gguf-split and the disk.

A file of F16 tensors of 64 MB each is made once. Each repetition runs, in turn, weightcast,
llama-gguf-split followed by sync, and cp followed by sync, from files in the page cache:
weightcast flushes its files before it names them. Outputs are compared, whole files.

    .venv/bin/python -m benchmarks.parts --llama-cpp llama.cpp > benchmarks/results/parts.md
"""

from __future__ import annotations

import filecmp
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import click
import numpy as np

from benchmarks.children import measured, prepare
from benchmarks.llama_cpp_source import PACKAGE, PROGRAMS, llama_cpp

_ROWS, _COLUMNS = 8192, 4096


def write_model(path: Path, gigabytes: float) -> None:
    """Write a file of F16 tensors, whose bytes are random."""
    from gguf import GGUFWriter

    tensor = np.random.default_rng(0).integers(0, 256, (_ROWS, 2 * _COLUMNS), np.uint8)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for number in range(int(gigabytes * 1e9 / tensor.nbytes)):
        tensor[0, 0] = number % 256
        writer.add_tensor(f"blk.{number}.ffn_up.weight", tensor.view(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ways(tool: Path, model: Path, work: Path, size: str) -> Iterator[tuple[str, list[str], Path]]:
    """List what is timed: its name, its command, and what it reads."""
    weightcast = [str(Path(sys.executable).with_name("weightcast"))]
    quiet = ["--quiet", "--no-resume"]
    first = next(work.glob("theirs-00001-of-*.gguf"), work / "none")
    split = [str(tool), "--split", "--split-max-size", size, str(model), str(work / "theirs")]
    merge = [str(tool), "--merge", str(first), str(work / "theirs-merged.gguf")]
    ours = [*weightcast, "split", *quiet, "--max-size", size, str(model), str(work / "ours.gguf")]
    yield "split: weightcast", ours, model
    yield "split: llama-gguf-split, sync", _flushed(split, work / "theirs-0*"), model
    yield "split: cp, sync", _flushed(["cp", str(model), str(work / "copy")], work / "copy"), model
    ours = [*weightcast, "merge", *quiet, str(first), str(work / "ours-merged.gguf")]
    yield "merge: weightcast", ours, first
    yield "merge: llama-gguf-split, sync", _flushed(merge, work / "theirs-merged.gguf"), first


def _flushed(command: Sequence[str], made: Path) -> list[str]:
    return ["sh", "-c", f"{' '.join(command)} && sync {made}"]


def _clear(work: Path, name: str) -> None:
    """Delete what a way makes; llama-gguf-split refuses to replace it."""
    made = {"split: w": "ours-0*", "split: l": "theirs-0*", "split: c": "copy"}
    made |= {"merge: w": "ours-merged*", "merge: l": "theirs-merged*"}
    for path in work.glob(made[name[:8]]):
        path.unlink()


@click.command()
@click.option("--gigabytes", default=4.0, show_default=True)
@click.option("--size", default="1G", show_default=True, help="Most data of a part.")
@click.option("--repeat", default=5, show_default=True)
@click.option("--llama-cpp", "peer", type=click.Path(path_type=Path), help="llama.cpp's source.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder to work in.")
def main(gigabytes: float, size: str, repeat: int, peer: Path | None, work: Path | None) -> None:
    """Measure, and print a table in Markdown; exit code 1 if files differ."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        tools = llama_cpp((peer or folder / "llama.cpp").absolute(), "llama-gguf-split")
        tool, model = tools / PROGRAMS / "llama-gguf-split", folder / "model-F16.gguf"
        write_model(model, gigabytes)
        seconds: dict[str, list[float]] = {}
        for _ in range(repeat):
            for number in range(5):
                way, command, reads = list(ways(tool, model, folder, size))[number]
                _clear(folder, way)
                prepare([reads], cold=False)
                seconds.setdefault(way, []).append(measured(command, folder / "log")["wall_s"])
        theirs = sorted(folder.glob("theirs-*.gguf"))
        same = [filecmp.cmp(t, folder / t.name.replace("theirs", "ours"), False) for t in theirs]
        used = shutil.disk_usage(folder).total
    print(f"# Split and merge, {date.today().isoformat()}\n")
    print(f"{gigabytes} GB into parts of {size}; {platform.machine()}, {os.cpu_count()} cores, ")
    print(f"disk of {used / 1e9:.0f} GB; {PACKAGE}. Medians of {repeat} runs; whole files are ")
    print(f"{'equal' if all(same) else 'DIFFERENT'}.\n")
    print("| | seconds | GB/s | weightcast is times as fast |\n| --- | ---: | ---: | ---: |")
    for way, times in seconds.items():
        ours = seconds[f"{way[:5]}: weightcast"]
        ratio = statistics.median(b / a for a, b in zip(ours, times, strict=True))
        median = statistics.median(times)
        print(f"| {way} | {median:.2f} | {gigabytes / median:.2f} | {ratio:.2f} |")
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
