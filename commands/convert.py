"""The command `convert`: write outputs, or tell what would be written."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from weightcast.commands.exits import FAILED_CHECK
from weightcast.commands.options import PATH, Command, all_tensors, as_json, listed_option, quiet
from weightcast.commands.printing import (
    print_json,
    print_lines,
    tell,
    violation_lines,
    violation_values,
)
from weightcast.commands.progress import Display, progress
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.commands.text.summary import summary_lines
from weightcast.commands.work_options import convert_options, fail_over
from weightcast.converters.convert import Conversion, Summary, plan_conversion
from weightcast.converters.engine import Progress
from weightcast.converters.files import partial_path
from weightcast.converters.output import kept_work
from weightcast.converters.plan import Plan
from weightcast.converters.recipes import recipe_named
from weightcast.converters.report import (
    Limit,
    Report,
    Violation,
    check_applicable,
    check_limits,
    parse_limit,
    tensor_role,
)
from weightcast.converters.sources import ConvertOptions
from weightcast.errors import LimitError, RequestError
from weightcast.text import count, some


@click.command(
    cls=Command,
    examples=(
        "weightcast convert grok-1 grok-1-Q4_K_M.gguf",
        "weightcast convert grok-1 grok-1-Q8_0.gguf grok-1-bf16/ --split 48G",
        "weightcast convert grok-1 grok-1-int4-g128-awq/ --imatrix imatrix.gguf",
        "weightcast convert model-BF16.gguf model-Q4_K_M.gguf --tensor-type attn_v=Q8_0",
        "weightcast convert model-BF16.gguf tuned-Q4_K_M.gguf --lora lora=0.8",
        "weightcast convert grok-1 grok-1-Q2_K.gguf --report errors.html --fail-over sqnr_db=9",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1)
@listed_option(
    "-n",
    "--dry-run",
    section="output",
    is_flag=True,
    help="Print exact sizes, memory and time; write nothing.",
)
@convert_options(ConvertOptions)
@fail_over
@listed_option(
    "--gate",
    section="reporting",
    type=click.Choice(["before-naming", "after"]),
    default=None,
    help="Leave what fails --fail-over unnamed (before-naming, the default), or name it (after).",
)
@all_tensors
@quiet
@as_json
def convert(
    source: Path,
    outputs: tuple[str, ...],
    limits: tuple[str, ...],
    gate: str | None,
    dry_run: bool,
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SRC to one or several outputs, in one read.

    SRC is a ckpt-0 directory (or its parent), a GGUF file of any model, a safetensors directory, or
    an adapter of peft.
    The name of each OUT says what it is:

    \b
    NAME-TYPE.gguf  Q8_0, Q6_K, Q5_K_M, Q4_K_M, IQ4_XS, IQ3_M, Q2_K, MXFP4, BF16, F16 ...
    NAME-TYPE/      bf16, f16, int8, int4-g128, int4-g128-awq, int8-gptq, fp8, nvfp4 ...

    `weightcast types` lists all of them, with bits per weight and the runtimes that read them.
    """
    _check_arguments(source, outputs)
    if gate is not None and not limits:
        raise RequestError("--gate: of use with --fail-over only")
    parsed = [parse_limit(text) for text in limits]
    asked = ConvertOptions(**options)
    with progress(quiet=quiet or as_json) as shown, _telling_what_is_left(outputs, asked):
        conversion = plan_conversion(
            source,
            outputs,
            asked,
            limits=parsed,
            on_note=lambda note: None if quiet else shown.tell(f"note: {note}"),
        )
        plan = conversion.plan
        roles = (tensor_role(t.gguf_name) for output in plan.outputs for t in output.tensors)
        check_applicable(parsed, roles, weighted=asked.imatrix is not None)
        before = [] if gate == "after" else parsed
        summary = None if dry_run else _run(conversion, before, shown, quiet=quiet)
    if summary is None:
        _show_plan(conversion, quiet=quiet, as_json=as_json, all_tensors=all_tensors)
    else:
        _show_summary(summary, parsed, quiet=quiet, as_json=as_json, all_tensors=all_tensors)


