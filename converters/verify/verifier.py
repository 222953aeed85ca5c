"""Verify that an artifact is whole, and that it holds the source's weights."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare import Sample, has_same_bytes
from weightcast.converters.engine import Meter, OnProgress, callback, cancellable
from weightcast.converters.families import of_architecture
from weightcast.converters.files import CARD, as_optional_path, as_path
from weightcast.converters.graph import Family, TensorGraph, first_array
from weightcast.converters.plan import choose_workers
from weightcast.converters.recipes import read_overrides_kv, select_entries
from weightcast.converters.report import Report
from weightcast.converters.sources import (
    CONTAINERS,
    Adapters,
    SourceOptions,
    checkpoint_directory,
    container_of,
    listed_lora,
    listed_texts,
    open_as_it_is,
    open_family,
    open_graph,
    parse_layers,
    parse_share,
    resolve_source,
)
from weightcast.converters.sources.adapters import with_adapters
from weightcast.converters.sources.prune import pruned, renumbered
from weightcast.converters.sources.weights import Weights, is_of_ranks, weights_of
from weightcast.converters.targets import TARGETS
from weightcast.converters.targets.search_record import recorded_search
from weightcast.converters.verify.checksums import Checksums, check_sums, find_sums, is_loaded
from weightcast.converters.verify.content import check_content, read_bytes
from weightcast.converters.verify.expected import (
    Asked,
    ExpectedLayout,
    expected_layout,
    planned_name,
)
from weightcast.converters.verify.judge import Verdicts, judge, merged
from weightcast.converters.verify.layout import check_layout
from weightcast.converters.verify.match import ANOTHER_MODEL, TensorMatch, match
from weightcast.converters.verify.mistakes import Mistakes
from weightcast.converters.verify.report import errors_report
from weightcast.converters.verify.result import Problem, Verification, plain
from weightcast.converters.verify.rows import packing_of
from weightcast.converters.verify.source import verify_source
from weightcast.converters.verify.structure import FETCH, Structure, read_structure
from weightcast.errors import CheckpointError, RequestError
from weightcast.formats.array import StoredArray, read_into
from weightcast.formats.directory import entries
from weightcast.formats.gguf.factors import Factors, read_factors
from weightcast.formats.gguf.imatrix import ImportanceMatrix, read_imatrix
from weightcast.formats.hessians import StoredMoments, read_hessians
from weightcast.formats.safetensors import read_header_metadata
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import TYPES
from weightcast.text import count, option, shown, some


@cancellable()
def verify(
    artifact: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    spec: str | os.PathLike[str] | None = None,
    lora: Adapters = (),
    imatrix: str | os.PathLike[str] | None = None,
    hessian: str | os.PathLike[str] | None = None,
    include_weights: str | Sequence[str] | None = (),
    exclude_weights: str | Sequence[str] | None = (),
    importance_floor: str | float | None = None,
    override_kv: str | Sequence[str] | None = (),
    prune_layers: str | Sequence[int] | None = None,
    sample: Sample = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Check that an artifact is whole and, with a source, that it holds the source's weights.

    `artifact` is a GGUF file (a split one by any of its files, or by the name that all go by) or a
    safetensors file or directory, `source` what it was made of, `imatrix` the importance matrix
    that was used, `hessian` the second moments, `lora` the adapters that were merged, as `convert`
    takes them. What `include_weights`, `exclude_weights`, `importance_floor`, `override_kv` and
    `prune_layers` the conversion was given, must be given here too. `sample` takes only some rows
    of each matrix: their number, or a share below 1. `on_progress` is called with a
    `weightcast.Progress`, from any thread, one call at a time; what it raises ends the verification
    and is raised here.

    What is wrong with the artifact are problems of the result. Raises CheckpointError if nothing
    can be verified, RequestError for arguments that make no sense.

    >>> weightcast.verify(out, path).is_good
    True
    """
    meter = Meter(callback(on_progress))
    meter.start("plan")
    path = resolve_source(as_path(artifact, "artifact"))
    against = as_optional_path(source, "source")
    hyperparameters = as_optional_path(spec, "spec")
    weighing = as_optional_path(imatrix, "imatrix")
    workers = choose_workers(jobs)
    included = listed_texts("include_weights", include_weights)
    excluded = listed_texts("exclude_weights", exclude_weights)
    floor = parse_share(importance_floor)
    overrides = read_overrides_kv(listed_texts("override_kv", override_kv))
    moments = as_optional_path(hessian, "hessian")
    asked = Asked(
        overrides,
        parse_layers(prune_layers),
        hessians=None if source is None or moments is None else read_hessians(moments),
    )
    adapters = listed_lora(lora)
    made_with = {
        "sample": sample is not None,
        "imatrix": imatrix is not None,
        "hessian": hessian is not None,
        "override_kv": asked.metadata,
        "prune_layers": asked.pruned,
        "lora": adapters,
    }
    _check_request(source, made_with, sample)
    of_imatrix = {
        "include_weights": included,
        "exclude_weights": excluded,
        "importance_floor": floor,
    }
    useless = next((name for name, value in of_imatrix.items() if value), None)
    if useless is not None and imatrix is None:
        raise RequestError(f"{option(useless)}: of use with {option('imatrix', 'FILE')} only")
    container = CONTAINERS[container_of(path)]
    if container.target is None and checkpoint_directory(path) is None:
        container.open(path, None)  # an adapter says what it is, and what becomes of it
    if container.target is None:
        if source is not None:
            raise RequestError(
                f"{path}: a checkpoint of shards is a source: verify it alone, or compare the two"
            )
        return verify_source(path, hyperparameters, workers.count, meter)
    structure = read_structure(path, TARGETS[container.target], container.name)
    return _Verifier(path, structure, sample, workers.count, meter).run(
        None if against is None else resolve_source(against),
        SourceOptions(hyperparameters, lora=adapters),
        None
        if weighing is None
        else select_entries(replace(read_imatrix(weighing), floor=floor), included, excluded),
        asked,
    )


