"""The command `convert`: write outputs, or tell what would be written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from weightcast.commands.options import PATH, as_json, convert_options, fail_over, quiet
from weightcast.commands.printing import print_json, print_lines, tell, tell_violations
from weightcast.commands.progress import progress
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.commands.text.summary import summary_lines
from weightcast.converters.convert import Conversion, Summary, plan_conversion
from weightcast.converters.output import kept_work
from weightcast.converters.report import check_applicable, check_limits, parse_limit, tensor_role
from weightcast.converters.sources import ConvertOptions


@click.command()
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1, required=True)
@convert_options(ConvertOptions, "result", "machine", "errors")
@fail_over
@click.option("--dry-run", is_flag=True, help="Print the exact sizes and write nothing.")
@convert_options(ConvertOptions, "resume")
@quiet
@as_json
def convert(
    source: Path,
    outputs: tuple[str, ...],
    limits: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SRC to one or several outputs, in one read.

    SRC is a ckpt-0 directory (or its parent), a GGUF file or safetensors. The name of each OUT says
    what it is: grok-1-Q8_0.gguf, grok-1-Q4_K_M.gguf, or a directory such as grok-1-bf16/. From a
    GGUF file of any model come GGUF files with all of its metadata.
    """
    parsed = [parse_limit(text) for text in limits]
    conversion = plan_conversion(
        source,
        outputs,
        ConvertOptions(**options),
        limits=parsed,
        on_note=(lambda note: None) if quiet else (lambda note: tell(f"note: {note}")),
    )
    plan = conversion.plan
    roles = (tensor_role(t.gguf_name) for output in plan.outputs for t in output.tensors)
    check_applicable(parsed, roles, weighted=conversion.options.imatrix is not None)
    if dry_run:
        _show_plan(conversion, quiet=quiet, as_json=as_json)
        return
    summary = _run(conversion, quiet=quiet, has_progress=not (quiet or as_json))
    violations = [] if summary.errors is None else check_limits(summary.errors, parsed)
    if as_json:
        print_json(summary.describe())
    elif not quiet:
        print_lines(summary_lines(summary))
    tell_violations(violations)
    if violations:
        sys.exit(1)


def _show_plan(conversion: Conversion, *, quiet: bool, as_json: bool) -> None:
    plan, workers = conversion.plan, conversion.workers
    if as_json:
        print_json(plan_values(plan, workers))
    elif not quiet:
        print_lines(plan_lines(plan, workers))


def _run(conversion: Conversion, *, quiet: bool, has_progress: bool) -> Summary:
    """Run a conversion, with its progress and what is kept of an interrupted run on stderr."""
    plan, resume = conversion.plan, conversion.options.resume
    kept = kept_work(plan) if resume and not quiet else ""
    if kept:
        tell(f"going on after {kept}, which is checked first")
    with (
        _telling_kept_work(conversion),
        progress(plan.progress_bytes, quiet=not has_progress) as on_progress,
    ):
        return conversion.run(on_progress)


@contextmanager
def _telling_kept_work(conversion: Conversion) -> Iterator[None]:
    """Say what an interrupted run keeps for another one."""
    try:
        yield
    except KeyboardInterrupt:
        kept = kept_work(conversion.plan)
        unless = "" if conversion.options.resume else ", unless --no-resume is given again"
        raise KeyboardInterrupt(f"{kept} is finished and kept{unless}" if kept else "") from None
