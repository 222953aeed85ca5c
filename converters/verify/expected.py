"""The conversion that would make an artifact: its types and files are taken from the artifact."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightcast.converters.recipes.decide import Override
from weightcast.converters.recipes.recipe import RECIPES, Recipe, recipe_named
from weightcast.converters.recipes.weight_types import (
    COMPRESSED_TENSORS,
    PLAIN,
    DirectoryType,
    WeightType,
    directory_type,
    name_in,
)
from weightcast.converters.sources.detect import kind_of
from weightcast.converters.sources.options import SourceOptions
from weightcast.converters.targets.gguf_copy import FILE_TYPE_KEY
from weightcast.converters.targets.lay_out import lay_out_all
from weightcast.converters.targets.target import Output, Request
from weightcast.converters.verify.match import HEADS, Held
from weightcast.converters.verify.structure import Structure
from weightcast.errors import CheckpointError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.quant.groups import GroupType
from weightcast.quant.types import TYPES, QuantType


@dataclass(frozen=True)
class Layout:
    """What a conversion would write, None if there is none like it (`refusal` says why)."""

    output: Output | None
    refusal: str = ""


def expected_layout(
    structure: Structure,
    held: Sequence[Held],
    source: Path,
    spec: Path | None,
    imatrix: ImportanceMatrix | None,
) -> Layout:
    """Lay out the conversion that would make an artifact: types and files are taken from it."""
    given = SourceOptions(spec, None, _has_no_tokenizer(structure))
    try:
        request = _request(structure, held)
        request = request.that_may_change()
        output = _lay_out(source, request, given, 0, imatrix)
        overrides = tuple(_overrides(output, held))
        if overrides:
            request = replace(request, overrides=overrides)
            if request.directory is not None:
                types = (override.type for override in overrides)
                request = replace(request, directory=request.directory.with_rules(types))
        if overrides or len(structure.files) != len(output.files):
            output = _lay_out(source, request, given, _split_bytes(structure), imatrix)
    except CheckpointError as problem:
        return Layout(None, str(problem))
    return Layout(output)


def _lay_out(
    source: Path,
    request: Request,
    given: SourceOptions,
    split: int,
    imatrix: ImportanceMatrix | None,
) -> Output:
    if request.kind != "gguf" and not (request.directory and request.directory.is_packed):
        imatrix = None
    if request.kind == "gguf" and given.spec is None and kind_of(source) == "gguf":
        given = SourceOptions()  # from GGUF to GGUF all metadata are kept
    try:
        return lay_out_all(source, [request], given, split, imatrix)[1][0]
    except CheckpointError:
        if given.tokenizer is not None or given.no_tokenizer:
            raise
        # The source has no tokenizer, the artifact one of elsewhere: it is kept.
        without = SourceOptions(given.spec, None, True)
        return lay_out_all(source, [request], without, split, imatrix)[1][0]


def _has_no_tokenizer(structure: Structure) -> bool:
    if structure.metadata is None:
        return structure.path.is_dir() and not (structure.path / "tokenizer.model").is_file()
    model = structure.metadata.get("tokenizer.ggml.model")
    return model is None or (isinstance(model, str) and model == "no_vocab")


def _request(structure: Structure, held: Sequence[Held]) -> Request:
    path = structure.path
    if structure.kind == "gguf":
        match = gguf.SPLIT_NAME.fullmatch(path.name)
        if match is not None:
            path = path.with_name(f"{match[1]}.gguf")
        return Request(path, "gguf", recipe_of(structure))
    kind = _directory_type(held)
    name = name_in(path.name)
    named = None if name is None else directory_type(name)
    if named is not None and named.layout == kind.layout:
        kind = named
    return Request(path, "safetensors", RECIPES[kind.base.name], directory=kind)


def recipe_of(structure: Structure) -> Recipe:
    """The recipe that a GGUF file's name says, or else its general.file_type."""
    stem = gguf.SPLIT_NAME.sub(r"\1", structure.path.name).removesuffix(".gguf")
    named = recipe_named(re.split(r"[-.]", stem)[-1])
    if named is not None:
        return named
    assert structure.metadata is not None
    file_type = gguf.whole_number(structure.metadata, FILE_TYPE_KEY)
    return next((r for r in RECIPES.values() if r.file_type == file_type), RECIPES["F16"])


