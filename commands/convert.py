"""The command `convert`: write outputs, or tell what would be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from weightcast.commands.options import (
    PATH,
    Command,
    all_tensors,
    as_json,
    convert_options,
    fail_over,
    option,
    quiet,
)
from weightcast.commands.printing import print_json, print_lines, tell, tell_violations
from weightcast.commands.progress import progress
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.commands.text.summary import summary_lines
from weightcast.converters.convert import Conversion, Summary, plan_conversion
from weightcast.converters.output import kept_work
from weightcast.converters.recipes import recipe_named
from weightcast.converters.report import check_applicable, check_limits, parse_limit, tensor_role
from weightcast.converters.sources import ConvertOptions
from weightcast.errors import RequestError


@click.command(
    cls=Command,
    examples=(
        "weightcast convert grok-1 grok-1-Q4_K_M.gguf",
        "weightcast convert grok-1 grok-1-Q8_0.gguf grok-1-bf16/ --split 48G",
        "weightcast convert grok-1 grok-1-int4-g128-awq/ --imatrix imatrix.gguf",
        "weightcast convert model-BF16.gguf model-Q4_K_M.gguf --tensor-type attn_v=Q8_0",
        "weightcast convert grok-1 grok-1-Q2_K.gguf --report errors.html --fail-over sqnr_db=9",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1)
@option(
    "-n",
    "--dry-run",
    section="output",
    is_flag=True,
    help="Print exact sizes, memory and time; write nothing.",
)
@convert_options(ConvertOptions)
@fail_over
@all_tensors
@quiet
@as_json
def convert(
    source: Path,
    outputs: tuple[str, ...],
    limits: tuple[str, ...],
    dry_run: bool,
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SRC to one or several outputs, in one read.

    SRC is a ckpt-0 directory (or its parent), a GGUF file of any model, or a safetensors directory.
    The name of each OUT says what it is:

    \b
    NAME-TYPE.gguf  Q8_0, Q6_K, Q5_K_M, Q4_K_M, IQ4_XS, IQ3_M, Q2_K, MXFP4, BF16, F16 ...
    NAME-TYPE/      bf16, f16, int8, int4-g128, int4-g128-awq, int8-gptq, fp8, nvfp4 ...

    `weightcast types` lists all of them, with bits per weight and the runtimes that read them.
    """
    _check_arguments(source, outputs)
    parsed = [parse_limit(text) for text in limits]
    conversion = plan_conversion(
        source,
        outputs,
        ConvertOptions(**options),
        needs_errors=bool(parsed),
        on_note=(lambda note: None) if quiet else (lambda note: tell(f"note: {note}")),
    )
    plan = conversion.plan
    roles = (tensor_role(t.gguf_name) for output in plan.outputs for t in output.tensors)
    check_applicable(parsed, roles, weighted=conversion.options.imatrix is not None)
    if dry_run:
        _show_plan(conversion, quiet=quiet, as_json=as_json, all_tensors=all_tensors)
        return
    summary = _run(conversion, quiet=quiet, has_progress=not (quiet or as_json))
    violations = [] if summary.errors is None else check_limits(summary.errors, parsed)
    if as_json:
        print_json(summary.describe())
    elif not quiet:
        print_lines(summary_lines(summary, all_tensors=all_tensors))
    tell_violations(violations)
    if violations:
        sys.exit(1)


def _check_arguments(source: Path, outputs: tuple[str, ...]) -> None:
    """Explain arguments in the order of another program. Raises RequestError."""
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
        print_json(plan_values(plan, workers))
    elif not quiet:
        print_lines(plan_lines(plan, workers, all_tensors=all_tensors))


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
