"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from weightcast.converters import convert as conversion
from weightcast.converters import describe
from weightcast.converters.execute import default_workers
from weightcast.converters.sources import open_graph
from weightcast.quant.errors import CheckpointError

EXISTING = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="weightcast")
def commands() -> None:
    """Convert released JAX checkpoints (Grok-1) into GGUF and safetensors."""


@commands.command()
@click.argument("path", type=EXISTING)
@click.option("--spec", type=EXISTING, help="JSON file of hyperparameters (keys as in spec.json).")
@click.option("--all", "all_tensors", is_flag=True, help="A line for each tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path, spec: Path | None, all_tensors: bool, as_json: bool) -> None:
    """Show what is in a checkpoint: hyperparameters, tensors, shapes, sizes. Reads no weights."""
    graph = open_graph(path, spec)
    if as_json:
        click.echo(json.dumps(describe.graph_values(graph), indent=1))
    else:
        for line in describe.graph_lines(graph, all_tensors=all_tensors):
            click.echo(line)


@commands.command()
@click.argument("source", metavar="SRC", type=EXISTING)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1, required=True)
@click.option("--type", "types", multiple=True, help="Type of an output; once for each OUT.")
@click.option("--spec", type=EXISTING, help="JSON file of hyperparameters (keys as in spec.json).")
@click.option("--tokenizer", type=EXISTING, help="SentencePiece file (default: beside SRC).")
@click.option("--no-tokenizer", is_flag=True, help="Write outputs without a tokenizer.")
@click.option("--split", metavar="SIZE", help="Largest size of one file, such as 48G or 4GiB.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker threads (default: cores + 1).")
@click.option("--dry-run", is_flag=True, help="Print the exact sizes and write nothing.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    source: Path,
    outputs: tuple[str, ...],
    types: tuple[str, ...],
    spec: Path | None,
    tokenizer: Path | None,
    no_tokenizer: bool,
    split: str | None,
    jobs: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert SRC to one or several outputs, in one read.

    SRC is a ckpt-0 directory (or its parent), a GGUF file or safetensors. The name of each OUT says
    what it is: grok-1-Q8_0.gguf, grok-1-BF16.gguf, or a directory such as grok-1-bf16/.
    """
    plan = conversion.prepare(
        source,
        outputs,
        types=types,
        spec=spec,
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        split=split,
    )
    values: dict[str, Any]
    if dry_run:
        values = {"outputs": [output.describe() for output in plan.outputs]}
        values["parameters"] = plan.graph.parameters
        lines = describe.plan_lines(plan, jobs or default_workers())
    else:
        with _progress(plan.read_bytes, quiet=quiet or as_json) as on_progress:
            summary = conversion.run(plan, jobs, on_progress)
        values = summary.describe()
        lines = describe.summary_lines(summary)
    if as_json:
        click.echo(json.dumps(values, indent=1))
    elif not quiet:
        for line in lines:
            click.echo(line)


@commands.command()
@click.option("--keep", type=EXISTING, help="Write the files into this directory and keep them.")
def demo(keep: Path | None) -> None:
    """Make a tiny checkpoint, convert it, run the results in llama.cpp and compare."""
    from weightcast.converters.demo import run_demo

    for line in run_demo(keep):
        click.echo(line)


@contextmanager
def _progress(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Report progress on stderr: a bar on a terminal, else a line now and then."""
    if quiet:
        yield lambda nbytes: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total_bytes, unit="B", unit_scale=True, smoothing=0.1) as bar:
            lock = threading.Lock()

            def update(nbytes: int) -> None:
                with lock:
                    bar.update(nbytes)

            yield update
    else:
        yield _ProgressLines(total_bytes).update


class _ProgressLines:
    """Plain lines with an estimate, every 15 seconds."""

    INTERVAL_S = 15.0

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._done = 0
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def update(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._last < self.INTERVAL_S:
                return
            self._last = now
            share = self._done / self._total
            left = (now - self._start) * (1 - share) / share
            click.echo(f"{share:.0%} done, about {left / 60:.0f} min left", err=True)


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        commands(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "interrupted: no output was written, earlier ones are as they were; "
            "run the same command to start over",
            err=True,
        )
        sys.exit(130)
    except conversion.RequestError as error:
        click.echo(f"usage error: {error}", err=True)
        sys.exit(2)
    except CheckpointError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
