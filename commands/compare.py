"""The command `compare`: measure the errors of one checkpoint against another."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from weightcast.commands import options, work_options
from weightcast.commands.exits import FAILED_CHECK
from weightcast.commands.options import PATH, Command, listed_option
from weightcast.commands.printing import (
    print_json,
    print_lines,
    tell,
    violation_lines,
    violation_values,
)
from weightcast.commands.progress import progress
from weightcast.commands.text.compare import comparison_lines
from weightcast.commands.work_options import BASELINE
from weightcast.converters.compare import Comparison, measure_both, open_both
from weightcast.converters.engine import OnProgress
from weightcast.converters.output import check_report_path
from weightcast.converters.report import (
    BASELINES,
    Limit,
    check_applicable,
    check_limits,
    parse_limit,
    tensor_role,
    write_report,
)
from weightcast.converters.sources import parse_layers
from weightcast.converters.sources.adapters import lora_files


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that say what to measure, and where to write it."""

    spec: Path | None
    lora: tuple[str, ...]
    imatrix: Path | None
    baseline: str
    report: Path | None
    jobs: int | None
    prune_layers: str | None


@click.command(
    cls=Command,
    examples=(
        "weightcast compare grok-1 grok-1-Q4_K_M.gguf",
        "weightcast compare model-BF16.gguf model-Q4_K_M.gguf --report errors.html",
        "weightcast compare grok-1 grok-1-int4-g128/ --fail-over attn_v:sqnr_db=18",
    ),
)
@click.argument("a", metavar="A", type=PATH)
@click.argument("b", metavar="B", type=PATH)
@options.spec
@options.lora
@listed_option(
    "--baseline",
    section="reporting",
    type=BASELINE,
    default="stored",
    help="What errors are differences from: A's values as stored, or rounded to bf16.",
    show_default=True,
)
@listed_option(
    "--imatrix",
    section="precision",
    type=PATH,
    metavar="FILE",
    help="Weigh errors, too, by this importance matrix.",
)
@work_options.prune_layers
@options.all_tensors
@work_options.report
@work_options.fail_over
@work_options.jobs
@options.quiet
@options.as_json
def compare(
    a: Path,
    b: Path,
    limits: tuple[str, ...],
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure what B's weights differ by from those of A, tensor by tensor.

    Each is a ckpt-0 directory (or its parent), a GGUF file (of a split one, the first) or
    safetensors; of models other than Grok-1 both are GGUF files. Differences are no failure;
    tensors that only one of them has, or in another shape, are: exit code 3.
    """
    parsed = [parse_limit(text) for text in limits]
    with progress(quiet=quiet or as_json) as shown:
        found = _measure(a, b, Asked(**asked), parsed, shown)
    violations = check_limits(found.errors, parsed)
    if as_json:
        beyond = {"violations": violation_values(violations)} if parsed else {}
        print_json({"problem": found.problem, **found.describe(), **beyond})
    elif not quiet:
        print_lines(comparison_lines(found, all_tensors=all_tensors))
    tell(*violation_lines(violations))
    if found.problem is not None:
        tell(f"problem: {found.problem}")
    if violations or found.problem is not None:
        sys.exit(FAILED_CHECK)


def _measure(
    a: Path, b: Path, asked: Asked, limits: list[Limit], on_progress: OnProgress
) -> Comparison:
    """Measure all tensors and write the report. Raises CheckpointError."""
    layers = parse_layers(asked.prune_layers)
    sides = open_both(a, b, asked.spec, asked.imatrix, asked.lora, layers)
    roles = (tensor_role(pair.gguf) for pair in sides.pairing.pairs)
    check_applicable(limits, roles, weighted=asked.imatrix is not None)
    if asked.report is not None:
        read = filter(None, (asked.spec, asked.imatrix, *lora_files(asked.lora).values()))
        check_report_path(asked.report, [*sides.places, *read])
    found = measure_both(sides, BASELINES[asked.baseline], asked.jobs, on_progress)
    if asked.report is not None:
        write_report(asked.report, replace(found.errors, limits=tuple(limits)))
    return found
