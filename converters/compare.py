"""From two paths to the errors of one checkpoint against the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightcast.converters.error_report import (
    MeasuredOutput,
    MeasuredTensor,
    recipe_values,
    report_values,
)
from weightcast.converters.execute import default_workers
from weightcast.converters.gguf_outputs import FILE_TYPE_KEY
from weightcast.converters.graph import matrices
from weightcast.converters.measured import MatrixErrors, parse_baseline
from weightcast.converters.pairing import (
    Pair,
    Pairing,
    bytes_to_read,
    has_same_bytes,
    measure_pairs,
    open_pair,
    pair_tensors,
)
from weightcast.converters.recipes import RECIPES
from weightcast.converters.sources import AnyGraph, kind_of
from weightcast.converters.words import count
from weightcast.formats.gguf import read_file
from weightcast.quant.error import Baseline
from weightcast.quant.errors import LayoutError, OutputError


@dataclass(frozen=True, slots=True)
class Sides:
    """Two checkpoints that can be compared, opened; no weights were read."""

    source: AnyGraph
    output: AnyGraph
    pairing: Pairing

    @property
    def read_bytes(self) -> int:
        return bytes_to_read(self.pairing.pairs)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What B differs by from A.

    `report` has the errors as docs/report.schema.json says. Of numbers that are no weights only
    the bytes are compared: `same` and `different` are their names.
    """

    a: str
    b: str
    pairing: Pairing = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    same: tuple[str, ...] = ()
    different: tuple[str, ...] = ()

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
        return f"{self.b} is not another form of {self.a}: {', '.join(told)}" if told else None

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
            "same_bytes": list(self.same),
            "different_bytes": list(self.different),
        }


def open_sides(a: str | Path, b: str | Path, spec: str | Path | None = None) -> Sides:
    """Open two checkpoints and pair their tensors. Raises CheckpointError."""
    file = None if spec is None else Path(spec)
    source, output = open_pair(Path(a), Path(b), file, file)
    pairing = pair_tensors(source, output)
    if not (pairing.pairs or pairing.plain):
        raise LayoutError(f"{b} has no tensor that could be compared with one of {a}")
    return Sides(source, output, pairing)


def measure_sides(
    sides: Sides,
    baseline: Baseline = Baseline.STORED,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> Comparison:
    """Measure all tensors; `on_progress` gets bytes of `read_bytes`. Raises CheckpointError."""
    pairing = sides.pairing
    same: list[str] = []
    different: list[str] = []
    for pair in pairing.plain:
        (same if has_same_bytes(pair) else different).append(pair.name)
    workers = default_workers() if jobs is None else jobs
    measured = measure_pairs(pairing.pairs, baseline, jobs=workers, on_progress=on_progress)
    output = measured_output(sides.output, pairing.pairs, measured)
    return Comparison(
        sides.source.source,
        sides.output.source,
        pairing,
        report_values(sides.source, baseline, [output]),
        tuple(same),
        tuple(different),
    )


def measured_output(
    graph: AnyGraph, pairs: Sequence[Pair], measured: Mapping[Pair, tuple[MatrixErrors, ...]]
) -> MeasuredOutput:
    """Describe B as an output of A."""
    kind = kind_of(Path(graph.source))
    type_name = _type_name(graph, kind, pairs)
    tensors = (
        MeasuredTensor(p.name, p.gguf, p.type, p.output.shape, p.nbytes, measured[p]) for p in pairs
    )
    return MeasuredOutput(
        path=graph.source,
        kind=kind,
        type=type_name,
        nbytes=sum(path.stat().st_size for path in _files(graph)),
        tensors=tuple(tensors),
        recipe=recipe_values(type_name, (), pure=False),
    )


def _type_name(graph: AnyGraph, kind: str, pairs: Sequence[Pair]) -> str:
    """Name what a checkpoint is: as GGUF files say themselves, else what most weights are in."""
    if kind == "gguf":
        said = read_file(Path(graph.source)).metadata.get(FILE_TYPE_KEY)
        for recipe in RECIPES.values():
            if type(said) is int and recipe.file_type == said:
                return recipe.name
    weights: Counter[str] = Counter()
    for pair in pairs:
        weights[pair.type] += pair.output.size
    most = weights.most_common(1)[0][0] if weights else "unknown"
    return most.lower() if kind == "safetensors" else most


def _files(graph: AnyGraph) -> set[Path]:
    arrays = (view.array.path for tensor in graph.values() for view in matrices(tensor))
    return {*graph.files, *arrays}


def compare(
    a: str | Path,
    b: str | Path,
    *,
    spec: str | Path | None = None,
    baseline: str = "stored",
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> Comparison:
    """Measure the errors of every tensor of B against the same one of A.

    Either is a checkpoint directory, a GGUF file or safetensors; of models other than Grok-1 both
    are GGUF files. `spec` is a JSON file of hyperparameters of another model of the family.
    Errors are differences from what A stores: with the baseline "bf16" from these values rounded
    to bfloat16. `jobs` is the number of workers; the numbers do not depend on it.

    Raises CheckpointError. Tensors that only one of them has are no error here: see
    `Comparison.problem`.
    """
    return measure_sides(open_sides(a, b, spec), parse_baseline(baseline), jobs, on_progress)


def check_report_path(path: Path, sides: Sides, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse a report over what is compared, or where none can be written. Raises OutputError."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such directory; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")
    if not path.exists():
        return
    taken = {*_files(sides.source), *_files(sides.output), *filter(None, inputs)}
    holders = set(_directories(sides))
    if any(path.samefile(file) for file in taken) or holders & {folder, *folder.parents}:
        raise OutputError(f"{path}: belongs to what is compared; name another file")


def _directories(sides: Sides) -> Iterator[Path]:
    for graph in (sides.source, sides.output):
        if os.path.isdir(graph.source):
            yield Path(os.path.realpath(graph.source))
