"""The command line: parse, call one function, print."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from weightcast.commands.progress import progress
from weightcast.commands.text.compare import comparison_lines
from weightcast.commands.text.graph import graph_lines, graph_values
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.commands.text.summary import summary_lines
from weightcast.converters import convert as conversion
from weightcast.converters.compare import comparison
from weightcast.converters.output.overwrite import check_small_target, taken_places
from weightcast.converters.output.resume import kept_work
from weightcast.converters.plan.plan import Plan
from weightcast.converters.plan.workers import MAX_WORKERS, choose_workers
from weightcast.converters.report import (
    BASELINES,
    Violation,
    check_applicable,
    check_limits,
    parse_limit,
    tensor_role,
    write_report,
)
from weightcast.converters.sources.open import open_to_inspect
from weightcast.errors import CheckpointError, LayoutError, RequestError, visible
from weightcast.quant.devices import choose_devices

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What cannot be read is bad input, as what is not there; click would call it wrong usage.
PATH = click.Path(path_type=Path, readable=False)


fail_over = click.option(
    "--fail-over",
    "limits",
    metavar="[KIND:]METRIC=LIMIT",
    multiple=True,
    help="Exit with 1 if a tensor is beyond: relative_rms=0.1, attn_q:sqnr_db=30, ...",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="weightcast")
def commands() -> None:
    """Convert released JAX checkpoints (Grok-1) and GGUF files of any model."""


@commands.command()
@click.argument("path", type=PATH)
@click.option("--spec", type=PATH, help="JSON file of hyperparameters (keys as in spec.json).")
@click.option("--all", "all_tensors", is_flag=True, help="A line for each tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path, spec: Path | None, all_tensors: bool, as_json: bool) -> None:
    """Show what is in a checkpoint: hyperparameters, tensors, shapes, sizes. Reads no weights."""
    graph, notes = open_to_inspect(path, spec)
    if as_json:
        _print(json.dumps(graph_values(graph, notes), indent=1).split("\n"))
    else:
        _print(graph_lines(graph, notes, all_tensors=all_tensors))


@commands.command()
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("outputs", metavar="OUT...", type=str, nargs=-1, required=True)
@click.option("--type", "types", multiple=True, help="Type of an output; once for each OUT.")
@click.option("--spec", type=PATH, help="JSON file of hyperparameters (keys as in spec.json).")
@click.option("--tokenizer", type=PATH, help="SentencePiece file (default: beside SRC).")
@click.option("--no-tokenizer", is_flag=True, help="Write outputs without a tokenizer.")
@click.option("--recipe", type=PATH, help="TOML file: base type, and rules for tensors.")
@click.option(
    "--tensor-type",
    "tensor_types",
    metavar="REGEX=TYPE",
    multiple=True,
    help="Type of the tensors whose name matches, in GGUF or in a directory; the first counts.",
)
@click.option("--pure", is_flag=True, help="GGUF: all quantized tensors in the recipe's base type.")
@click.option("--imatrix", type=PATH, help="llama.cpp's importance matrix (GGUF or .dat).")
@click.option("--split", metavar="SIZE", help="Most tensor data of one file, such as 48G or 4GiB.")
@click.option(
    "--allow-requantize",
    is_flag=True,
    help="Quantize again what is quantized already and cannot be carried over.",
)
@click.option("--bundle", is_flag=True, help="Leave provenance, SHA256SUMS and a model card, too.")
@click.option(
    "--jobs",
    type=click.IntRange(1, MAX_WORKERS),
    help="Workers (default: cores + 1, or 4 for a GPU).",
)
@click.option("--memory", metavar="SIZE", help="Most memory to take, such as 400M (default: 0.8G).")
@click.option(
    "--device",
    metavar="cpu|auto|cuda|cuda:N",
    default="cpu",
    help="What quantizes; cuda is all CUDA devices, auto the processor if there is none.",
    show_default=True,
)
@click.option("--report", "report_path", type=PATH, help="Write the errors made, as JSON.")
@click.option(
    "--baseline",
    type=click.Choice(list(BASELINES)),
    help="What errors are measured against: values as stored (default), or rounded to bf16.",
)
@fail_over
@click.option("--dry-run", is_flag=True, help="Print the exact sizes and write nothing.")
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Go on with what an interrupted run had finished (default), or start over.",
)
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    source: Path,
    outputs: tuple[str, ...],
    types: tuple[str, ...],
    spec: Path | None,
    tokenizer: Path | None,
    no_tokenizer: bool,
    recipe: Path | None,
    tensor_types: tuple[str, ...],
    pure: bool,
    imatrix: Path | None,
    split: str | None,
    allow_requantize: bool,
    bundle: bool,
    jobs: int | None,
    memory: str | None,
    device: str,
    report_path: Path | None,
    baseline: str | None,
    limits: tuple[str, ...],
    dry_run: bool,
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert SRC to one or several outputs, in one read.

    SRC is a ckpt-0 directory (or its parent), a GGUF file or safetensors. The name of each OUT says
    what it is: grok-1-Q8_0.gguf, grok-1-Q4_K_M.gguf, or a directory such as grok-1-bf16/. From a
    GGUF file of any model come GGUF files with all of its metadata.
    """
    gate = [parse_limit(text) for text in limits]
    measuring = conversion.measuring_of(baseline, report_path, gate)
    devices = choose_devices(device)
    if devices.note and not quiet:
        click.echo(visible(f"note: {devices.note}"), err=True)
    plan = conversion.prepare(
        source,
        outputs,
        types=types,
        spec=spec,
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        split=split,
        recipe=recipe,
        tensor_types=tensor_types,
        pure=pure,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        bundle=bundle,
        memory=memory,
    )
    if report_path is not None:
        check_small_target(report_path, taken_places(plan))
    roles = (tensor_role(t.gguf_name) for output in plan.outputs for t in output.tensors)
    check_applicable(gate, roles, weighted=imatrix is not None)
    violations: list[Violation] = []
    if dry_run:
        workers = choose_workers(jobs, devices)
        values, lines = plan_values(plan, workers), plan_lines(plan, workers)
    else:
        kept = kept_work(plan) if resume and not quiet else ""
        if kept:
            _tell([f"going on after {kept}, which is checked first"])
        with (
            _kept_work_told(plan, resume=resume),
            progress(plan.progress_bytes, quiet=quiet or as_json) as done,
        ):
            summary = conversion.run(plan, jobs, done, devices, measuring, resume=resume)
        if report_path is not None and summary.errors is not None:
            write_report(report_path, summary.errors)
        if summary.errors is not None:
            violations = check_limits(summary.errors, gate)
        values, lines = summary.describe(), summary_lines(summary)
    if as_json:
        _print(json.dumps(values, indent=1).split("\n"))
    elif not quiet:
        _print(lines)
    _name_violations(violations)
    if violations:
        sys.exit(1)


