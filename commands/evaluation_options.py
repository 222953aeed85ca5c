"""Click options of commands that run models over a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from weightcast.commands.options import PATH, Decorated, listed_option
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.progress import Display
from weightcast.commands.text.estimate import estimate_lines
from weightcast.commands.work_options import WORKERS
from weightcast.converters.engine import OnProgress, Progress
from weightcast.converters.output import finished_layers
from weightcast.converters.sources import parse_size
from weightcast.evaluation.api import TextOptions
from weightcast.evaluation.arithmetic import FLOAT32, PRECISIONS
from weightcast.evaluation.estimate import Estimate
from weightcast.evaluation.settings import Settings
from weightcast.evaluation.work import Extent
from weightcast.formats.gguf.importance_sums import CHUNK_SIZE
from weightcast.text import count

_TEXT: Final = (
    listed_option(
        "-c",
        "--context",
        section="source",
        type=click.IntRange(3),
        default=CHUNK_SIZE,
        show_default=True,
        metavar="N",
        help="Tokens of a chunk, which is run on its own.",
    ),
    listed_option(
        "--chunks",
        section="source",
        type=click.IntRange(1),
        metavar="N",
        help="Take the first N chunks (default: all whole ones).",
    ),
    listed_option(
        "--tokenizer",
        section="source",
        type=PATH,
        metavar="FILE",
        help="A tokenizer.model or tokenizer.json, where the source has none.",
    ),
)
_SETTINGS: Final = (
    listed_option(
        "--precision",
        section="precision",
        type=click.Choice(PRECISIONS),
        default=FLOAT32,
        show_default=True,
        help="What products round their inputs to; bfloat16 is faster with torch.",
    ),
    listed_option(
        "--device",
        section="running",
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="cpu, or a device of torch, as cuda.",
    ),
    listed_option(
        "-j",
        "--jobs",
        section="running",
        type=WORKERS,
        metavar="N",
        help="Workers (default: cores). Results do not depend on it.",
    ),
    listed_option(
        "--memory",
        section="running",
        metavar="SIZE",
        help="Memory for activations, the rest of which lie in a file (default: all).",
    ),
    listed_option(
        "--folder",
        section="running",
        type=PATH,
        metavar="DIR",
        help="Where that file is (default: the system's folder for temporary files).",
    ),
    listed_option(
        "--resume/--no-resume",
        section="running",
        default=True,
        help="Go on after the last layer of an interrupted run (default), or start over.",
    ),
)

dry_run = listed_option(
    "-n",
    "--dry-run",
    section="output",
    is_flag=True,
    help="Print what it would read and compute, memory and time; write nothing.",
)


def show_estimate(found: Estimate, extent: Extent, *, quiet: bool, as_json: bool) -> None:
    """Show what a run would take."""
    if as_json:
        print_json({"dry_run": True, **found.describe()})
    elif not quiet:
        print_lines(estimate_lines(found, extent))


def _declare(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):  # the decorator that comes last is shown first
            command = option(command)
        return command

    return decorate


text_options = _declare(_TEXT)
settings_options = _declare(_SETTINGS)


def text_of(
    path: Path, context: int, chunks: int | None, tokenizer: Path | None, **_: object
) -> TextOptions:
    """Put the options of a text together."""
    return TextOptions(path, context, chunks, tokenizer)


def settings_of(
    precision: str,
    device: str,
    jobs: int | None,
    memory: str | None,
    folder: Path | None,
    **_: object,
) -> Settings:
    """Put the options of how models run together. Raises RequestError for a size that is none."""
    nbytes = None if memory is None else parse_size(memory, "memory")
    return Settings(precision, device, jobs, nbytes, folder)


@contextmanager
def telling_what_is_kept(
    output: Path | None, shown: Display, *, resume: bool
) -> Iterator[OnProgress]:
    """Give what shows progress, and say after which layer a run goes on, or can at an interrupt."""
    kept = finished_layers(output) if output is not None and resume else 0

    def on_progress(progress: Progress) -> None:
        nonlocal kept
        if kept and progress.phase == "run" and output is not None:
            if progress.done_bytes:  # else it found them to be damaged
                shown.tell(f"going on after {count(kept, 'layer')} of {output.name}")
            kept = 0
        shown(progress)

    try:
        yield on_progress
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left(output, resume=resume)) from None


def _left(output: Path | None, *, resume: bool) -> str:
    """Say at an interrupt what another run can go on with."""
    again = "run the same command again"
    if output is None:
        return f"nothing is kept without an output; {again}"
    if layers := finished_layers(output):
        how = "to go on" if resume else "without --no-resume to go on"
        verb = "is" if layers == 1 else "are"
        return f"{count(layers, 'layer')} of {output.name} {verb} finished and kept; {again} {how}"
    return f"no layer of {output.name} is finished; {again}"
