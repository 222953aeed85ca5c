"""The command `verify`: check an artifact, alone or against its source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from weightcast.commands.exits import FAILED_CHECK
from weightcast.commands.options import PATH, Command, as_json, listed_option, lora, quiet, spec
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.progress import progress
from weightcast.commands.text.verify import problem_lines, verification_lines
from weightcast.commands.work_options import (
    exclude_weights,
    importance_floor,
    include_weights,
    jobs,
    override_kv,
    prune_layers,
    report,
)
from weightcast.converters import verify as verifying
from weightcast.converters.output import check_report_path
from weightcast.converters.report import write_report
from weightcast.converters.sources.adapters import lora_files
from weightcast.converters.verify.result import Verification
from weightcast.errors import RequestError
from weightcast.formats.split import SPLIT_NAME
from weightcast.text import option, shown


@click.command(
    cls=Command,
    examples=(
        "weightcast verify grok-1-Q4_K_M.gguf",
        "weightcast verify grok-1-Q4_K_M.gguf --source grok-1",
        "weightcast verify grok-1-int4-g128/ --source grok-1 --sample 1%",
    ),
)
@click.argument("artifacts", metavar="ARTIFACT", type=PATH, nargs=-1, required=True)
@listed_option(
    "--source",
    section="source",
    type=PATH,
    metavar="SRC",
    help="What it was made of: shards, GGUF or safetensors.",
)
@spec
@lora
@listed_option(
    "--imatrix",
    section="source",
    type=PATH,
    metavar="FILE",
    help="The importance matrix that was used.",
)
@listed_option(
    "--hessian",
    section="source",
    type=PATH,
    metavar="FILE",
    help="The second moments that were used.",
)
@include_weights
@exclude_weights
@importance_floor
@override_kv
@prune_layers
@listed_option(
    "--sample",
    section="running",
    metavar="ROWS",
    help="Look at about so many rows of each matrix, or at a share such as 0.01.",
)
@jobs
@report
@listed_option(
    "-v",
    "--verbose",
    "--all",
    "all_problems",
    section="reporting",
    is_flag=True,
    help="Show everything: a line for each problem.",
)
@quiet
@as_json
def verify(
    artifacts: tuple[Path, ...],
    sample: str | None,
    report: Path | None,
    all_problems: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check that ARTIFACT is whole and holds the weights of its source.

    ARTIFACT is a GGUF file, or a safetensors file or directory, by weightcast or by others. Without
    --source its structure and checksums are checked. Exit code 3 says that there are problems.
    """
    artifact = _one_artifact(artifacts)
    options["sample"] = None if sample is None else parse_sample(sample)
    found = _verify(artifact, options, report, is_silent=quiet or as_json)
    if as_json:
        print_json(found.describe())
    else:
        lines = problem_lines if quiet else verification_lines
        print_lines(lines(found, all_problems=all_problems))
    if not found.is_good:
        sys.exit(FAILED_CHECK)


def _one_artifact(paths: tuple[Path, ...]) -> Path:
    """Take the one artifact that is named, maybe by all its parts. Raises RequestError."""
    first, *others = paths
    if not others:
        return first
    matches = [SPLIT_NAME.fullmatch(str(path)) for path in paths]
    wholes = {None if match is None else match[1] for match in matches}
    if len(wholes) == 1 and None not in wholes:
        return min(paths)
    raise RequestError(
        f"{len(paths)} artifacts are named; verify one at a time, and name what it was made of by "
        f"--source {others[0]}"
    )


def _verify(
    artifact: Path, options: dict[str, Any], report: Path | None, *, is_silent: bool
) -> Verification:
    """Verify, show progress, and write the errors to a file if one is named."""
    if report is not None and options["source"] is None:
        raise RequestError(f"{option('report')}: of use with a source only")
    if report is not None:
        adapters = lora_files(options["lora"]).values()
        named = (
            artifact,
            *(options[name] for name in ("source", "spec", "imatrix", "hessian")),
            *adapters,
        )
        check_report_path(report, filter(None, named))
    with progress(quiet=is_silent) as shown:
        found = verifying.verify(artifact, on_progress=shown, **options)
    if report is not None and found.errors is not None:
        write_report(report, found.errors)
    return found


def parse_sample(text: str) -> int | float:
    """Read a number of rows, or a share such as 0.01 or 1%. Raises RequestError."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / 100 if percent else float(number)
    except ValueError:
        value = 0.0
    if percent or 0 < value < 1:
        if not 0 < value < 1:
            raise RequestError(f"a sample of {shown(text)}: a share is above 0 and below 1")
        return value
    if not number.isascii() or not number.isdecimal() or value < 1:
        raise RequestError(
            f"a sample of {shown(text)}: give a number of rows, or a share such as 0.01"
        )
    return int(number)
