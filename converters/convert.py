"""Convert a checkpoint: plan, check, run and sum up."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from weightcast.converters.bundle import CardErrors, earlier_notes, make_bundles, source_date
from weightcast.converters.engine import executor
from weightcast.converters.graph import TensorGraph
from weightcast.converters.output import (
    GOING_ON,
    NOT_GOING_ON,
    check_free_space,
    kept_work,
    overwrite,
)
from weightcast.converters.plan import Plan, Workers, choose_workers, make_plan
from weightcast.converters.recipes import parse_tensor_type, read_recipe_file
from weightcast.converters.report import (
    Measuring,
    Report,
    card_lines,
    conversion_report,
    json_values,
    parse_baseline,
    write_report,
)
from weightcast.converters.sources import (
    ConvertOptions,
    Form,
    Inputs,
    find_unwritten,
    in_hub_cache,
    list_inputs,
    parse_size,
)
from weightcast.converters.targets import parse_output
from weightcast.converters.targets.gguf_copy import check_requantized
from weightcast.converters.targets.lay_out import lay_out_all
from weightcast.converters.targets.target import Output, Request
from weightcast.errors import ChangedError, CheckpointError, RequestError, TakenError
from weightcast.formats.gguf.imatrix import read_imatrix
from weightcast.quant.cpu.library import BlockCounts
from weightcast.quant.devices import PROCESSOR, Devices, choose_devices


@dataclass(frozen=True)
class Summary:
    """The result of a conversion: its plan, how Q8_0 blocks and int8 groups came about, seconds.

    `errors` are those that were made, if they were measured; `report` has them as JSON values.
    `bundles` are the files of each output's release bundle, made in `bundle_seconds`.
    """

    plan: Plan = field(repr=False)
    counts: executor.Counts = field(repr=False)
    seconds: float
    devices: Devices = PROCESSOR
    errors: Report | None = field(default=None, repr=False)
    bundles: tuple[tuple[Path, ...], ...] = ()
    bundle_seconds: float = 0.0

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """Give the errors as JSON values (docs/report.schema.json)."""
        return None if self.errors is None else json_values(self.errors)

    def describe(self) -> dict[str, Any]:
        outputs = []
        for number, output in enumerate(self.plan.outputs):
            described = output.describe()
            described[output.request.target.codes.key] = self.block_origins(number)
            if self.bundles:
                described["bundle"] = [path.name for path in self.bundles[number]]
            outputs.append(described)
        return {
            "source": self.plan.graph.source,
            "parameters": self.plan.graph.parameters,
            "seconds": round(self.seconds, 3),
            **({"bundle_seconds": round(self.bundle_seconds, 3)} if self.bundles else {}),
            **self.devices.describe(),
            "outputs": outputs,
        }

    def block_origins(self, number: int) -> dict[str, Any]:
        """Sort Q8_0 and int8 tensors of an output: carried unchanged, quantized, or requantized.

        Where an output has groups, tensors that are not made of int8 codes are left out.
        """
        lossless, quantized, partly = [], [], {}
        for (output, tensor), count in sorted(self.counts.items()):
            if output != number or count == BlockCounts():
                continue
            if not count.requantized:
                lossless.append(tensor)
            elif count.inexact_scales or count.exact:
                partly[tensor] = {
                    "requantized_blocks": count.requantized,
                    "blocks": count.exact + count.requantized,
                    "inexact_scales": count.inexact_scales,
                }
            else:
                quantized.append(tensor)
        return {"lossless": lossless, "quantized": quantized, "requantized": partly}


_DEFAULTS: Final = ConvertOptions()
# The forms of outputs, as messages call them.
_FORMS: Final[dict[Form, str]] = {"gguf": "GGUF", "packed": "packed", "plain": "plain"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A conversion that was planned and checked, and can run; nothing is written yet."""

    plan: Plan
    options: ConvertOptions
    devices: Devices
    measuring: Measuring | None

    @property
    def workers(self) -> Workers:
        """Choose the workers that will run."""
        return choose_workers(self.options.jobs, self.devices)

    def run(self, on_progress: Callable[[int], None] = lambda nbytes: None) -> Summary:
        """Run it and write the report, if one is asked for. Raises CheckpointError."""
        summary = run(
            self.plan,
            self.options.jobs,
            on_progress,
            self.devices,
            self.measuring,
            resume=self.options.resume,
        )
        if self.options.report is not None and summary.errors is not None:
            write_report(Path(self.options.report), summary.errors)
        return summary


