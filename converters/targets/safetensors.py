"""Safetensors directories laid out: plain floats, or weights packed for serving."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters.families import FAMILIES
from weightcast.converters.graph import (
    Module,
    ModuleNames,
    Place,
    Quantize,
    Tensor,
    TensorGraph,
    is_stored_as,
    matrices,
    quantized,
    scaled,
    split_factor,
    take,
)
from weightcast.converters.recipes import (
    NO_END_TYPES,
    RECIPES,
    DirectoryType,
    ImportanceMap,
    Recipe,
    RecipeFile,
    directory_type,
    match_importance_named,
    recipe_named,
    type_names,
)
from weightcast.converters.targets.names import (
    TypeNames,
    disagreement,
    impossible,
    plain_path,
)
from weightcast.converters.targets.nvfp4_factors import factor_for, largest_magnitudes
from weightcast.converters.targets.packing import Packing
from weightcast.converters.targets.quantization_config import quantization_config, reader_notes
from weightcast.converters.targets.rules import CONVENTION, TypeChoice, choose_types, rule_notes
from weightcast.converters.targets.search_record import search_of, search_texts
from weightcast.converters.targets.target import (
    Codes,
    Context,
    Output,
    Packed,
    PlannedFile,
    PlannedTensor,
    Request,
    type_of,
)
from weightcast.converters.targets.types import choose, shapes_of
from weightcast.errors import LayoutError, RequestError
from weightcast.formats import safetensors
from weightcast.formats.array import StoredArray
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp4 import Fp4
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.search import Search
from weightcast.quant.types import NVFP4, QuantType, WeightType
from weightcast.text import count, option

DEFAULT_SHARD_BYTES: Final = 5_000_000_000

# The files of a directory that a conversion writes, and so may replace.
_OWN_NAMES: Final = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.model|tokenizer(_config)?\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor of the directory and the entries of its file that it becomes."""

    tensor: Tensor
    type: QuantType
    place: Place
    expert: int | None
    packing: Packing | None = None
    factor: float = 1.0  # beside what is packed

    @property
    def entries(self) -> list[safetensors.Entry]:
        if self.packing is None:
            return [safetensors.Entry(self.tensor.name, self.type.name, self.tensor.shape)]
        n_out, n_in = self.tensor.shape
        return [
            safetensors.Entry(self.stem + part.suffix, part.dtype, part.shape)
            for part in self.packing.parts(n_out, n_in)
        ]

    @property
    def has_global_scale(self) -> bool:
        """Tell whether its blocks are under a global scale other than 1."""
        layout = None if self.packing is None else self.packing.layout
        return isinstance(layout, Fp4) and layout.factor != 1

    @property
    def stem(self) -> str:
        return self.tensor.name.removesuffix(".weight")

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


class Safetensors:
    """Directories of safetensors, as transformers, vLLM and SGLang load them."""

    name: Final = "safetensors"
    form: Final = "safetensors"
    library: Final = "transformers"
    is_directory: Final = True
    keeps_metadata: Final = False
    needs_tokenizer: Final = None
    convention: Final = CONVENTION
    codes: Final = Codes("groups", "int8_groups", ", each proved on the bytes written", "")

    def parse(
        self,
        text: str,
        type_name: str | None,
        file: RecipeFile | None,
        default: Recipe | None = None,
    ) -> Request | None:
        """Tell from its name what a directory is to hold: NAME-TYPE. See Target."""
        if text.endswith(".safetensors"):
            raise RequestError(
                f"{text}: safetensors are written as a directory; name it like grok-1-bf16"
            )
        stem = Path(text).name
        found, has_imatrix = _NAMES.read(text, stem, type_name)
        if file is not None:
            base = file.directory
            if base is None:
                raise disagreement(text, "is a directory", file, ", a recipe of GGUF files")
            found = found or base
            if not found.is_same(base):
                raise disagreement(text, f"asks for {found.name}", file)
        if found is None:
            raise _NAMES.none_found(text, stem)
        if (problem := found.why_not(found.experts)) is not None:
            raise RequestError(f"{text}: {problem}")
        recipe, path = RECIPES[found.base.name], plain_path(text)
        return Request(path, self, recipe, directory=found, says_imatrix=has_imatrix)

    def check_rules(self, request: Request) -> Request:
        """Give plain floats a layout if rules ask for packed types. Raises RequestError."""
        assert request.directory is not None
        kind = request.directory.with_rules(override.type for override in request.overrides)
        for override in request.overrides:
            problem = kind.why_not(override.type)
            if problem is not None:
                raise impossible(request, override, problem)
        return replace(request, directory=kind, pure=False)

    def lay_out(self, graph: TensorGraph, request: Request, context: Context) -> Output:
        """Lay out a directory; files have 5 GB where no limit is given. Raises CheckpointError."""
        return _lay_out(graph, request, context)

    def owns(self, name: str) -> bool:
        """Say whether a name is one of those that directories have."""
        code = {file.name for family in FAMILIES.values() for file in family.code}
        return name in code or _OWN_NAMES.fullmatch(name) is not None

    def owns_part(self, output: Path, name: str) -> bool:
        """Say whether a name can be one of the directory's large files."""
        return self.owns(name)

    def read(self, path: Path) -> Mapping[str, StoredArray]:
        """Read the index of one file. Raises CheckpointError."""
        return safetensors.read_index(path)

    def remedy(self, tensor: str, other: QuantType, effect: str) -> str:
        """Say how a tensor gets another type."""
        return f"; write a directory in {other.name.lower()}"