@commands.command()
@click.argument("a", metavar="A", type=PATH)
@click.argument("b", metavar="B", type=PATH)
@click.option("--spec", type=PATH, help="JSON file of hyperparameters (keys as in spec.json).")
@click.option(
    "--baseline",
    type=click.Choice(list(BASELINES)),
    default="stored",
    help="What errors are differences from: A's values as stored, or rounded to bf16.",
    show_default=True,
)
@click.option("--imatrix", type=PATH, help="Weigh errors, too, by this importance matrix.")
@click.option("--all", "all_tensors", is_flag=True, help="A line for each tensor.")
@click.option("--report", "report_path", type=PATH, help="Write the errors, as JSON.")
@fail_over
@click.option("--jobs", type=click.IntRange(1, MAX_WORKERS), help="Workers (default: cores + 1).")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compare(
    a: Path,
    b: Path,
    spec: Path | None,
    baseline: str,
    imatrix: Path | None,
    all_tensors: bool,
    report_path: Path | None,
    limits: tuple[str, ...],
    jobs: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure what B's weights differ by from those of A, tensor by tensor.

    Each is a ckpt-0 directory (or its parent), a GGUF file (of a split one, the first) or
    safetensors; of models other than Grok-1 both are GGUF files. Differences are no failure;
    tensors that only one of them has, or in another shape, are.
    """
    gate = [parse_limit(text) for text in limits]
    sides = comparison.open_sides(a, b, spec, imatrix)
    roles = (tensor_role(p.gguf) for p in sides.pairing.pairs)
    check_applicable(gate, roles, weighted=imatrix is not None)
    if report_path is not None:
        check_small_target(report_path, [*sides.places, *filter(None, (spec, imatrix))])
    with progress(sides.read_bytes, quiet=quiet or as_json) as on_progress:
        found = comparison.measure_sides(sides, BASELINES[baseline], jobs, on_progress)
    if report_path is not None:
        write_report(report_path, found.errors)
    if as_json:
        _print(json.dumps(found.describe(), indent=1).split("\n"))
    elif not quiet:
        _print(comparison_lines(found, all_tensors=all_tensors))
    violations = check_limits(found.errors, gate)
    _name_violations(violations)
    if found.problem is not None:
        raise LayoutError(found.problem)
    if violations:
        sys.exit(1)


@commands.command()
@click.argument("artifact", metavar="ARTIFACT", type=PATH)
@click.option("--source", type=PATH, help="What it was made of: shards, GGUF or safetensors.")
@click.option("--spec", type=PATH, help="JSON file of the source's hyperparameters.")
@click.option("--imatrix", type=PATH, help="The importance matrix that was used.")
@click.option(
    "--sample",
    metavar="ROWS",
    help="Look at about so many rows of each matrix, or at a share such as 0.01.",
)
@click.option("--jobs", type=click.IntRange(1, MAX_WORKERS), help="Workers (default: cores + 1).")
@click.option("--report", type=PATH, help="Write the errors of all tensors as JSON.")
@click.option("--quiet", is_flag=True, help="Print problems only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(
    artifact: Path,
    source: Path | None,
    spec: Path | None,
    imatrix: Path | None,
    sample: str | None,
    jobs: int | None,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check that ARTIFACT is whole and holds the weights of its source.

    ARTIFACT is a GGUF file, or a safetensors file or directory, by weightcast or by others. Without
    --source its structure and checksums are checked. Exit code 1 says that there are problems.
    """
    from weightcast.commands.verify import parse_sample, verify_with_progress

    found = verify_with_progress(
        artifact,
        source,
        spec=spec,
        imatrix=imatrix,
        sample=None if sample is None else parse_sample(sample),
        jobs=jobs,
        report=report,
        quiet=quiet or as_json,
    )
    if as_json:
        _print(json.dumps(found.describe(), indent=1).split("\n"))
    else:
        _print(found.problem_lines() if quiet else found.lines())
    if not found.is_good:
        sys.exit(1)


@commands.command()
@click.argument("reports", metavar="REPORT.json...", type=PATH, nargs=-1, required=True)
@click.argument("out", metavar="OUT", type=PATH)
def report(reports: tuple[Path, ...], out: Path) -> None:
    """Show error reports of conversions: as a page, OUT.html, or as a summary, OUT.md.

    The page is one file that works offline; several reports and outputs are compared in it. The
    summary is Markdown for a pull request or a CI job; - prints it.
    """
    from weightcast.converters.report import show_reports

    _print(show_reports(reports, out))


@commands.command()
@click.option("--keep", type=PATH, help="Write the files into this directory and keep them.")
def demo(keep: Path | None) -> None:
    """Make a tiny checkpoint, convert it, run the results in llama.cpp and compare."""
    from weightcast.commands.demo import run_demo

    _print(run_demo(keep))


@contextmanager
def _kept_work_told(plan: Plan, *, resume: bool) -> Iterator[None]:
    """Tell what an interrupted run keeps for another one."""
    try:
        yield
    except KeyboardInterrupt:
        kept = kept_work(plan)
        unless = "" if resume else ", unless --no-resume is given again"
        raise KeyboardInterrupt(f"{kept} is finished and kept{unless}" if kept else "") from None


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(visible(line), err=True)


def _name_violations(violations: Sequence[Violation]) -> None:
    _tell(f"beyond a limit: {violation.text}" for violation in violations)


def _print(lines: Iterable[str]) -> None:
    """Print results; a reader that has enough of them (head, less) is no failure."""
    try:
        for line in lines:
            click.echo(visible(line))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(signum: int, frame: object) -> None:
    # Once is enough: another signal would interrupt the cleaning up.
    for number in _STOPPING:
        signal.signal(number, lambda signum, frame: None)
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Make printing harmless: closed streams lead nowhere, odd names are escaped."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    _prepare_streams()
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(number, _stop)
    try:
        commands(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        told = str(stop.__cause__ or stop)  # click makes an Abort of an interrupt
        left = told or "nothing incomplete was left behind"
        click.echo(visible(f"interrupted: {left}; run the same command again"), err=True)
        sys.exit(130)
    except RequestError as error:
        click.echo(visible(f"usage error: {error}"), err=True)
        sys.exit(2)
    except CheckpointError as error:
        click.echo(visible(f"error: {error}"), err=True)
        sys.exit(1)
    except OSError as problem:
        place = f"{problem.filename}: " if problem.filename else ""
        click.echo(visible(f"error: {place}{problem.strerror or problem}"), err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("error: out of memory", err=True)
        sys.exit(1)