def _directory_type(held: Sequence[Held]) -> DirectoryType:
    """The type that most matrices of a directory have, and that of its plain floats."""
    attention: Counter[WeightType] = Counter()
    experts: Counter[WeightType] = Counter()
    floats: Counter[WeightType] = Counter()
    layouts: Counter[str] = Counter()
    for tensor in held:
        kind = weight_type(tensor.array)
        place = tensor.place
        if kind is None or place is None or place.role.stays_float32:
            continue
        if tensor.array.packed is not None:
            layout = tensor.array.packed.matrix.layout
            known = ("gptq", "gptq_v2", "awq", "weightcast")
            layouts[layout if layout in known else COMPRESSED_TENSORS] += 1
        if place.layer is None:
            floats[kind] += 1
        else:
            (experts if place.role.is_experts else attention)[kind] += 1
    base = next((k for k, _ in floats.most_common() if isinstance(k, QuantType)), TYPES["BF16"])
    layout = layouts.most_common(1)[0][0] if layouts else PLAIN
    chosen = [c.most_common(1)[0][0] if c else base for c in (attention, experts)]
    return DirectoryType("", layout, chosen[0], chosen[1], base)


def weight_type(array: StoredArray) -> WeightType | None:
    """The type of a stored tensor; None for whole numbers and float64."""
    if array.packed is not None:
        return array.packed.matrix.type
    return TYPES.get(array.dtype)


def _overrides(output: Output, held: Sequence[Held]) -> Iterator[Override]:
    """Rules that give tensors the types that they have, where the conversion's are others."""
    planned = {tensor.tensor.name: tensor for tensor in output.tensors}
    names: dict[WeightType, list[str]] = {}
    for tensor in held:
        found = planned.get(planned_name(tensor, output))
        kind = weight_type(tensor.array)
        if found is None or kind is None or tensor.name in HEADS.values():
            continue
        made: WeightType = found.type
        if found.packed is not None:
            packing = found.packed.packing
            made = getattr(packing, "type", None) or packing.layout.type  # type: ignore[attr-defined]
        if not _is_same(made, kind, tensor.array.shape[-1]):
            names.setdefault(kind, []).append(found.tensor.name)
    for kind, tensors in names.items():
        pattern = "^(?:" + "|".join(map(re.escape, tensors)) + ")$"
        yield Override(re.compile(pattern), kind, "the artifact")


def _is_same(a: WeightType, b: WeightType, n_in: int) -> bool:
    """Whether two types are stored alike: groups of a whole row are a scale a row."""
    if not isinstance(a, GroupType) or not isinstance(b, GroupType):
        return a == b
    sizes = {kind.group_size or n_in for kind in (a, b)}
    return len(sizes) == 1 and replace(a, group_size=b.group_size) == b


def planned_name(held: Held, output: Output) -> str:
    """The name that a conversion gives a tensor: llama.cpp has renamed one."""
    return held.gguf if output.request.kind == "gguf" else held.name


def _split_bytes(structure: Structure) -> int:
    """A limit of files that cuts them as they are; 0 for one file."""
    if len(structure.files) < 2:
        return 0
    filled: Counter[Path] = Counter()
    stems: dict[Path, set[str]] = {}
    for name, array in structure.tensors.items():
        filled[array.path] += array.nbytes
        stem = name if structure.kind == "gguf" else name.rsplit(".", 1)[0]
        stems.setdefault(array.path, set()).add(stem)
    return max((filled[path] for path, found in stems.items() if len(found) > 1), default=1)
