"""The command `demo`: convert a tiny checkpoint, run it in llama.cpp and in numpy, compare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click

from weightcast.commands import llama_cpp
from weightcast.commands.options import PATH
from weightcast.commands.printing import print_lines
from weightcast.commands.text.demo import Table
from weightcast.converters.convert import convert
from weightcast.converters.families import FAMILIES
from weightcast.converters.sources import open_family
from weightcast.errors import OutputError

_SEED: Final = 20


@click.command()
@click.option("--keep", type=PATH, help="Write the files into this directory and keep them.")
def demo(keep: Path | None) -> None:
    """Make a tiny checkpoint, convert it, run the results in llama.cpp and compare."""
    print_lines(run_demo(keep))


def run_demo(keep: Path | None = None) -> Iterator[str]:
    """Run the demo and yield what to print; files go to `keep`, or are removed at the end."""
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise OutputError(f"{keep}: cannot be written: {problem.strerror}") from None
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as folder:
        yield from _run(Path(folder))


def _run(folder: Path) -> Iterator[str]:
    example = FAMILIES["grok-1"].example
    assert example is not None
    source = example.write(folder / "tiny-grok", _SEED)
    graph = open_family(source)
    yield f"A tiny Grok-1: {graph.parameters:,} parameters in {len(list(source.iterdir()))} shards."
    targets = [folder / name for name in ("tiny-F32.gguf", "tiny-Q8_0.gguf", "tiny-bf16")]
    summary = convert(source, *targets, no_tokenizer=True)
    yield (
        f"Converted to {', '.join(t.name for t in targets)} in one read, {summary.seconds:.2f} s:"
    )
    lossless = len(summary.block_origins(1)["lossless"])
    yield f"  tiny-Q8_0.gguf carries the int8 codes of {lossless} tensors unchanged."
    yield ""
    tokens = example.sample_tokens(graph, _SEED)
    start = time.monotonic()
    expected = example.logits(graph, tokens)
    table = Table(expected)
    size = sum(file.stat().st_size for file in source.iterdir())
    yield table.HEADER
    yield table.line("shards", "forward", size, time.monotonic() - start, expected)
    for target, output in zip(targets, summary.plan.outputs, strict=True):
        start = time.monotonic()
        logits = example.logits(open_family(target), tokens)
        yield table.line(target.name, "forward", output.size, time.monotonic() - start, logits)
        if target.suffix == ".gguf" and llama_cpp.library_path() is not None:
            start = time.monotonic()
            logits = llama_cpp.logits(target, tokens.tolist())
            seconds = time.monotonic() - start
            yield table.line(target.name, "llama.cpp", output.size, seconds, logits)
    yield ""
    if llama_cpp.library_path() is None:
        yield "llama.cpp is not installed: pip install 'weightcast[llama-cpp]' to run it as well."
    yield "forward is weightcast's float32 reference; the difference is that of log-probabilities."
    yield "llama.cpp rounds activations to 8 bits before it multiplies them with Q8_0 weights."