def _check_arguments(source: Path, outputs: tuple[str, ...]) -> None:
    """Explain arguments in the order of another program. Raises RequestError."""
    if "" in outputs:
        raise RequestError("the name of an output is empty")
    if not outputs:
        example = f"{source.name.removesuffix(source.suffix)}-Q4_K_M.gguf"
        raise RequestError(f"name an output after {source}, such as {example}")
    first, *others = outputs
    for text in others:
        if (recipe := recipe_named(text)) is not None and not Path(text).exists():
            stem = first.removesuffix(".gguf")
            raise RequestError(
                f"{text} is a type, not an output; write {stem}-{recipe.name}.gguf, or pass "
                f"--type {recipe.name}"
            )
    if not source.exists() and (there := next(filter(os.path.exists, outputs), None)):
        raise RequestError(
            f"{source}: no such file or directory, but {there} is there; SRC comes first, then OUT"
        )


def _show_plan(conversion: Conversion, *, quiet: bool, as_json: bool, all_tensors: bool) -> None:
    plan, workers = conversion.plan, conversion.workers
    if as_json:
        print_json({"dry_run": True, **plan_values(plan, workers)})
    elif not quiet:
        print_lines(plan_lines(plan, workers, all_tensors=all_tensors))


def _show_summary(
    summary: Summary, limits: list[Limit], *, quiet: bool, as_json: bool, all_tensors: bool
) -> None:
    """Show what was done, and what is beyond a limit, which is exit code 3."""
    violations = [] if summary.errors is None else check_limits(summary.errors, limits)
    if as_json:
        found = {"violations": violation_values(violations)} if limits else {}
        print_json({"dry_run": False, **summary.describe(), **found})
    elif not quiet:
        print_lines(summary_lines(summary, all_tensors=all_tensors))
    tell(*violation_lines(violations))
    if violations:
        sys.exit(FAILED_CHECK)


def _run(conversion: Conversion, limits: list[Limit], shown: Display, *, quiet: bool) -> Summary:
    """Run a conversion; what is beyond a limit keeps outputs from getting their names."""
    plan = conversion.plan
    outputs = [output.request.path for output in plan.outputs]
    kept = kept_work(outputs) if conversion.options.resume and not quiet else ""

    def on_progress(progress: Progress) -> None:
        nonlocal kept
        if kept and progress.phase == "check":  # it is ours, and is gone on with
            shown.tell(f"going on after {kept}, which is checked first")
            kept = ""
        shown(progress)

    def gate(report: Report) -> None:
        violations = check_limits(report, limits)
        if violations:
            shown.tell(*violation_lines(violations))
            raise LimitError(_unnamed(plan, violations), violation_values(violations))

    return conversion.run(on_progress, gate)


def _unnamed(plan: Plan, violations: Sequence[Violation]) -> str:
    """Say that outputs are made and have no names, where they are, and what to do with them."""
    paths = [output.request.path for output in plan.outputs]
    first = [
        partial_path(output.request.path)
        if output.request.target.is_directory
        else partial_path(output.files[0].path)
        for output in plan.outputs
    ]
    values = f"{count(len(violations), 'value')} {'is' if len(violations) == 1 else 'are'}"
    earlier = [str(path) for path in paths if path.exists()]
    stays = f" ({some(earlier)}: what is there is an earlier output)" if earlier else ""
    remove = shlex.join(["weightcast", "clean", *map(str, paths)])
    return (
        f"{some([str(path) for path in paths])}: not named, as {values} beyond a limit{stays}; the "
        f"work is kept in {some([path.name for path in first])}: run again with other limits or "
        f"--gate after, or remove it with {remove}"
    )


@contextmanager
def _telling_what_is_left(outputs: Sequence[str], options: ConvertOptions) -> Iterator[None]:
    """Say at an interrupt what is there of outputs: what this run finished, or an earlier one."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left([Path(output) for output in outputs], options)) from None


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