def _check_request(source: object, made_with: Mapping[str, object], sample: Sample) -> None:
    names = [name for name, value in made_with.items() if value]
    if source is None and names:
        raise RequestError(f"{option(names[-1])}: of use with a source only")
    if sample is None:
        return
    is_share = isinstance(sample, float) and 0 < sample < 1
    is_number = hasattr(sample, "__index__") and not isinstance(sample, bool) and sample >= 1
    if not is_share and not is_number:
        given = shown(sample)
        raise RequestError(f"a sample of {given}: give a number of rows, or a share below 1")


class _Verifier:
    def __init__(
        self,
        path: Path,
        structure: Structure,
        sample: Sample,
        jobs: int,
        meter: Meter,
    ) -> None:
        self._path = path
        self._sample = sample
        self._jobs = jobs
        self._meter = meter
        self._structure = structure
        self._problems = self._structure.problems
        self._notes: list[str] = []
        self._checked: list[str] = []
        self._unchecked: list[str] = []
        self._matrices: Counter[str] = Counter()
        self._used = structure.target.convention
        self._refused: set[str] = set()
        self._factors = Factors()
        self._search = _recorded(structure)

    def run(
        self,
        source: Path | None,
        given: SourceOptions,
        imatrix: ImportanceMatrix | None,
        asked: Asked,
    ) -> Verification:
        structure = self._structure
        what = f"{count(len(structure.tensors), 'tensor')} in {count(len(structure.files), 'file')}"
        self._checked.append(f"structure: {what}, offsets, sizes, names, padding")
        if self._search.is_least_error:
            self._notes.append(
                "scales and codes were searched for the least error instead of made by ggml's "
                f"rule, as the file says: {self._search}"
            )
        weights = self._weights()
        arrays = None if weights is None else weights.arrays
        sums = find_sums(self._path, structure.files)
        tensors: list[TensorMatch] = []
        graph = None
        if source is not None:
            # A directory is only made of a model whose family has a table.
            opened = open_family if structure.target.is_directory else open_graph
            if asked.pruned:
                graph = _pruned(source, given.lora, asked.pruned)
            else:
                graph = with_adapters(opened(source, given.spec), given.lora)
            if weights is not None:
                usual = structure.target.convention
                self._used = self._convention(graph, weights)
                names = self._used, usual
                tensors, problems = match(graph, weights, names, self._path, self._factors)
                # What is not there may be in a file that is missing, of which there is a line.
                self._problems += merged(
                    problem
                    for problem in problems
                    if not (problem.mistake == "missing" and structure.incomplete)
                )
                tensors = self._comparable(tensors)
        if not self._problems:
            self._check_alone()
        self._check_sums(sums)
        errors = None
        if arrays is None:
            self._unchecked.append("the weights: how they are packed cannot be told")
        elif any(problem.mistake == ANOTHER_MODEL for problem in self._problems):
            self._unchecked.append("the weights: those of another model cannot be compared")
        elif graph is not None and source is not None:
            errors = self._compare(graph, source, given, imatrix, tensors, asked)
        elif not sums.digests:
            self._unchecked.append("the weights: there is neither a source nor a SHA256SUMS")
        else:
            self._unchecked.append("the weights, beside their checksums: no source was given")
        return Verification(
            str(self._path),
            None if source is None else str(source),
            tuple(dict.fromkeys(self._problems)),
            tuple(self._notes),
            tuple(self._checked),
            tuple(self._unchecked),
            self._matrices,
            errors,
        )

    def _weights(self) -> Weights | None:
        """The tensors, those of packed matrices as one; None if the parts are not understood.

        Parts that are constant are compared.
        """
        structure = self._structure
        if not structure.target.is_directory:
            try:
                self._factors = read_factors(structure.tensors)
            except CheckpointError as problem:
                structure.refused(problem)
                return None
            return Weights(structure.tensors)
        folder = self._path if self._path.is_dir() else self._path.parent
        try:
            weights = weights_of(self._path, folder / "config.json", self._by_file())
        except CheckpointError as problem:
            if not structure.incomplete:  # or else there is a line of the cause
                structure.refused(problem)
            return None
        self._notes += weights.notes
        self._factors = Factors(weights.factors)
        found = []
        for name, array in weights.arrays.items():
            if array.packed is not None:
                wrong = list(_constant_problems(name, array))
                self._refused.update([name] if wrong else [])
                found += wrong
        self._problems += merged(found)
        return weights

    def _by_file(self) -> Mapping[Path, Mapping[str, StoredArray]]:
        """The tensors of each file, those that several have in the first of these."""
        structure = self._structure
        if any(map(is_of_ranks, structure.files)):
            return structure.by_file
        found: dict[Path, dict[str, StoredArray]] = defaultdict(dict)
        for name, array in structure.tensors.items():
            found[array.path][name] = array
        return found

    def _convention(self, graph: TensorGraph, weights: Weights) -> str:
        """Tell whose names the tensors have, and note it if they are not weightcast's."""
        usual = self._structure.target.convention
        if not graph.family.has_table:
            return usual
        found = graph.family.convention_in(weights.names, usual)
        if found != usual:
            self._notes.append(f"names of tensors as others have them: {found}")
        return found

    def _comparable(self, tensors: Sequence[TensorMatch]) -> list[TensorMatch]:
        """Those that kernels read; the rest is compared as it is stored.

        Without those of which there is a problem already.
        """
        weights = []
        others: dict[str, list[TensorMatch]] = defaultdict(list)
        for tensor in tensors:
            if tensor.name in self._refused:
                continue
            try:
                views = tensor.views
            except CheckpointError as problem:
                self._structure.refused(problem)
                continue
            if tensor.array.packed is not None or (
                tensor.array.dtype in TYPES and all(view.is_readable for view, _ in views)
            ):
                weights.append(tensor)
            elif not has_same_bytes(first_array(tensor.source), tensor.array):
                others[tensor.array.dtype].append(tensor)
        for dtype, found in others.items():
            what, place = f"numbers of {dtype} that are not the source's", str(found[0].array.path)
            names = some([plain(tensor.name) for tensor in found])
            self._problems.append(Problem(place, what, names, "convert again", "numbers"))
        return weights

    def _check_alone(self) -> None:
        """Hold metadata or config.json against the tensors' shapes, as opening does."""
        structure = self._structure
        first = self._path
        if structure.metadata is not None:
            family = of_architecture(structure.metadata.get("general.architecture"))
            if family is None:
                return
            if _is_another_member(structure, family):
                self._unchecked.append(f"shapes beside the metadata: not a {family.title}")
                return
            first = structure.files[0]
        elif not self._path.is_dir():
            return
        try:
            open_family(first)
        except CheckpointError as problem:
            structure.refused(problem)
            return
        self._checked.append("shapes: those that the metadata or config.json say")

    def _check_sums(self, sums: Checksums) -> None:
        if not sums.files:
            self._unchecked.append("checksums: no SHA256SUMS was found")
            return
        files = self._structure.files
        if self._path.is_dir():
            there = [file for file in entries(self._path) if file.is_file()]
            files = [file for file in there if is_loaded(file.name)]
            rest = {*there} - {*files, *sums.files, *sums.digests, self._path / CARD}
            names = [file.name for file in sorted(rest) if not file.name.startswith(".")]
            if names:
                self._unchecked.append(f"files that nothing loads: {some(names)}")
        sizes = (path.stat().st_size for path in sums.digests if path.is_file())
        on_progress = self._meter.start("hash", sum(sizes))
        found = check_sums(
            sums, files, self._structure.tensors, jobs=self._jobs, on_progress=on_progress
        )
        self._problems += found
        if not found:
            said = ", ".join(path.name for path in sums.files)
            self._checked.append(f"checksums: {count(len(sums.digests), 'file')} as in {said}")

    def _compare(
        self,
        graph: TensorGraph,
        source: Path,
        given: SourceOptions,
        imatrix: ImportanceMatrix | None,
        tensors: Sequence[TensorMatch],
        asked: Asked,
    ) -> Report:
        asked = replace(asked, search=self._search)
        layout = expected_layout(self._structure, tensors, source, given, imatrix, asked)
        imatrix = renumbered(imatrix, asked.pruned)
        around = check_layout(self._structure, layout, graph)
        self._problems += around.problems
        self._checked += around.checked
        self._unchecked += around.unchecked
        checks = check_content(
            tensors,
            _importance(layout, tensors),
            _moments(layout, tensors),
            jobs=self._jobs,
            sample=self._sample,
            on_progress=self._meter.start("verify", read_bytes(tensors, self._sample)),
            search=self._search,
        )
        found: Verdicts = judge(
            tensors, checks, Mistakes(graph, self._used), has_moments=asked.hessians is not None
        )
        self._problems += found.problems
        self._notes += found.notes
        self._matrices = found.counts
        if self._sample is not None:
            self._unchecked.append("rows that are not in the sample")
        return errors_report(self._structure, graph, imatrix, asked.hessians, tensors, checks)