SAFETENSORS: Final = Safetensors()


def _elsewhere(text: str, name: str) -> str | None:
    """Say what to do with a type that GGUF files alone can have."""
    recipe = recipe_named(name)
    if recipe is None or directory_type(name) is not None:
        return None
    if text == name:
        return (
            f"this is a type, not the name of an output; write NAME-{recipe.name}.gguf, or pass "
            f"{option('types', recipe.name)}"
        )
    written = text.rstrip("/")
    return f"{recipe.name} is a type of GGUF files; name the output {written}.gguf"


_NAMES: Final[TypeNames[DirectoryType]] = TypeNames(
    "a safetensors directory",
    "grok-1-bf16/",
    directory_type,
    DirectoryType.is_same,
    type_names,
    _elsewhere,
)


def _lay_out(graph: TensorGraph, request: Request, context: Context) -> Output:
    kind = request.directory or directory_type(request.recipe.name)
    assert kind is not None
    floats = replace(request, overrides=(), pure=False, ends=NO_END_TYPES)
    floating, _ = choose(graph, floats)
    plain = [(p, graph[p.name].shape[0], type_of(d)) for p, d in floating]
    chosen, unfollowed = choose_types(graph.family, plain, kind, request.overrides)
    notes = (*rule_notes(chosen), *unfollowed)
    types = _module_types(chosen)
    items = list(_items(graph, kind, chosen, request.search))
    if request.nvfp4_factors:
        items = list(_with_factors(items, graph.family.modules))
    search = search_of(request.search, (i.packing.type for i in items if i.packing is not None))
    importance = ImportanceMap()
    if kind.is_packed and context.imatrix is not None:
        searched = {i.place.name for i in items if _is_searched(i)}
        importance = match_importance_named(context.imatrix, shapes_of(graph), searched)
        notes += tuple(importance.notes())
    shards = _shards(items, context.split_bytes or DEFAULT_SHARD_BYTES)
    files, tensors, weight_map = [], [], {}
    constants: list[tuple[int, int, bytes]] = []
    for n, shard in enumerate(shards):
        entries = [entry for item in shard for entry in item.entries]
        told = {**_metadata(shard, kind), **search_texts(search)}
        layout = safetensors.lay_out(entries, {"format": "pt", **told})
        name = safetensors.shard_name(n, len(shards))
        files.append(PlannedFile(request.path / name, layout.header, layout.size))
        weight_map.update({entry.name: name for entry in entries})
        for item in shard:
            planned = _planned(item, n, layout.offsets, importance)
            tensors.append(planned)
            constants += _constants(item, planned)
    config = _quantization(graph, kind, types)
    assert graph.family.companions is not None
    companions = graph.family.companions(
        graph.spec, request.recipe.name, context.vocabulary, config
    )
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        companions[safetensors.INDEX_NAME] = safetensors.index_file(weight_map, total)
    if any(scaled_items := [item.has_global_scale for item in items]):
        notes += (f"NVFP4 under a global scale: {count(sum(scaled_items), 'tensor')}",)
    notes += (*_reader_notes(graph, kind, types), *graph.family.notes(graph, SAFETENSORS.name))
    if "tokenizer.model" not in companions:
        notes += ("no tokenizer.model: none was named, and none lies beside the source",)
    return Output(
        request, tuple(files), tuple(tensors), companions, notes, importance, tuple(constants)
    )


