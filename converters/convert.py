"""Convert a checkpoint: plan, check, run and sum up."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from weightcast.converters.bundle import CardErrors, earlier_notes, make_bundles, source_date
from weightcast.converters.engine import (
    Meter,
    OnProgress,
    Progress,
    callback,
    cancellable,
    executor,
    ignore_progress,
)
from weightcast.converters.files import as_path, ignore_signals, write_small
from weightcast.converters.graph import TensorGraph
from weightcast.converters.output import (
    check_free_space,
    how_to_go_on,
    kept_work,
    overwrite,
)
from weightcast.converters.plan import Plan, Workers, choose_workers, make_plan
from weightcast.converters.recipes import (
    BY_SIZE,
    EndTypes,
    Goal,
    parse_pattern,
    parse_tensor_type,
    read_overrides_kv,
    read_recipe_file,
    read_sensitivities,
    read_tensor_types,
    rule_type,
    select_entries,
)
from weightcast.converters.report import (
    Limit,
    Measuring,
    Report,
    card_lines,
    conversion_report,
    json_values,
    parse_baseline,
    write_report,
)
from weightcast.converters.sources import (
    Adapters,
    ConvertOptions,
    Form,
    Inputs,
    find_unwritten,
    list_inputs,
    parse_layers,
    parse_positive,
    parse_share,
    parse_size,
    resolve_source,
)
from weightcast.converters.sources.adapters import lora_files
from weightcast.converters.summary import OutputSummary, StrPath, listed, summarize
from weightcast.converters.targets import parse_output
from weightcast.converters.targets.feedback import with_feedback
from weightcast.converters.targets.lay_out import lay_out_all
from weightcast.converters.targets.requantized import check_requantized
from weightcast.converters.targets.target import Context, Output, Request
from weightcast.errors import (
    ChangedError,
    CheckpointError,
    LimitError,
    OutputError,
    RequestError,
    TakenError,
)
from weightcast.formats.gguf.imatrix import ImportanceMatrix, read_imatrix
from weightcast.formats.hessians import Hessians, read_hessians
from weightcast.quant.cpu.library import BlockCounts
from weightcast.quant.devices import PROCESSOR, Devices, choose_devices
from weightcast.quant.types import QuantType
from weightcast.text import count, duration, option


@dataclass(frozen=True)
class Summary:
    """The result of a conversion: its outputs, the seconds it took, the errors that were made.

    `outputs` tells of each what was written and how large it is. `errors` are those of all outputs,
    tensor by tensor, if they were measured; `report` has them as JSON values. `bundles` are the
    files of each output's release bundle, made in `bundle_seconds` after the conversion's own
    `seconds`. `describe()` has all of it but the errors, as JSON values; `plan` and `counts` are
    for weightcast's own use.

    >>> summary = weightcast.convert(path, out, no_tokenizer=True, baseline="stored")
    >>> [output.size for output in summary.outputs] == [out.stat().st_size]
    True
    >>> summary.outputs[0].errors.total.relative_rms < 0.01
    True
    """

    plan: Plan = field(repr=False)
    counts: executor.Counts = field(repr=False)
    seconds: float
    devices: Devices = PROCESSOR
    errors: Report | None = field(default=None, repr=False)
    bundles: tuple[tuple[Path, ...], ...] = ()
    bundle_seconds: float = 0.0

    @cached_property
    def outputs(self) -> tuple[OutputSummary, ...]:
        """Tell what was written: paths, sizes, files, notes, errors, in the order asked for."""
        errors = [None] * len(self.plan.outputs) if self.errors is None else self.errors.outputs
        bundles = self.bundles or [()] * len(self.plan.outputs)
        return tuple(map(summarize, self.plan.outputs, bundles, errors))

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """Give the errors as JSON values (docs/report.schema.json)."""
        return None if self.errors is None else json_values(self.errors)

    def __repr__(self) -> str:
        return f"<Summary {_told(self.outputs)}; {duration(self.seconds)}>"

    def describe(self) -> dict[str, Any]:
        """Describe the conversion, all but the errors of tensors, as JSON values."""
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
        for (output, tensor), blocks in sorted(self.counts.items()):
            if output != number or blocks == BlockCounts():
                continue
            if not blocks.requantized:
                lossless.append(tensor)
            elif blocks.inexact_scales or blocks.exact:
                partly[tensor] = {
                    "requantized_blocks": blocks.requantized,
                    "blocks": blocks.exact + blocks.requantized,
                    "inexact_scales": blocks.inexact_scales,
                }
            else:
                quantized.append(tensor)
        return {"lossless": lossless, "quantized": quantized, "requantized": partly}


def _told(outputs: Sequence[OutputSummary]) -> str:
    """Tell of outputs in a few words: each, or how many they are."""
    each = "; ".join(map(str, outputs))
    return each if len(each) < 100 else count(len(outputs), "output")


_DEFAULTS: Final = ConvertOptions()
# The options that types can be chosen for.
_TARGETS: Final = ("target_size", "target_bpw", "max_kl")
_CHANGED_SINCE: Final = "was changed since the conversion was planned; plan it again"
# The forms of outputs, as messages call them.
_FORMS: Final[dict[Form, str]] = {
    "gguf": "GGUF",
    "copy": "GGUF",
    "packed": "packed",
    "plain": "plain",
}


@dataclass(frozen=True)
class Conversion:
    """A conversion that was planned and checked, and can run; nothing is written yet.

    >>> conversion = weightcast.plan(path, out, no_tokenizer=True)
    >>> print(conversion.outputs[0].type, f"{conversion.outputs[0].size / 1e6:.1f} MB")
    Q8_0 7.4 MB
    >>> summary = conversion.run()
    """

    plan: Plan = field(repr=False)
    options: ConvertOptions = field(repr=False)
    devices: Devices = field(repr=False)
    measuring: Measuring | None = field(repr=False)
    limits: tuple[Limit, ...] = field(default=(), repr=False)

    @cached_property
    def outputs(self) -> tuple[OutputSummary, ...]:
        """Tell what would be written, to the byte: paths, sizes, files, notes."""
        return tuple(map(summarize, self.plan.outputs))

    @property
    def read_bytes(self) -> int:
        """Count the bytes of the source's tensors that would be read."""
        return self.plan.read_bytes

    @property
    def write_bytes(self) -> int:
        """Count the bytes of all outputs together."""
        return self.plan.write_bytes

    def __repr__(self) -> str:
        return f"<Conversion {_told(self.outputs)}; not yet run>"

    @property
    def workers(self) -> Workers:
        """Choose the workers that will run."""
        return choose_workers(self.options.jobs, self.devices)

    def run(
        self,
        on_progress: OnProgress | None = None,
        gate: Callable[[Report], None] | None = None,
    ) -> Summary:
        """Run it and write the report, if one is asked for. Raises CheckpointError.

        `gate` gets the report before outputs get their names. If it raises a LimitError they stay
        unnamed, and finished work is kept, as that of a run that failed; there is a report then.
        Reports say which limits were set; holding to them is up to the caller.
        """

        def on_report(report: Report) -> None:
            report = replace(report, limits=self.limits)
            try:
                if gate is not None:
                    gate(report)
            except LimitError as closed:
                try:
                    self._write_report(report)
                except CheckpointError as problem:  # the limits are what counts
                    closed.args = (f"{closed} (there is no report: {problem})",)
                raise

        summary = run(
            self.plan,
            self.options.jobs,
            callback(on_progress),
            self.devices,
            self.measuring,
            resume=self.options.resume,
            on_report=on_report,
        )
        if summary.errors is not None:
            errors = replace(summary.errors, limits=self.limits)
            summary = replace(summary, errors=errors)
            try:
                self._write_report(errors)
            except OutputError as problem:
                done = "the outputs are complete; weightcast.compare measures them again"
                problem.args = (f"{problem} ({done})",)
                raise
        return summary

    def save_recipe(self, path: StrPath) -> None:
        """Write the types that were chosen for a size as a recipe file, in TOML, to be edited.

        Raises RequestError if not exactly one output was planned for a size, OutputError if the
        file cannot be written.
        """
        path = as_path(path, "path")
        found = [output.sized for output in self.plan.outputs if output.sized is not None]
        if len(found) != 1:
            raise RequestError(
                f"{path}: {count(len(found), 'recipe')} for a size; a recipe file has one: name "
                f"one GGUF output and {option('target_size', 'SIZE')}"
            )
        overwrite.check_place(path, overwrite.taken_paths(self.plan))
        write_small(path, found[0].text.encode())

    def _write_report(self, report: Report) -> None:
        if self.options.report is not None:
            with ignore_signals():  # the work is done, and this takes a moment
                write_report(Path(self.options.report), report)