def _recorded(structure: Structure) -> Search:
    """Read by what rule the weights were made; ggml's if the file does not say another."""
    if structure.metadata is not None:
        return recorded_search(structure.metadata)
    if not structure.target.is_directory or not structure.files:
        return GGML
    try:
        return recorded_search(read_header_metadata(structure.files[0]))
    except CheckpointError:  # of which the structure tells
        return GGML


def _pruned(source: Path, adapters: Sequence[str], layers: Sequence[int]) -> TensorGraph:
    """Open a GGUF file without some layers. Raises CheckpointError if it is something else."""
    graph = open_as_it_is(source)
    if graph is None:
        raise RequestError(f"{source}: {option('prune_layers')}: only of GGUF files are there any")
    return pruned(with_adapters(graph, adapters), layers)


def _importance(
    layout: ExpectedLayout, tensors: Sequence[TensorMatch]
) -> dict[str, NDArray[np.float32]]:
    """The importance that a conversion gives each tensor, by its name in the artifact."""
    if layout.output is None:
        return {}
    planned = {tensor.tensor.name: tensor.importance for tensor in layout.output.tensors}
    found = {tensor.name: planned.get(planned_name(tensor, layout.output)) for tensor in tensors}
    return {name: rows for name, rows in found.items() if rows is not None}


