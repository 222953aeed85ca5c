"""The command `convert`: write outputs, or tell what would be written."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from weightcast.commands.conversions import show_plan, telling_what_is_left, told_of_kept_work
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
from weightcast.commands.text.summary import summary_lines
from weightcast.commands.work_options import convert_options, dry_run, fail_over
from weightcast.converters.convert import Conversion, Summary, plan_conversion
from weightcast.converters.files import partial_path
from weightcast.converters.plan import Plan
from weightcast.converters.recipes import Recipe, recipe_named, recipe_numbered
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
from weightcast.text import count, option, some


@click.command(
    cls=Command,
    examples=(
        "weightcast convert grok-1 grok-1-Q4_K_M.gguf",
        "weightcast convert grok-1 grok-1-Q8_0.gguf grok-1-bf16/ --split 48G",
        "weightcast convert grok-1 grok-1-int4-g128-awq/ --imatrix imatrix.gguf",
        "weightcast convert model-BF16.gguf model-Q4_K_M.gguf --tensor-type attn_v=Q8_0",
        "weightcast convert model-BF16.gguf tuned-Q4_K_M.gguf --lora lora=0.8",
        "weightcast convert grok-1 grok-1-Q2_K.gguf --report errors.html --fail-over sqnr_db=9",
        "weightcast convert grok-1 grok-1-180G.gguf --target-size 180G --sensitivity costs.json",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1)
@dry_run
@convert_options(ConvertOptions)
@listed_option(
    "--save-recipe",
    section="precision",
    type=PATH,
    metavar="FILE",
    help="With a target: write the types as a recipe file (TOML), and convert nothing.",
)
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
    save_recipe: Path | None,
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
    NAME-COPY.gguf  every tensor in the type that it has in SRC, a GGUF file
    NAME-TYPE/      bf16, f16, int8, int4-g128, int4-g128-awq, int8-gptq, fp8, nvfp4 ...

    `weightcast types` lists all of them, with bits per weight and the runtimes that read them.
    """
    _check_arguments(source, outputs)
    if gate is not None and not limits:
        raise RequestError("--gate: of use with --fail-over only")
    parsed = [parse_limit(text) for text in limits]
    asked = ConvertOptions(**options)
    with progress(quiet=quiet or as_json) as shown, telling_what_is_left(map(Path, outputs), asked):
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
        if save_recipe is not None:
            conversion.save_recipe(save_recipe)
        is_plan = dry_run or save_recipe is not None
        summary = None if is_plan else _run(conversion, before, shown, quiet=quiet)
    if summary is None:
        show_plan(conversion, quiet=quiet, as_json=as_json, all_tensors=all_tensors)
        if save_recipe is not None and not (quiet or as_json):
            print_lines([f"wrote {save_recipe}: {option('recipe')} takes it"])
    else:
        _show_summary(summary, parsed, quiet=quiet, as_json=as_json, all_tensors=all_tensors)


def _check_arguments(source: Path, outputs: tuple[str, ...]) -> None:
    """Explain arguments in the order of another program. Raises RequestError."""
    if "" in outputs:
        raise RequestError("the name of an output is empty")
    if not outputs:
        example = f"{source.name.removesuffix(source.suffix)}-Q4_K_M.gguf"
        raise RequestError(f"name an output after {source}, such as {example}")
    for number, text in enumerate(outputs):
        if (recipe := _recipe(text)) is not None and not Path(text).exists():
            stem = outputs[0].removesuffix(".gguf") if number else "NAME"
            threads = "".join(f" --jobs {n}" for n in outputs[number + 1 :] if n.isdecimal())
            raise RequestError(
                f"{text} is a type, not an output; write {stem}-{recipe.name}.gguf, or pass "
                f"--type {recipe.name}{threads}"
            )
    if not source.exists() and (there := next(filter(os.path.exists, outputs), None)):
        raise RequestError(
            f"{source}: no such file or directory, but {there} is there; SRC comes first, then OUT"
        )


def _recipe(text: str) -> Recipe | None:
    """Take a word for a type, by its name or by its number in llama-quantize."""
    is_number = text.isascii() and text.isdecimal() and len(text) < 4
    return recipe_numbered(int(text)) if is_number else recipe_named(text)


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

    def gate(report: Report) -> None:
        violations = check_limits(report, limits)
        if violations:
            shown.tell(*violation_lines(violations))
            raise LimitError(_unnamed(plan, violations), violation_values(violations))

    return conversion.run(told_of_kept_work(conversion, shown, quiet=quiet), gate)


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
