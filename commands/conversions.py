"""Run conversions, show what they did or would do, and say what is left when one is interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.progress import Display, progress
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.commands.text.summary import summary_lines
from weightcast.converters.convert import Conversion
from weightcast.converters.engine import OnProgress, Progress
from weightcast.converters.files import partial_path
from weightcast.converters.output import kept_work
from weightcast.converters.sources import ConvertOptions
from weightcast.text import some


def copy(
    plan: Callable[[], Conversion],
    output: Path,
    options: ConvertOptions,
    *,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    all_tensors: bool,
) -> None:
    """Plan the copying of a file, run it unless it is a `dry_run`, and show the result."""
    with progress(quiet=quiet or as_json) as shown, telling_what_is_left([output], options):
        conversion = plan()
        summary = None
        if not dry_run:
            summary = conversion.run(told_of_kept_work(conversion, shown, quiet=quiet))
    if summary is None:
        show_plan(conversion, quiet=quiet, as_json=as_json, all_tensors=all_tensors)
    elif as_json:
        print_json({"dry_run": False, **summary.describe()})
    elif not quiet:
        print_lines(summary_lines(summary, all_tensors=all_tensors))


def show_plan(conversion: Conversion, *, quiet: bool, as_json: bool, all_tensors: bool) -> None:
    """Show what a conversion would do."""
    plan, workers = conversion.plan, conversion.workers
    if as_json:
        print_json({"dry_run": True, **plan_values(plan, workers)})
    elif not quiet:
        print_lines(plan_lines(plan, workers, all_tensors=all_tensors))


def told_of_kept_work(conversion: Conversion, shown: Display, *, quiet: bool) -> OnProgress:
    """Show progress, and say before that which work of an interrupted run is gone on with."""
    outputs = [output.request.path for output in conversion.plan.outputs]
    kept = kept_work(outputs) if conversion.options.resume and not quiet else ""

    def on_progress(progress: Progress) -> None:
        nonlocal kept
        if kept and progress.phase == "check":  # it is ours, and is gone on with
            shown.tell(f"going on after {kept}, which is checked first")
            kept = ""
        shown(progress)

    return on_progress


@contextmanager
def telling_what_is_left(outputs: Iterable[Path], options: ConvertOptions) -> Iterator[None]:
    """Say at an interrupt what is there of outputs: what this run finished, or an earlier one."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left(list(outputs), options)) from None


def _left(paths: Sequence[Path], options: ConvertOptions) -> str:
    again = "run the same command again"
    if kept := kept_work(paths):
        how = f"{again}{' to go on' if options.resume else ' without --no-resume to go on'}"
        return f"{kept} {'are' if ', ' in kept else 'is'} finished and kept; {how}"
    growing = [path for path in paths if os.path.lexists(partial_path(path))]
    if growing:
        names = some([path.name for path in growing])
        return f"nothing is finished of {names}; {again}, or remove it with weightcast clean"
    return f"nothing incomplete was left behind; {again}"
