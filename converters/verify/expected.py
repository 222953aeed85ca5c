"""Lay out the conversion that would make an artifact, taking types and files from the artifact."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from weightcast.converters.recipes import (
    COPY,
    PLAIN,
    RECIPES,
    DirectoryType,
    Override,
    Recipe,
    directory_type,
    name_in,
    recipe_named,
)
from weightcast.converters.sources import SourceOptions, container_of, open_as_it_is
from weightcast.converters.targets.feedback import with_feedback
from weightcast.converters.targets.gguf_metadata import FILE_TYPE_KEY, QUANTIZATION_VERSION_KEY
from weightcast.converters.targets.gguf_parts import lay_out_split
from weightcast.converters.targets.lay_out import lay_out_all
from weightcast.converters.targets.target import Context, Output, Request
from weightcast.converters.verify.match import TensorMatch
from weightcast.converters.verify.structure import Structure
from weightcast.errors import CheckpointError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.hessians import Hessians
from weightcast.formats.split import SPLIT_NAME, PartLimits
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import TYPES, WeightType

# Conversions set these, splitting and merging leave them as they are.
_RENEWED: Final = (FILE_TYPE_KEY, QUANTIZATION_VERSION_KEY)


@dataclass(frozen=True)
class ExpectedLayout:
    """The output of a conversion, None if there is none like it (`refusal` says why)."""

    output: Output | None
    refusal: str = ""


@dataclass(frozen=True)
class Asked:
    """What a conversion was asked for that its tensors do not tell: see Request."""

    metadata: Mapping[str, bytes] = field(default_factory=dict)
    pruned: tuple[int, ...] = ()
    search: Search = GGML
    hessians: Hessians | None = None


def expected_layout(
    structure: Structure,
    tensors: Sequence[TensorMatch],
    source: Path,
    given: SourceOptions,
    imatrix: ImportanceMatrix | None,
    asked: Asked,
) -> ExpectedLayout:
    """Lay out the conversion that would make an artifact: types and files are taken from it."""
    given = replace(given, no_tokenizer=_has_no_tokenizer(structure))
    try:
        request = _request(structure, tensors)
        request = replace(
            request.that_may_change(),
            metadata=asked.metadata,
            pruned=asked.pruned,
            search=asked.search,
        )
        copy = _copy(structure, tensors, source, request, imatrix)
        if copy is not None:
            return ExpectedLayout(copy)
        output = _lay_out(source, request, given, 0, imatrix)
        overrides = tuple(_overrides(output, tensors))
        if overrides:
            request = replace(request, overrides=overrides)
            if request.directory is not None:
                types = (override.type for override in overrides)
                request = replace(request, directory=request.directory.with_rules(types))
        if overrides or len(structure.files) != len(output.files):
            output = _lay_out(source, request, given, _split_bytes(structure), imatrix)
        output = with_feedback(output, asked.hessians)
    except CheckpointError as problem:
        return ExpectedLayout(None, str(problem))
    return ExpectedLayout(output)


def _copy(
    structure: Structure,
    tensors: Sequence[TensorMatch],
    source: Path,
    request: Request,
    imatrix: ImportanceMatrix | None,
) -> Output | None:
    """Lay out what keeps all types, as the type COPY or in other files, if an artifact does."""
    if request.directory is not None or container_of(source) != request.target.name:
        return None
    if any(tensor.array.dtype != tensor.source.dtype for tensor in tensors):
        return None
    graph = open_as_it_is(source)
    assert graph is not None
    assert graph.metadata is not None
    assert structure.metadata is not None
    request, said = replace(request, recipe=COPY), structure.metadata.raw
    copies = (
        lay_out_split(graph, graph.metadata, request, PartLimits()),
        _lay_out(source, request, SourceOptions(), 0, imatrix),
    )
    found = max(copies, key=lambda copy: len(said.items() & metadata_of(copy).items()))
    wanted = metadata_of(found)
    is_copy = all(said.get(key) == wanted.get(key) for key in _RENEWED)
    return found if is_copy else None


def metadata_of(output: Output) -> dict[str, bytes]:
    """The raw metadata of a laid out GGUF output."""
    return dict(gguf.header_of_bytes(output.files[0].header, output.files[0].path).metadata.raw)


def _lay_out(
    source: Path,
    request: Request,
    given: SourceOptions,
    split: int,
    imatrix: ImportanceMatrix | None,
) -> Output:
    if request.directory is not None and not request.directory.is_packed:
        imatrix = None
    has_metadata = container_of(source) in (request.target.name, "peft")
    copies = request.target.keeps_metadata and has_metadata
    if copies and given.spec is None:
        given = SourceOptions(lora=given.lora)  # from GGUF to GGUF all metadata are kept
    context = Context(imatrix=imatrix, split_bytes=split)
    try:
        return lay_out_all(source, [request], given, context)[1][0]
    except CheckpointError:
        if given.tokenizer is not None or given.no_tokenizer:
            raise
        # The source has no tokenizer, the artifact one of elsewhere: it is kept.
        without = replace(given, no_tokenizer=True)
        return lay_out_all(source, [request], without, context)[1][0]


def _has_no_tokenizer(structure: Structure) -> bool:
    if structure.metadata is None:
        return structure.path.is_dir() and not (structure.path / "tokenizer.model").is_file()
    model = structure.metadata.get("tokenizer.ggml.model")
    return model is None or (isinstance(model, str) and model == "no_vocab")


def _request(structure: Structure, tensors: Sequence[TensorMatch]) -> Request:
    path, target = structure.path, structure.target
    recipe = recipe_of(structure)
    if recipe is not None:
        match = SPLIT_NAME.fullmatch(path.name)
        if match is not None:
            path = path.with_name(f"{match[1]}.gguf")
        return Request(path, target, recipe)
    directory = _directory_type(tensors)
    name = name_in(path.name)
    named = None if name is None else directory_type(name)
    if named is not None and named.layout == directory.layout:
        directory = named
    return Request(path, target, RECIPES[directory.base.name], directory=directory)


def recipe_of(structure: Structure) -> Recipe | None:
    """Tell a GGUF file's recipe from its name or its general.file_type; None for directories."""
    if structure.target.is_directory:
        return None
    stem = SPLIT_NAME.sub(r"\1", structure.path.name).removesuffix(".gguf")
    named = recipe_named(re.split(r"[-.]", stem)[-1])
    if named is not None:
        return named
    assert structure.metadata is not None
    file_type = gguf.whole_number(structure.metadata, FILE_TYPE_KEY)
    return next((r for r in RECIPES.values() if r.file_type == file_type), RECIPES["F16"])