def _quantization(
    graph: TensorGraph, kind: DirectoryType, types: Mapping[Module, WeightType]
) -> dict[str, Any] | None:
    names = graph.family.modules
    if all(weight_type.is_plain for weight_type in types.values()):
        return None
    if names is None:
        raise LayoutError(f"packed weights of {graph.family.title}: its modules have no names yet")
    return quantization_config(kind.layout, types, names)


def _reader_notes(
    graph: TensorGraph, kind: DirectoryType, types: Mapping[Module, WeightType]
) -> Iterator[str]:
    names = graph.family.modules
    return iter(()) if names is None else reader_notes(kind.layout, types, names)


def _metadata(shard: list[_Item], kind: DirectoryType) -> dict[str, str]:
    """Make the header's metadata about packed matrices: our own layout describes itself."""
    if not kind.is_packed:
        return {}
    described = {
        item.stem: MatrixShape(item.packing.type, *item.tensor.shape)
        for item in shard
        if item.packing is not None
    }
    return LAYOUTS[kind.layout].header_metadata(described)


def _planned(
    item: _Item, file: int, offsets: dict[str, int], importance: ImportanceMap
) -> PlannedTensor:
    """A tensor with its place, or the places of its parts."""
    packed = None
    if item.packing is not None:
        places = {e.name.removeprefix(item.stem): (file, offsets[e.name]) for e in item.entries}
        packed = Packed(item.packing, places)
    rows = importance.rows.get(item.place.name) if _is_searched(item) else None
    if rows is not None and item.expert is not None:
        rows = rows[item.expert : item.expert + 1]
    first = min(offsets[entry.name] for entry in item.entries)
    return PlannedTensor(
        item.tensor,
        item.type,
        file,
        first,
        rows,
        packed,
        item.place.name,
        (item.factor,),
        expert=item.expert,
    )


def _constants(item: _Item, planned: PlannedTensor) -> Iterator[tuple[int, int, bytes]]:
    if planned.packed is not None:
        n_out, n_in = item.tensor.shape
        for suffix, data in planned.packed.packing.constants(n_out, n_in).items():
            yield (*planned.packed.places[suffix], data)


def _is_searched(item: _Item) -> bool:
    """Tell whether scales are fitted to the weights, so that an importance makes a difference."""
    return item.packing is not None and item.packing.is_searched


def _items(
    graph: TensorGraph, kind: DirectoryType, chosen: list[TypeChoice], search: Search
) -> Iterator[_Item]:
    """The tensors of a directory, layers in order: one for each expert, the tied head twice.

    model.norm.weight comes last, because llama.cpp's converter drops the experts of a layer after
    which no other tensor follows.
    """
    family = graph.family
    for choice in chosen:
        tensor = graph[choice.place.name]
        source = tensor if choice.expert is None else take(tensor, choice.expert)
        yield _item(choice, family.written(choice.place, CONVENTION, source), kind, search)
        tied = family.ties.get(choice.place.name)
        if tied is not None and tied.role.name in family.names[CONVENTION]:
            name = family.name_in(tied, CONVENTION)
            copy = family.written(tied, CONVENTION, tensor)
            yield _Item(quantized(name, copy, choice.plain.name), choice.plain, tied, None)


def _item(choice: TypeChoice, source: Tensor, kind: DirectoryType, search: Search) -> _Item:
    name, plain, place = choice.name, choice.plain, choice.place
    if choice.type.is_plain:
        return _Item(quantized(name, source, plain.name), plain, place, choice.expert)
    packing = _packing(choice, source, kind, search)
    blocks, factor = split_factor(source)
    under = _under(packing, blocks, factor)
    if under is None:
        blocks, factor = source, 1.0
    made = quantized(name, blocks, packing.label)
    return _Item(made, plain, place, choice.expert, under or packing, factor)


def _under(packing: Packing, blocks: Tensor, factor: float) -> Packing | None:
    """Pack blocks unchanged whose factor a global scale can stand for; None if it cannot."""
    if not isinstance(packing.layout, Fp4) or not is_stored_as(blocks, packing.label):
        return None
    layout = packing.layout.under(factor)
    return None if layout is None else replace(packing, layout=layout)