def convert(
    source: str | Path,
    *outputs: str | Path,
    types: Sequence[str] = (),
    spec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    no_tokenizer: bool = False,
    split: str | int | None = None,
    recipe: str | Path | None = None,
    tensor_types: Sequence[str] = (),
    pure: bool = False,
    imatrix: str | Path | None = None,
    allow_requantize: bool = False,
    allow_holes: bool = False,
    bundle: bool = False,
    jobs: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    report: str | Path | None = None,
    baseline: str | None = None,
    resume: bool = True,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> Summary:
    """Convert a checkpoint to one or several outputs in one read.

    The name of an output says what it is: NAME-Q8_0.gguf, NAME-Q4_K_M.gguf, or a directory
    NAME-bf16; `types` overrides that, one for each output. `split` limits the tensor data of one
    file (bytes, or text such as "48G"). `jobs` is the number of workers, `memory` the most that
    the process may take (as `split`; by default no more than helps, 0.8 GiB). `device` does the
    quantizing: "cpu", "cuda" (all CUDA devices), "cuda:0", or "auto" for CUDA where there is some;
    the bytes are the same.

    `recipe` is a TOML file of rules; `tensor_types` are rules "REGEX=TYPE" that come before them.
    Every output must be able to hold their types. `imatrix` is an importance matrix in llama.cpp's
    format. In GGUF outputs `pure` gives all quantized tensors without a rule the recipe's base
    type. A GGUF source of any model gives GGUF outputs with the same metadata; `allow_requantize`
    lets its quantized tensors be quantized once more, and int8 codes that a directory cannot carry
    unchanged. Shards with parts that were never written, as unfinished downloads have, are refused
    unless `allow_holes` is set. With `bundle` each output gets provenance, checksums and a model
    card (docs/bundle.md).

    `report` is a file for the errors that were made (docs/report.schema.json). `baseline` is what
    they are measured against: "stored" for the exact values (the default), or "bf16" for these
    rounded to bfloat16, as the reference multiplies with them; with either of them
    `Summary.report` has the errors too.

    Work that an interrupted conversion of the same source to the same output had finished is
    checked and kept; without `resume` it is done again.

    Raises CheckpointError. Outputs get their names only when they are complete; finished work of a
    run that failed is kept beside them for the next one.
    """
    options = ConvertOptions.of(locals())  # the keywords are its fields
    return plan_conversion(source, outputs, options).run(on_progress)


def plan_conversion(
    source: str | Path,
    outputs: Sequence[str | Path],
    options: ConvertOptions,
    *,
    needs_errors: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Conversion:
    """Choose devices, then plan and check a conversion. Raises CheckpointError.

    Errors are measured if a report or a baseline is asked for, or if the caller `needs_errors`.
    `on_note` gets a note on the choice of devices, before the source is read.
    """
    devices = choose_devices(options.device)
    if devices.note:
        on_note(devices.note)
    measuring = None
    if options.report or options.baseline is not None or needs_errors:
        measuring = Measuring(parse_baseline(options.baseline or "stored"))
    plan = prepare(source, outputs, options)
    if options.report is not None:
        overwrite.check_report_path(Path(options.report), overwrite.taken_paths(plan))
    return Conversion(plan, options, devices, measuring)


def prepare(
    source: str | Path, outputs: Sequence[str | Path], options: ConvertOptions = _DEFAULTS
) -> Plan:
    """Plan a conversion without writing anything. Raises CheckpointError."""
    if options.tokenizer is not None and options.no_tokenizer:
        raise RequestError("a tokenizer and no tokenizer are asked for at once")
    requests = _requests(outputs, options)
    _check_useful(options, requests)
    importance = None if options.imatrix is None else read_imatrix(options.imatrix)
    split_bytes = 0 if options.split is None else parse_size(options.split)
    source = in_hub_cache(Path(source))
    graph, planned = lay_out_all(source, requests, options.source, split_bytes, importance)
    if not options.allow_requantize:
        check_requantized(planned)
    inputs = _inputs(source, graph, planned, options)
    if options.bundle:
        source_date()
    else:
        planned = [replace(o, notes=(*o.notes, *earlier_notes(o.request))) for o in planned]
    memory = None if options.memory is None else parse_size(options.memory)
    plan = make_plan(graph, inputs, planned, memory=memory, has_bundles=options.bundle)
    overwrite.check(plan)
    return plan


def _requests(outputs: Sequence[str | Path], options: ConvertOptions) -> list[Request]:
    """Parse what is asked for; types by hand come before those of the recipe file."""
    if not outputs:
        raise RequestError("no output is named")
    types = options.types
    if types and len(types) != len(outputs):
        raise RequestError(f"{len(types)} types for {len(outputs)} outputs; give one for each")
    file = None if options.recipe is None else read_recipe_file(Path(options.recipe))
    overrides = tuple(parse_tensor_type(text) for text in options.tensor_types)
    if file is not None:
        overrides += file.overrides
    named = zip(outputs, types or itertools.repeat(None, len(outputs)), strict=True)
    requests = [parse_output(path, name, file) for path, name in named]
    requests = [request.with_rules(overrides, pure=options.pure) for request in requests]
    if options.allow_requantize:
        requests = [request.that_may_change() for request in requests]
    return requests


def _check_useful(options: ConvertOptions, requests: Sequence[Request]) -> None:
    """Refuse options that make no difference, and names that tell of one that is missing.

    Raises RequestError.
    """
    useless = [
        row
        for row in options.rows()
        if options.is_given(row) and not any(row.option.is_for(r.form) for r in requests)
    ]
    if useless:
        names = ", ".join(row.name for row in useless)
        form = _FORMS[useless[0].option.forms[0]]
        raise RequestError(f"{names}: of use for {form} outputs only, and none is asked for")
    for request in requests:
        if request.says_imatrix and options.imatrix is None:
            raise RequestError(
                f"{request.path}: the name says that an importance matrix is used; give it with "
                "--imatrix FILE, or rename the output"
            )


def _inputs(
    source: Path, graph: TensorGraph, planned: Sequence[Output], options: ConvertOptions
) -> Inputs:
    """List the files that are read; the tokenizer may have been found beside the source."""
    found = next((output.tokenizer for output in planned if output.tokenizer), options.tokenizer)
    files = {**options.files, "tokenizer": found}
    blanks = find_unwritten(graph)
    return Inputs(source, list_inputs(source, graph, files), options, blanks)


def run(
    plan: Plan,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    devices: Devices = PROCESSOR,
    measuring: Measuring | None = None,
    *,
    resume: bool = True,
) -> Summary:
    """Run a plan; `on_progress` gets the bytes that were read, of `plan.progress_bytes`.

    With `measuring` the summary has a report of the errors, and bundles tell of them.
    """
    workers = choose_workers(jobs, devices)
    plan.inputs.check_blanks()
    for output in plan.outputs:
        output.importance.check(output.request.path)
    check_free_space(plan.outputs)
    start = time.monotonic()
    made: list[Finalized] = []

    def on_complete() -> Mapping[int, Mapping[Path, Path]]:
        made.append(finalize(plan, jobs, on_progress, measuring))
        return dict(enumerate(made[0].waiting))

    with _explained_failures(plan, resume=resume):
        counts = executor.run(
            plan,
            workers,
            on_progress,
            measuring,
            resume=resume,
            on_complete=on_complete,
        )
    (final,) = made
    if final.problem is not None:
        raise CheckpointError(f"{final.problem} (the outputs are complete, but have no bundle)")
    seconds = time.monotonic() - start - final.bundle_seconds
    bundles = tuple(tuple(places) for places in final.waiting)
    return Summary(plan, counts, seconds, devices, final.report, bundles, final.bundle_seconds)


@contextmanager
def _explained_failures(plan: Plan, *, resume: bool) -> Iterator[None]:
    """Add a remedy to failures: less memory, or going on with the work that is kept."""
    try:
        try:
            yield
        except (MemoryError, OSError) as problem:
            if isinstance(problem, OSError) and problem.errno != errno.ENOMEM:
                raise
            raise CheckpointError("out of memory; use fewer --jobs or --memory SIZE") from None
    except TakenError:
        raise  # the same command cannot go on
    except CheckpointError as error:
        if kept := kept_work(plan):
            how = GOING_ON if resume else NOT_GOING_ON
            error.args = (f"{error} ({kept} is finished and kept; {how})",)
        raise


@dataclass(frozen=True, slots=True)
class Finalized:
    """The report of complete outputs, and the files of bundles: where each waits for its name.

    If the source changed after it was converted, which is the `problem` then, the outputs are as
    good as any, but have no bundle.
    """

    report: Report | None = None
    waiting: tuple[dict[Path, Path], ...] = ()
    bundle_seconds: float = 0.0
    problem: ChangedError | None = None


def finalize(
    plan: Plan,
    jobs: int | None,
    on_progress: Callable[[int], None],
    measuring: Measuring | None,
) -> Finalized:
    """Make a report if errors were measured, and bundles if the plan has them."""
    report = None
    if measuring is not None:
        report = conversion_report(plan, measuring.finished(), measuring.baseline)
    if not plan.has_bundles:
        return Finalized(report)
    errors = {} if report is None else _card_errors(report)
    start = time.monotonic()
    try:
        waiting = make_bundles(plan, jobs, on_progress, errors)
    except ChangedError as problem:
        return Finalized(report, problem=problem)
    return Finalized(report, waiting, time.monotonic() - start)


def _card_errors(report: Report) -> dict[int, CardErrors]:
    """Describe the errors of each output for its model card."""
    return {
        number: CardErrors(card_lines(report, number), report.baseline)
        for number in range(len(report.outputs))
    }