def _moments(
    layout: ExpectedLayout, tensors: Sequence[TensorMatch]
) -> dict[str, tuple[StoredMoments | None, ...]]:
    """The second moments that a conversion rounds each tensor by, by its name in the artifact."""
    output = layout.output
    if output is None:
        return {}
    planned = {tensor.tensor.name: tensor.moments for tensor in output.tensors}
    return {tensor.name: planned.get(planned_name(tensor, output), ()) for tensor in tensors}


def _is_another_member(structure: Structure, family: Family) -> bool:
    """Tell a model that only shares the architecture's name: all layers have other tensors too."""
    stored = [
        s for c in ("gguf", *family.dialects.get("gguf", ())) for s in family.names[c].values()
    ]
    known = {
        name.split(".")[2] for s in stored for name in (s.name, *s.earlier) if "{layer}" in name
    }
    layers = [name.split(".") for name in structure.tensors if name.startswith("blk.")]
    found = {words[1] for words in layers}
    strange = {words[1] for words in layers if len(words) < 3 or words[2] not in known}
    return len(strange) == len(found) > 0


def _constant_problems(name: str, array: StoredArray) -> Iterator[Problem]:
    """Parts of a packed matrix that are the same for all weights."""
    packing = packing_of(array)
    assert packing is not None
    assert array.packed is not None
    for suffix, wanted in packing.constants(*array.shape).items():
        part = array.packed.parts[suffix]
        if _read(part) != wanted:
            stem = name.removesuffix(".weight")
            what = "is not what belongs there: damaged, or an order of columns of its own"
            yield Problem(str(part.path), what, plain(stem + suffix), FETCH, "constant")


def _read(array: StoredArray) -> bytes:
    raw = bytearray(array.nbytes)
    with array.path.open("rb") as file:
        read_into(file.fileno(), array.path, array.offset, memoryview(raw))
    return bytes(raw)