def convert(
    source: StrPath,
    *outputs: StrPath | Iterable[StrPath],
    types: str | Sequence[str] | None = (),
    spec: StrPath | None = None,
    tokenizer: StrPath | None = None,
    no_tokenizer: bool = False,
    split: str | float | None = None,
    keep_split: bool = False,
    keep_order: bool = False,
    recipe: StrPath | None = None,
    tensor_types: str | Sequence[str] | Mapping[str, str] | None = (),
    tensor_type_file: StrPath | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    target_size: str | float | None = None,
    target_bpw: str | float | None = None,
    max_kl: str | float | None = None,
    sensitivity: StrPath | None = None,
    target_types: str | Sequence[str] | None = (),
    target_together: str | Sequence[str] | None = (),
    imatrix: StrPath | None = None,
    hessian: StrPath | None = None,
    include_weights: str | Sequence[str] | None = (),
    exclude_weights: str | Sequence[str] | None = (),
    override_kv: str | Sequence[str] | None = (),
    prune_layers: str | Sequence[int] | None = None,
    importance_floor: str | float | None = None,
    search: str = "ggml",
    effort: int | None = None,
    nvfp4_factors: bool = False,
    allow_requantize: bool = False,
    allow_holes: bool = False,
    lora: Adapters = (),
    base: StrPath | None = None,
    bundle: bool = False,
    jobs: int | None = None,
    memory: str | float | None = None,
    device: str = "cpu",
    report: StrPath | None = None,
    baseline: str | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Convert a checkpoint to one or several outputs in one read.

    `source` is what `weightcast.open` opens. `outputs` are paths, or lists of paths; the name of
    each says what it is: NAME-Q8_0.gguf, NAME-Q4_K_M.gguf, or a directory NAME-bf16. `types`
    overrides that, one for each output. A GGUF source of any model gives GGUF outputs with the same
    metadata.

    Source: `spec` is a JSON file of hyperparameters, `tokenizer` a SentencePiece file; both are
    looked for beside the source. `no_tokenizer` writes outputs without one. `allow_holes` converts
    shards with parts that were never written, as unfinished downloads have. `lora` are adapters to
    merge, directories of peft or GGUF files, each "PATH" or "PATH=SCALE", or a dict {PATH: SCALE}.
    Where `source` is an adapter itself, `base` is its model, or that model's config.json.

    Precision: `recipe` is a TOML file of rules; `tensor_types` are rules "REGEX=TYPE" that come
    before them, or a dict {REGEX: TYPE}; `tensor_type_file` has rules between spaces or lines,
    which come between the two. `output_tensor_type` and `token_embedding_type` are types of these
    two matrices of GGUF outputs, whatever rules say; `leave_output_tensor` leaves the output as it
    is stored. `pure` gives all other quantized tensors of GGUF outputs that no rule names the
    recipe's base type. With `nvfp4_factors` GGUF outputs of any model get factors beside weights
    that become NVFP4, where llama.cpp multiplies by them: small weights keep their precision, and
    these are read once more when the conversion is planned. `search` chooses scales and codes:
    by "ggml"'s rule, to llama.cpp's bytes, or with "least-error" for the least squared error in the
    same formats, which the same runtimes read; weights of `nvfp4` directories are read twice then.
    `effort` is 1, 2 (the default) or 3: more takes longer and gains a little.

    Size: of GGUF outputs, whose names need no type then, `target_size` is the most that all files
    of one may take (as `split`), `target_bpw` the most bits of tensor data for each weight, and
    `max_kl` the largest predicted divergence, for which the smallest file is found. `sensitivity`
    is a file of what each tensor costs in each type, by which types are chosen that cost least
    together; without it a plain rule gives the attention one type and the rest another.
    `target_types` are the types to choose from, `target_together` patterns of names: tensors of a
    layer in whose names the same one is found get the same type. Rules and types that are asked for
    come first.

    Importance: `imatrix` is an importance matrix in llama.cpp's format; `include_weights` or
    `exclude_weights`, parts of names, say which of its entries are used; `importance_floor`, such
    as 1e-6, rescales what is nearly nothing in it, and raises columns that are below this share of
    their matrix's mean. `hessian` is a safetensors file of the second moments of matrices' inputs,
    by which codes are chosen with error feedback. `allow_requantize` quantizes once more what is
    quantized already and cannot be carried unchanged.

    GGUF: `override_kv` are metadata "KEY=TYPE:VALUE" in the place of the source's. `prune_layers`,
    numbers of layers, leaves these out of a GGUF file that is made of another one.

    Files: `split` is the most tensor data of one file: bytes, or text as "48G". Of GGUF made of
    GGUF, `keep_split` makes as many parts as the source has, and `keep_order` leaves tensors and
    metadata in its order instead of llama-quantize's. With `bundle` each output gets provenance,
    checksums and a model card.

    Running: `jobs` is the number of workers, `memory` the most that the process may take (as
    `split`; by default no more than helps, 0.8 GiB). `device` does the quantizing: "cpu", "cuda"
    (all CUDA devices), "cuda:0", or "auto" for CUDA where there is some; the bytes are the same.
    Finished work of an interrupted conversion of the same source to the same output is checked and
    kept; without `resume` it is done again. `on_progress` is called with a `weightcast.Progress`
    when a phase begins and as its bytes are done, from any thread, one call at a time; what it
    raises cancels the conversion, and is raised here unchanged.

    Errors: `report` is a file for the errors that were made, in the form that its ending says:
    .json, .html for a page, .md for a summary. They are measured against the `baseline` "stored",
    the exact values (the default), or "bf16", these rounded to bfloat16; with either of the two
    `Summary.errors` has them too. The report of a search says what it gains against ggml's rule,
    by which all is made once more for that.

    Outputs get their names only when they are complete; finished work of a run that failed is kept
    beside them for the next one. Raises CheckpointError, or a child of it: RequestError for what
    makes no sense, OutputError for what cannot be written, FormatError, LayoutError and
    MissingTensorError for what is wrong with the source.

    >>> summary = weightcast.convert(path, folder / "m-Q8_0.gguf", no_tokenizer=True)
    >>> print(summary.outputs[0].type, f"{summary.outputs[0].bits_per_weight:.2f}")
    Q8_0 8.52
    >>> both = [folder / "m-Q4_K_M.gguf", folder / "m-bf16"]
    >>> [output.target for output in weightcast.convert(path, both, no_tokenizer=True).outputs]
    ['gguf', 'safetensors']
    """
    # The keywords are the options' names.
    options = ConvertOptions.of(locals())
    tell = callback(on_progress)
    tell(Progress("plan"))
    return _planned(source, outputs, options).run(tell)


def plan(
    source: StrPath,
    *outputs: StrPath | Iterable[StrPath],
    types: str | Sequence[str] | None = (),
    spec: StrPath | None = None,
    tokenizer: StrPath | None = None,
    no_tokenizer: bool = False,
    split: str | float | None = None,
    keep_split: bool = False,
    keep_order: bool = False,
    recipe: StrPath | None = None,
    tensor_types: str | Sequence[str] | Mapping[str, str] | None = (),
    tensor_type_file: StrPath | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    target_size: str | float | None = None,
    target_bpw: str | float | None = None,
    max_kl: str | float | None = None,
    sensitivity: StrPath | None = None,
    target_types: str | Sequence[str] | None = (),
    target_together: str | Sequence[str] | None = (),
    imatrix: StrPath | None = None,
    hessian: StrPath | None = None,
    include_weights: str | Sequence[str] | None = (),
    exclude_weights: str | Sequence[str] | None = (),
    override_kv: str | Sequence[str] | None = (),
    prune_layers: str | Sequence[int] | None = None,
    importance_floor: str | float | None = None,
    search: str = "ggml",
    effort: int | None = None,
    nvfp4_factors: bool = False,
    allow_requantize: bool = False,
    allow_holes: bool = False,
    lora: Adapters = (),
    base: StrPath | None = None,
    bundle: bool = False,
    jobs: int | None = None,
    memory: str | float | None = None,
    device: str = "cpu",
    report: StrPath | None = None,
    baseline: str | None = None,
    resume: bool = True,
) -> Conversion:
    """Plan and check a conversion without writing anything, as `convert` would run it.

    Takes what `convert` takes, and raises what it would refuse before it starts. The result tells
    the size of each output to the byte, and runs with `.run()`.

    >>> conversion = weightcast.plan(path, folder / "p-Q4_K_M.gguf", no_tokenizer=True)
    >>> for output in conversion.outputs:
    ...     print(output.path.name, f"{output.size / 1e6:.1f} MB")
    p-Q4_K_M.gguf 4.4 MB
    """
    return _planned(source, outputs, ConvertOptions.of(locals()))


def _planned(source: object, outputs: Iterable[object], options: ConvertOptions) -> Conversion:
    return plan_conversion(as_path(source, "source"), list(listed(outputs)), options)


def plan_conversion(
    source: str | Path,
    outputs: Sequence[str | Path],
    options: ConvertOptions,
    *,
    limits: Sequence[Limit] = (),
    on_note: Callable[[str], None] = lambda note: None,
) -> Conversion:
    """Choose devices, then plan and check a conversion. Raises CheckpointError.

    Errors are measured if a report or a baseline is asked for, or if there are `limits`.
    `on_note` gets a note on the choice of devices, before the source is read.
    """
    devices = choose_devices(options.device)
    choose_workers(options.jobs, devices)  # refuses what would be refused when it runs
    if devices.note:
        on_note(devices.note)
    measuring = None
    if options.report or options.baseline is not None or limits:
        compares = options.report is not None and options.rule.is_least_error
        measuring = Measuring(
            parse_baseline(options.baseline or "stored"), compares_search=compares
        )
    plan = prepare(source, outputs, options)
    if options.report is not None:
        overwrite.check_report_path(Path(options.report), overwrite.taken_paths(plan))
    return Conversion(plan, options, devices, measuring, tuple(limits))


def prepare(
    source: str | Path, outputs: Sequence[str | Path], options: ConvertOptions = _DEFAULTS
) -> Plan:
    """Plan a conversion without writing anything. Raises CheckpointError."""
    if options.tokenizer is not None and options.no_tokenizer:
        raise RequestError("a tokenizer and no tokenizer are asked for at once")
    if options.keep_split and options.split is not None:
        keep, size = option("keep_split", True), option("split", "SIZE")
        raise RequestError(f"{keep} keeps the parts of the source, {size} makes others; give one")
    requests = _requests(outputs, options)
    _check_useful(options, requests)
    importance, notes = _importance(options)
    context = Context(
        imatrix=importance,
        split_bytes=0 if options.split is None else parse_size(options.split, "split"),
        keep_order=options.keep_order,
        keep_split=options.keep_split,
    )
    source = resolve_source(Path(source))
    graph, planned = lay_out_all(source, requests, options.source, context)
    planned = [replace(output, notes=(*output.notes, *notes)) for output in planned]
    hessians = _hessians(options)
    planned = [with_feedback(output, hessians) for output in planned]
    if not options.allow_requantize:
        check_requantized(planned)
    return plan_outputs(source, graph, planned, options)


def plan_outputs(
    source: Path, graph: TensorGraph, planned: Sequence[Output], options: ConvertOptions
) -> Plan:
    """Plan the work for outputs that are laid out. Raises CheckpointError if it may do harm."""
    inputs = _inputs(source, graph, planned, options)
    if options.bundle:
        source_date()
    else:
        planned = [replace(o, notes=(*o.notes, *earlier_notes(o.request))) for o in planned]
    memory = None if options.memory is None else parse_size(options.memory, "memory")
    plan = make_plan(graph, inputs, planned, memory=memory, has_bundles=options.bundle)
    overwrite.check(plan)
    return plan


def _requests(outputs: Sequence[str | Path], options: ConvertOptions) -> list[Request]:
    """Parse what is asked for; types by hand come before those of the recipe file."""
    if not outputs:
        raise RequestError("no output is named")
    types = options.types
    if types and len(types) != len(outputs):
        given, needed = count(len(types), "type"), count(len(outputs), "output")
        raise RequestError(f"{given} for {needed}; give one for each")
    file = None if options.recipe is None else read_recipe_file(Path(options.recipe))
    overrides = tuple(parse_tensor_type(text) for text in options.tensor_types)
    if options.tensor_type_file is not None:
        overrides += read_tensor_types(Path(options.tensor_type_file))
    if file is not None:
        overrides += file.overrides
    named = zip(outputs, types or itertools.repeat(None, len(outputs)), strict=True)
    goal = _goal(options)
    default = None if goal is None else BY_SIZE
    requests = [parse_output(path, name, file, default) for path, name in named]
    requests = [request.with_rules(overrides, pure=options.pure) for request in requests]
    ends, metadata = _ends(options), read_overrides_kv(options.override_kv)
    layers = parse_layers(options.prune_layers)
    requests = [
        replace(request, ends=ends, metadata=metadata, pruned=layers) for request in requests
    ]
    if options.allow_requantize:
        requests = [request.that_may_change() for request in requests]
    search = options.rule
    requests = [r if r.form in ("copy", "plain") else replace(r, search=search) for r in requests]
    requests = [replace(r, goal=goal) if r.directory is None else r for r in requests]
    return [replace(r, nvfp4_factors=_has_factors(r, options)) for r in requests]


def _has_factors(request: Request, options: ConvertOptions) -> bool:
    """Tell whether NVFP4 gets factors: where they are asked for, or belong to the search."""
    is_searched = request.directory is not None and request.search.is_least_error
    return options.nvfp4_factors or is_searched


def _goal(options: ConvertOptions) -> Goal | None:
    """Take from options what types are to be chosen for. Raises CheckpointError."""
    asked = [name for name in _TARGETS if getattr(options, name) is not None]
    if len(asked) > 1:
        names = " and ".join(map(option, asked))
        raise RequestError(f"{names} are asked for at once; give one of them")
    others = [n for n in ("sensitivity", "target_types", "target_together") if getattr(options, n)]
    if not asked:
        if others:
            needed = f"{option('target_size', 'SIZE')} or {option('target_bpw', 'BITS')}"
            raise RequestError(f"{option(others[0])}: of use with {needed} only")
        return None
    path = options.sensitivity
    if path is not None and options.prune_layers:
        raise RequestError(
            f"{option('prune_layers')} gives layers other numbers than "
            f"{option('sensitivity', 'FILE')} has: convert twice"
        )
    goal = Goal(
        None if options.target_size is None else parse_size(options.target_size, "target_size"),
        parse_positive(options.target_bpw, "target_bpw"),
        parse_positive(options.max_kl, "max_kl"),
        _target_types(options.target_types),
        tuple(parse_pattern(option("target_together"), text) for text in options.target_together),
        None if path is None else read_sensitivities(path),
    )
    if goal.divergence is not None:
        _check_probes(goal)
    return goal


def _check_probes(goal: Goal) -> None:
    """Refuse to predict divergences that were not measured. Raises RequestError."""
    kl, size = option("max_kl"), option("target_size", "SIZE")
    if goal.sensitivities is None:
        raise RequestError(f"{kl}: of use with {option('sensitivity', 'FILE')} only")
    if not goal.sensitivities.has_probes:
        raise RequestError(
            f"{kl}: {goal.sensitivities.path} has no probes for some tensors, and local effects "
            f"are no divergence; measure it with probes, or give {size}"
        )


def _target_types(given: Sequence[str]) -> tuple[QuantType, ...]:
    names = [name.strip() for text in given for name in text.split(",")]
    return tuple(dict.fromkeys(_gguf_type("target_types", name) for name in names))


def _ends(options: ConvertOptions) -> EndTypes:
    """Take the types of output and embedding table from options. Raises RequestError."""
    output, embedding = (
        None if name is None else _gguf_type(keyword, name)
        for keyword, name in (
            ("output_tensor_type", options.output_tensor_type),
            ("token_embedding_type", options.token_embedding_type),
        )
    )
    if output is not None and options.leave_output_tensor:
        raise RequestError(
            f"{option('output_tensor_type')} and {option('leave_output_tensor')} are asked for at "
            "once"
        )
    return EndTypes(output, embedding, options.leave_output_tensor)


def _gguf_type(keyword: str, name: str) -> QuantType:
    try:
        found = rule_type(name)
    except RequestError as problem:
        raise RequestError(f"{option(keyword)}: {problem}") from None
    if not isinstance(found, QuantType):
        raise RequestError(f"{option(keyword)}: {found.label} is a type of directories alone")
    return found


def _importance(options: ConvertOptions) -> tuple[ImportanceMatrix | None, tuple[str, ...]]:
    """Read what is asked for of the importance matrix, and say if that is none of it."""
    included, excluded = options.include_weights, options.exclude_weights
    names = [option(n) for n in ("include_weights", "exclude_weights") if getattr(options, n)]
    if len(names) > 1:
        raise RequestError(f"{' and '.join(names)} are asked for at once; give one of them")
    floor = parse_share(options.importance_floor)
    if floor is not None:
        names.append(option("importance_floor"))
    if options.imatrix is None and names:
        raise RequestError(f"{names[0]}: of use with {option('imatrix', 'FILE')} only")
    if options.imatrix is None:
        return None, ()
    whole = replace(read_imatrix(options.imatrix), floor=floor)
    found = select_entries(whole, included, excluded)
    if found is not None:
        return found, ()
    asked = option("include_weights" if included else "exclude_weights")
    return None, (f"{asked} leaves no entry of {whole.path}, so none is used",)


def _hessians(options: ConvertOptions) -> Hessians | None:
    """Index the second moments for error feedback, if there are any. Raises CheckpointError."""
    if options.hessian is None:
        return None
    if options.prune_layers:
        raise RequestError(
            f"{option('prune_layers')} gives layers other numbers than {option('hessian', 'FILE')} "
            "has: convert twice"
        )
    return read_hessians(options.hessian)


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
        names = ", ".join(option(row.name) for row in useless)
        if any(request.form == "copy" for request in requests):
            raise RequestError(f"{names}: COPY leaves every tensor as it is; give a type instead")
        forms = " or ".join(dict.fromkeys(_FORMS[form] for form in useless[0].option.forms))
        raise RequestError(f"{names}: of use for {forms} outputs only, and none is asked for")
    if options.prune_layers and any(r.target.is_directory for r in requests):
        raise RequestError(f"{option('prune_layers')}: directories keep all layers; convert twice")
    for request in requests:
        if request.says_imatrix and options.imatrix is None:
            raise RequestError(
                f"{request.path}: the name says that an importance matrix is used; give it with "
                f"{option('imatrix', 'FILE')}, or rename the output"
            )


def _inputs(
    source: Path, graph: TensorGraph, planned: Sequence[Output], options: ConvertOptions
) -> Inputs:
    """List the files that are read; the tokenizer may have been found beside the source."""
    found = next((output.tokenizer for output in planned if output.tokenizer), options.tokenizer)
    files = {**options.files, "tokenizer": found, **lora_files(options.lora)}
    blanks = find_unwritten(graph)
    return Inputs(source, list_inputs(source, graph, files), options, blanks)


@cancellable()
def run(
    plan: Plan,
    jobs: int | None = None,
    on_progress: OnProgress = ignore_progress,
    devices: Devices = PROCESSOR,
    measuring: Measuring | None = None,
    *,
    resume: bool = True,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Summary:
    """Run a plan; `on_progress` gets the phase, and the bytes of it that are done.

    With `measuring` the summary has a report of the errors, and bundles tell of them; `on_report`
    gets it when the outputs are complete, before they get their names.
    """
    meter = Meter(on_progress)
    workers = choose_workers(jobs, devices)
    plan.inputs.check(_CHANGED_SINCE)
    plan.inputs.check_blanks()
    for output in plan.outputs:
        output.importance.check(output.request.path)
    check_free_space(plan.outputs)
    start = time.monotonic()
    made: list[Finalized] = []

    def on_complete() -> Mapping[int, Mapping[Path, Path]]:
        made.append(finalize(plan, jobs, meter, measuring, on_report))
        return dict(enumerate(made[0].waiting))

    with _explained_failures(plan, resume=resume):
        counts = executor.run(
            plan,
            workers,
            meter,
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
            fewer, memory = option("jobs"), option("memory", "SIZE")
            raise CheckpointError(f"out of memory; use fewer {fewer} or {memory}") from None
    except (TakenError, LimitError):
        raise  # the same command cannot go on
    except CheckpointError as found:
        error = _changed(plan) or found
        if kept := kept_work(output.request.path for output in plan.outputs):
            how = how_to_go_on(resume=resume)
            error.args = (f"{error} ({kept} is finished and kept; {how})",)
        raise error from found.__cause__


def _changed(plan: Plan) -> ChangedError | None:
    """Tell whether the source is no longer what it was: that explains whatever is wrong with it."""
    try:
        plan.inputs.check()
    except ChangedError as changed:
        return changed
    except CheckpointError:
        pass
    return None


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
    meter: Meter,
    measuring: Measuring | None,
    on_report: Callable[[Report], None],
) -> Finalized:
    """Make a report if errors were measured, and bundles if the plan has them."""
    report = None
    if measuring is not None:
        report = conversion_report(plan, measuring.finished(), measuring.baseline)
        on_report(report)
    if not plan.has_bundles:
        return Finalized(report)
    errors = {} if report is None else _card_errors(report)
    start = time.monotonic()
    try:
        waiting = make_bundles(plan, jobs, meter.start("hash", plan.hash_bytes), errors)
    except ChangedError as problem:
        return Finalized(report, problem=problem)
    return Finalized(report, waiting, time.monotonic() - start)


def _card_errors(report: Report) -> dict[int, CardErrors]:
    """Describe the errors of each output for its model card."""
    return {
        number: CardErrors(card_lines(report, number), report.baseline)
        for number in range(len(report.outputs))
    }