def _with_factors(items: Sequence[_Item], names: ModuleNames | None) -> Iterator[_Item]:
    """Give what is quantized to NVFP4 factors, one to all matrices that runtimes hold as one.

    Reads these matrices whole, in bounded memory. Raises CheckpointError.
    """
    sets: dict[Hashable, float] = defaultdict(float)
    of_items = [_fused(item, names) if _may_have_factor(item) else None for item in items]
    for item, fused in zip(items, of_items, strict=True):
        if fused is not None:
            sets[fused] = max(sets[fused], *largest_magnitudes(_source(item)))
    for item, fused in zip(items, of_items, strict=True):
        yield item if fused is None else _divided(item, factor_for(sets[fused]))


def _may_have_factor(item: _Item) -> bool:
    if item.packing is None or item.packing.type != NVFP4:
        return False
    return not is_stored_as(_source(item), NVFP4.name)


def _fused(item: _Item, names: ModuleNames | None) -> Hashable:
    """Name the set of matrices that an item's is one of."""
    layer = item.place.layer
    if names is None or layer is None:
        return item.stem
    return names.fused(Module(layer, item.expert, item.stem.split(".")[-1]))


def _source(item: _Item) -> Tensor:
    assert isinstance(item.tensor.origin, Quantize)
    return item.tensor.origin.source


def _divided(item: _Item, factor: float) -> _Item:
    """Put a factor beside a matrix, which is divided by it."""
    assert item.packing is not None
    assert isinstance(item.packing.layout, Fp4)
    layout = item.packing.layout.under(factor)
    assert layout is not None
    source = scaled(_source(item), [1 / factor])
    made = quantized(item.tensor.name, source, item.packing.label)
    return replace(item, tensor=made, packing=replace(item.packing, layout=layout), factor=factor)


def _module_types(chosen: Iterable[TypeChoice]) -> dict[Module, WeightType]:
    """The types of the layers' matrices, by modules."""
    return {
        Module(c.place.layer, c.expert, c.name.split(".")[-2]): c.type
        for c in chosen
        if c.place.layer is not None and c.place.role.storage == "packed"
    }


def _packing(choice: TypeChoice, source: Tensor, kind: DirectoryType, search: Search) -> Packing:
    """Choose the packing of a matrix. Raises LayoutError if it cannot be stored so."""
    try:
        packing = _packing_of(source, choice.type, kind, search)
        packing.parts(*source.shape)
    except LayoutError as problem:
        asked = "" if choice.override is None else f"{choice.override}: "
        raise LayoutError(f"{asked}{choice.name}: {problem}") from None
    return packing


def _packing_of(
    source: Tensor, weight_type: WeightType, kind: DirectoryType, search: Search
) -> Packing:
    layout = LAYOUTS[kind.layout].matrix_layout(weight_type)
    keeps_codes = weight_type.carries_codes and matrices(source)[0].group_size is not None
    if keeps_codes:
        problem = _why_not_carried(source, weight_type)
        if problem is not None and not kind.allow_requantize:
            raise LayoutError(problem)
        keeps_codes = problem is None
    return Packing(layout, weight_type, keeps_codes, kind.allow_requantize, search)


def _why_not_carried(source: Tensor, weight_type: WeightType) -> str | None:
    """Say what is wrong if groups do not lie within the groups of the source's scales."""
    of_source = matrices(source)[0].group_size
    assert of_source is not None
    size = weight_type.scale_span(source.shape[-1])
    if of_source % size == 0:
        return None
    fitting = next((n for n in (256, 128, 64, 32) if of_source % n == 0), None)
    exact = "no smaller groups keep it exact, f32 does"
    if fitting is not None:
        exact = f"groups of {fitting} keep it exact (int8-g{fitting}-gptq, for example)"
    return (
        f"its scales cover {of_source} values each, which are not whole groups of {size}: {exact}; "
        f"{option('allow_requantize', True)} quantizes it anew, with a loss"
    )


def _shards(items: Iterable[_Item], limit_bytes: int) -> list[list[_Item]]:
    """Fill files up to a limit, in order; a larger tensor gets a file of its own."""
    shards: list[list[_Item]] = [[]]
    filled = 0
    for item in items:
        if shards[-1] and filled + item.nbytes > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.nbytes
    return shards
