"""Convert: parse the request, plan, check, run, and sum up."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightcast.converters.bundle.model_card import CardErrors
from weightcast.converters.bundle.provenance import source_date
from weightcast.converters.bundle.release import earlier_notes, make_bundles
from weightcast.converters.engine import executor
from weightcast.converters.output.disk_space import check_free_space
from weightcast.converters.output.overwrite import check_small_target, check_targets, taken_places
from weightcast.converters.output.resume import GOING_ON, NOT_GOING_ON, kept_work
from weightcast.converters.plan.plan import Plan, make_plan
from weightcast.converters.plan.workers import choose_workers
from weightcast.converters.recipes.file import parse_tensor_type, read_recipe_file
from weightcast.converters.report import (
    Measuring,
    Report,
    card_lines,
    conversion_report,
    json_values,
    parse_baseline,
    write_report,
)
from weightcast.converters.sources.inputs import Given, Inputs, list_inputs
from weightcast.converters.targets import parse_output
from weightcast.converters.targets.gguf_copy import check_requantized
from weightcast.converters.targets.lay_out import Told, lay_out_all
from weightcast.converters.targets.names import parse_size
from weightcast.converters.targets.target import Request
from weightcast.errors import ChangedError, CheckpointError, RequestError, TakenError
from weightcast.formats.gguf.imatrix import read_imatrix
from weightcast.quant.cpu.library import BlockCounts
from weightcast.quant.devices import PROCESSOR, Devices, choose_devices


@dataclass(frozen=True)
class Summary:
    """What a conversion did: its plan, how Q8_0 blocks and int8 groups came about, seconds.

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
        """Q8_0 and int8 tensors of an output: carried unchanged, quantized, or in part requantized.

        What is not made of int8 codes is left out where an output has groups.
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


def prepare(
    source: str | Path,
    outputs: Sequence[str | Path],
    *,
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
    bundle: bool = False,
    memory: str | int | None = None,
) -> Plan:
    """Plan a conversion without writing anything. Raises CheckpointError."""
    if tokenizer is not None and no_tokenizer:
        raise RequestError("a tokenizer and no tokenizer are asked for at once")
    requests = _requests(outputs, types, recipe, tensor_types, pure=pure)
    gguf_only = {"pure": pure, "imatrix": imatrix}
    if any(request.directory and request.directory.is_packed for request in requests):
        del gguf_only["imatrix"]
    if all(request.directory for request in requests) and any(gguf_only.values()):
        given = ", ".join(name for name, value in gguf_only.items() if value)
        raise RequestError(f"{given}: of use for GGUF outputs only, and none is asked for")
    if allow_requantize:
        requests = [request.that_may_change() for request in requests]
    importance = None if imatrix is None else read_imatrix(imatrix)
    split_bytes = 0 if split is None else parse_size(str(split))
    told = Told(spec, tokenizer, no_tokenizer)
    graph, planned = lay_out_all(Path(source), requests, told, split_bytes, importance)
    if not allow_requantize:
        check_requantized(planned)
    found = next((output.tokenizer for output in planned if output.tokenizer), tokenizer)
    files = {"spec": spec, "tokenizer": found, "imatrix": imatrix, "recipe": recipe}
    options = Given(
        as_tuple(types), as_tuple(tensor_types), split_bytes, no_tokenizer, pure, allow_requantize
    )
    inputs = Inputs(Path(source), list_inputs(Path(source), graph, files), options)
    if bundle:
        source_date()
    else:
        planned = [replace(o, notes=(*o.notes, *earlier_notes(o.request))) for o in planned]
    budget = None if memory is None else parse_size(str(memory))
    plan = make_plan(graph, inputs, planned, memory=budget, has_bundles=bundle)
    check_targets(plan)
    return plan


def _requests(
    outputs: Sequence[str | Path],
    types: Sequence[str],
    recipe: str | Path | None,
    tensor_types: Sequence[str],
    *,
    pure: bool,
) -> list[Request]:
    """What is asked for; types by hand come before those of the recipe file."""
    if not outputs:
        raise RequestError("no output is named")
    types, tensor_types = as_tuple(types), as_tuple(tensor_types)
    if types and len(types) != len(outputs):
        raise RequestError(f"{len(types)} types for {len(outputs)} outputs; give one for each")
    file = None if recipe is None else read_recipe_file(Path(recipe))
    overrides = tuple(parse_tensor_type(text) for text in tensor_types)
    if file is not None:
        overrides += file.overrides
    named = zip(outputs, types or itertools.repeat(None, len(outputs)), strict=True)
    requests = [parse_output(path, name, file) for path, name in named]
    return [request.with_rules(overrides, pure=pure) for request in requests]


def as_tuple(given: Sequence[str]) -> tuple[str, ...]:
    """Take one text for a sequence of one."""
    return (given,) if isinstance(given, str) else tuple(given)


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
    file (bytes, or text such as "48G"), `jobs` is the number of workers, `memory` the most that
    the process may take (as `split`; without it no more than helps, 0.8 GiB). `device` is what
    quantizes: "cpu", "cuda" (all CUDA devices), "cuda:0", or "auto" for CUDA where there is some;
    the bytes are the same.

    `recipe` is a TOML file of rules, `tensor_types` are rules "REGEX=TYPE" that come before them;
    every output must be able to hold their types. `imatrix` is an importance matrix in llama.cpp's
    format. In GGUF outputs `pure` gives all quantized tensors without a rule the recipe's base
    type. A GGUF source, of whatever model, gives GGUF outputs with the same metadata;
    `allow_requantize` lets its quantized tensors be quantized once more, and int8 codes that a
    directory cannot carry unchanged. With `bundle` each output gets provenance, checksums and a
    model card (docs/bundle.md).

    `report` is a file for the errors that were made (docs/report.schema.json). `baseline` is what
    they are measured against: "stored" values exactly (the default), or these rounded to "bf16",
    which the reference multiplies with; with either of them `Summary.report` has them too.

    What an interrupted conversion of the same source to the same output had finished is checked and
    kept; without `resume` it is made anew.

    Raises CheckpointError; what is left behind then, `execute.run` says.
    """
    devices = choose_devices(device)
    measuring = measuring_of(baseline, report)
    plan = prepare(
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
    if report is not None:
        check_small_target(Path(report), taken_places(plan))
    summary = run(plan, jobs, on_progress, devices, measuring, resume=resume)
    if report is not None and summary.errors is not None:
        write_report(Path(report), summary.errors)
    return summary


def measuring_of(baseline: str | None, *asked: object) -> Measuring | None:
    """What is to be measured; None if nothing is asked for. Raises RequestError."""
    if baseline is None and not any(asked):
        return None
    return Measuring(parse_baseline(baseline or "stored"))


def run(
    plan: Plan,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    devices: Devices = PROCESSOR,
    measuring: Measuring | None = None,
    *,
    resume: bool = True,
) -> Summary:
    """Carry out a plan; `on_progress` gets the bytes that were read, of `plan.progress_bytes`.

    With `measuring` the summary has a report of the errors, and bundles tell of them.
    """
    workers = choose_workers(jobs, devices)
    for output in plan.outputs:
        output.weighing.check(output.request.path)
    check_free_space(plan.outputs)
    start = time.monotonic()
    finish = Finish(plan, jobs, on_progress, measuring)
    try:
        try:
            counts = executor.run(
                plan,
                workers,
                on_progress,
                measuring,
                resume=resume,
                on_complete=finish,
            )
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
    if finish.problem is not None:
        raise CheckpointError(f"{finish.problem} (the outputs are complete, but have no bundle)")
    return Summary(
        plan,
        counts,
        time.monotonic() - start - finish.bundle_seconds,
        devices,
        finish.report,
        finish.bundles,
        finish.bundle_seconds,
    )


@dataclass
class Finish:
    """Makes a report if there was measuring, and bundles if the plan has them.

    If the source changed after it was converted, which is the `problem` then, outputs are as good
    as any, but have no bundle.
    """

    plan: Plan
    jobs: int | None
    on_progress: Callable[[int], None]
    measuring: Measuring | None
    report: Report | None = None
    bundles: tuple[tuple[Path, ...], ...] = ()
    bundle_seconds: float = 0.0
    problem: ChangedError | None = None

    def __call__(self) -> Mapping[int, Mapping[Path, Path]]:
        """Give the files that wait for their names, beside outputs by number; see `commit`."""
        if self.measuring is not None:
            measured = self.measuring.finished()
            self.report = conversion_report(self.plan, measured, self.measuring.baseline)
        if not self.plan.has_bundles:
            return {}
        errors: dict[int, CardErrors] = {}
        if self.report is not None:
            errors = {
                number: CardErrors(card_lines(self.report, number), self.report.baseline)
                for number in range(len(self.plan.outputs))
            }
        start = time.monotonic()
        try:
            waiting = make_bundles(self.plan, self.jobs, self.on_progress, errors)
        except ChangedError as problem:
            self.problem = problem
            return {}
        self.bundles = tuple(tuple(places) for places in waiting)
        self.bundle_seconds = time.monotonic() - start
        return dict(enumerate(waiting))
