"""From two paths to the errors of one checkpoint against the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weightcast.converters.compare.measure import bytes_to_read, has_same_bytes, measure_pairs
from weightcast.converters.compare.pair import Pair, Pairing, open_pair, pair_tensors
from weightcast.converters.engine import (
    Meter,
    OnProgress,
    Progress,
    callback,
    cancellable,
    ignore_progress,
)
from weightcast.converters.files import as_optional_path, as_path
from weightcast.converters.graph import TensorGraph, first_array, windows
from weightcast.converters.plan import choose_workers
from weightcast.converters.recipes import (
    RECIPES,
    ImportanceMap,
    is_quantized,
    match_importance_named,
)
from weightcast.converters.report import (
    AppliedRecipe,
    MatrixErrors,
    MeasuredOutput,
    MeasuredTensor,
    Metrics,
    Report,
    build_report,
    json_values,
    parse_baseline,
)
from weightcast.converters.sources import CONTAINERS, Adapters, listed_lora, parse_layers
from weightcast.converters.sources.prune import renumbered
from weightcast.converters.targets import TARGETS
from weightcast.errors import LayoutError
from weightcast.formats.gguf.imatrix import read_imatrix
from weightcast.quant.metrics import Baseline
from weightcast.text import count, option


@dataclass(frozen=True, slots=True)
class OpenPair:
    """Two checkpoints that can be compared, opened; no weights were read."""

    source: TensorGraph
    output: TensorGraph
    pairing: Pairing
    importance: ImportanceMap = field(default_factory=ImportanceMap)

    @property
    def read_bytes(self) -> int:
        return bytes_to_read(self.pairing.pairs)

    @property
    def places(self) -> set[Path]:
        """The files that are compared, and what they were named by."""
        named = {Path(self.source.source), Path(self.output.source)}
        return named | _files(self.source) | _files(self.output)


@dataclass(frozen=True)
class Comparison:
    """The errors of B against A, and the tensors that could not be compared.

    `total` is of all weights together: `total.relative_rms`, `total.sqnr_db` (decibels, None
    without an error), `total.cosine`. `errors` are those of each tensor of both, and `report` has
    them as JSON values. `weighing` is the importance matrix behind weighted ones. Of numbers that
    are no weights only the bytes are compared: `same` and `different` are their names.

    >>> found = weightcast.compare(path, out)
    >>> found.total.relative_rms < 0.01, found.problem is None
    (True, True)
    >>> worst = max(found.errors.outputs[0].tensors, key=lambda t: t.metrics.relative_rms)
    """

    a: str
    b: str
    pairing: Pairing = field(repr=False)
    errors: Report = field(repr=False)
    same: tuple[str, ...] = ()
    different: tuple[str, ...] = ()
    weighing: ImportanceMap = field(default_factory=ImportanceMap, repr=False)

    @property
    def total(self) -> Metrics:
        """Sum up the errors of all weights."""
        return self.errors.outputs[0].total

    @cached_property
    def report(self) -> dict[str, Any]:
        """Give the errors as JSON values (docs/report.schema.json)."""
        return json_values(self.errors)

    def __repr__(self) -> str:
        rms = self.total.relative_rms
        error = "not finite" if rms is None else f"relative RMS {rms:.3g}" if rms else "no error"
        problem = "" if self.problem is None else "; not all could be compared: see .problem"
        return f"<Comparison of {self.b} with {self.a}: {error}{problem}>"

    @property
    def problem(self) -> str | None:
        """Say why not all of them could be compared; None if it could. Errors are no problem."""
        pairing = self.pairing
        found = (
            (len(pairing.only_source), f"only in {self.a}"),
            (len(pairing.only_output), f"only in {self.b}"),
            (len(pairing.reshaped), "of another shape"),
            (len(pairing.unlike), "in types that cannot be compared"),
            (len(self.different), "of numbers that are no weights, with other bytes"),
        )
        told = [f"{count(number, 'tensor')} {what}" for number, what in found if number]
        if not told:
            return None
        if pairing.are_layers_missing:
            told[0] += f" (if layers were left out, name them: {option('prune_layers', 'N')})"
        return f"{self.b} is not another form of {self.a}: {', '.join(told)}"

    def describe(self) -> dict[str, Any]:
        """The report, and what was not measured, as JSON values."""
        pairing = self.pairing
        return {
            **self.report,
            "only_in_a": list(pairing.only_source),
            "only_in_b": list(pairing.only_output),
            "reshaped": [
                {"name": name, "a": list(a), "b": list(b)} for name, a, b in pairing.reshaped
            ],
            "not_compared": list(pairing.unlike),
            "not_weighed": list(self.weighing.missing),
            "same_bytes": list(self.same),
            "different_bytes": list(self.different),
        }


def open_both(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    spec: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    lora: Sequence[str] = (),
    left_out: Sequence[int] = (),
) -> OpenPair:
    """Open two checkpoints, pair their tensors, and find what weighs each.

    Adapters are merged into A; `left_out` are layers of it that B is without. Raises
    CheckpointError.
    """
    file = None if spec is None else Path(spec)
    source, output = open_pair(Path(a), Path(b), file, file, lora, left_out)
    pairing = pair_tensors(source, output)
    if not (pairing.pairs or pairing.plain):
        raise LayoutError(f"{b} has no tensor that could be compared with one of {a}")
    if imatrix is None:
        return OpenPair(source, output, pairing)
    shapes = [(pair.gguf, pair.output.shape) for pair in pairing.pairs]
    wanted = {name for name, shape in shapes if is_quantized(name, shape)}
    matrix = renumbered(read_imatrix(Path(imatrix)), left_out)
    assert matrix is not None
    importance = match_importance_named(matrix, shapes, wanted)
    return OpenPair(source, output, pairing, importance)


@cancellable()
def measure_both(
    sides: OpenPair,
    baseline: Baseline = Baseline.STORED,
    jobs: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Comparison:
    """Measure all tensors; `on_progress` gets bytes of `read_bytes`. Raises CheckpointError."""
    count_bytes = Meter(on_progress).start("compare", sides.read_bytes)
    workers = choose_workers(jobs)
    pairing = sides.pairing
    same: list[str] = []
    different: list[str] = []
    for pair in pairing.plain:
        arrays = first_array(pair.source), first_array(pair.output)
        is_same = not pair.output.size or has_same_bytes(*arrays)
        (same if is_same else different).append(pair.name)
    measured = measure_pairs(
        pairing.pairs,
        baseline,
        jobs=workers.count,
        importance=sides.importance.rows,
        on_progress=count_bytes,
    )
    output = measured_output(sides.output, pairing.pairs, measured, sides.importance)
    return Comparison(
        sides.source.source,
        sides.output.source,
        pairing,
        build_report(sides.source, baseline, [output]),
        tuple(same),
        tuple(different),
        sides.importance,
    )


def measured_output(
    graph: TensorGraph,
    pairs: Sequence[Pair],
    measured: Mapping[Pair, tuple[MatrixErrors, ...]],
    importance: ImportanceMap,
) -> MeasuredOutput:
    """Describe B as an output of A."""
    type_name = _type_name(graph, pairs)
    tensors = (
        MeasuredTensor(
            p.name, p.gguf, p.type, p.output.shape, p.nbytes, measured[p], p.gguf in importance.rows
        )
        for p in pairs
    )
    return MeasuredOutput(
        path=graph.source,
        container=graph.container,
        type=type_name,
        nbytes=sum(path.stat().st_size for path in _files(graph)),
        tensors=tuple(tensors),
        recipe=AppliedRecipe(type_name),
        imatrix=None if importance.matrix is None else str(importance.matrix.path),
    )


def _type_name(graph: TensorGraph, pairs: Sequence[Pair]) -> str:
    """Name what a checkpoint is: as GGUF files say themselves, else what most weights are in."""
    said = CONTAINERS[graph.container].file_type(Path(graph.source))
    for recipe in RECIPES.values():
        if said is not None and recipe.file_type == said:
            return recipe.name
    weights: Counter[str] = Counter()
    for pair in pairs:
        weights[pair.type] += pair.output.size
    most = weights.most_common(1)[0][0] if weights else "unknown"
    target = CONTAINERS[graph.container].target
    return most.lower() if target is not None and TARGETS[target].is_directory else most


def _files(graph: TensorGraph) -> set[Path]:
    arrays = (view.path for tensor in graph.values() for view in windows(tensor))
    return {*graph.files, *arrays}


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    spec: str | os.PathLike[str] | None = None,
    lora: Adapters = (),
    imatrix: str | os.PathLike[str] | None = None,
    prune_layers: str | Sequence[int] | None = None,
    baseline: str = "stored",
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Measure the errors of every tensor of B against the same tensor of A.

    Either is a checkpoint directory, a GGUF file or safetensors; of models other than Grok-1 both
    are GGUF files. `spec` is a JSON file of hyperparameters of another model of the family, and
    `lora` are adapters to merge into A, as `convert` takes them.
    Errors are differences from what A stores: with the baseline "bf16" from these values rounded
    to bfloat16. With `imatrix`, an importance matrix in llama.cpp's format, they are also weighed
    by the importance of their columns, as in reports of conversions. `prune_layers` are layers of A
    that B was made without. `jobs` is the number of workers; the numbers do not depend on it.
    `on_progress` is called with a `weightcast.Progress`, from any thread, one call at a time; what
    it raises ends the comparison and is raised here.

    Raises CheckpointError for what cannot be read, RequestError for another baseline. Tensors that
    only one of them has are no error here: see `Comparison.problem`.

    >>> weightcast.compare(path, out).total.relative_rms < 0.01
    True
    """
    against = parse_baseline(baseline)
    tell = callback(on_progress)
    named = as_path(a, "a"), as_path(b, "b")
    beside = as_optional_path(spec, "spec"), as_optional_path(imatrix, "imatrix")
    tell(Progress("plan"))
    adapters, layers = listed_lora(lora), parse_layers(prune_layers)
    return measure_both(open_both(*named, *beside, adapters, layers), against, jobs, tell)