def _directory_type(tensors: Sequence[TensorMatch]) -> DirectoryType:
    """Give the type that most matrices of a directory have, and that of its plain floats."""
    attention: Counter[WeightType] = Counter()
    experts: Counter[WeightType] = Counter()
    floats: Counter[WeightType] = Counter()
    layouts: Counter[str] = Counter()
    for tensor in tensors:
        found = weight_type(tensor.array)
        place = tensor.place
        if found is None or place is None or place.role.storage == "float32":
            continue
        if tensor.array.packed is not None:
            layouts[tensor.array.packed.layout] += 1
        if place.layer is None:
            floats[found] += 1
        else:
            (experts if place.role.is_experts else attention)[found] += 1
    names = (found.label for found, _ in floats.most_common())
    base = TYPES[next((name for name in names if name in TYPES), "BF16")]
    layout = layouts.most_common(1)[0][0] if layouts else PLAIN
    chosen = [c.most_common(1)[0][0] if c else base for c in (attention, experts)]
    return DirectoryType("", layout, chosen[0], chosen[1], base)


def weight_type(array: StoredArray) -> WeightType | None:
    """Give the type of a stored tensor; None for whole numbers and float64."""
    if array.packed is not None:
        return array.packed.type
    return TYPES.get(array.dtype)


def _overrides(output: Output, tensors: Sequence[TensorMatch]) -> Iterator[Override]:
    """Give tensors the types that they have by rules, where the conversion's are others."""
    planned = {tensor.tensor.name: tensor for tensor in output.tensors}
    names: dict[WeightType, list[str]] = {}
    for tensor in tensors:
        found = planned.get(planned_name(tensor, output))
        there = weight_type(tensor.array)
        if found is None or there is None or tensor.tied is not None:
            continue
        made = found.type if found.packed is None else found.packed.packing.type
        n_in = tensor.array.shape[-1] if tensor.array.shape else 1
        if made.in_rows_of(n_in) != there.in_rows_of(n_in):
            names.setdefault(there, []).append(found.tensor.name)
    for asked, named in names.items():
        pattern = "^(?:" + "|".join(map(re.escape, named)) + ")$"
        yield Override(re.compile(pattern), asked, "the artifact")


def planned_name(tensor: TensorMatch, output: Output) -> str:
    """Give the name that a conversion gives a tensor: llama.cpp has renamed one."""
    return tensor.own if output.request.target.is_directory else tensor.gguf


def _split_bytes(structure: Structure) -> int:
    """Give a limit of files that cuts them as they are; 0 for one file."""
    if len(structure.files) < 2:
        return 0
    filled: Counter[Path] = Counter()
    stems: dict[Path, set[str]] = {}
    for name, array in structure.tensors.items():
        filled[array.path] += array.nbytes
        stem = name.rsplit(".", 1)[0] if structure.target.is_directory else name
        stems.setdefault(array.path, set()).add(stem)
    return max((filled[path] for path, found in stems.items() if len(found) > 1), default=1)
