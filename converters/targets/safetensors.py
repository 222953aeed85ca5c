"""Safetensors directories laid out: plain floats, or weights packed for serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from weightcast.converters.families.grok1 import hugging_face as grok1_hf
from weightcast.converters.families.grok1.modules import Module
from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.families.grok1.tensors import EMBEDDING, Place
from weightcast.converters.families.grok1.types import choose, gguf_tensors
from weightcast.converters.graph.tensor import Tensor, TensorGraph, quantized, take
from weightcast.converters.graph.view import matrices
from weightcast.converters.recipes.importance import Weighing, weigh_named
from weightcast.converters.recipes.weight_types import (
    WEIGHTCAST,
    DirectoryType,
    WeightType,
    carries_codes,
    directory_type,
    is_plain,
    type_label,
)
from weightcast.converters.targets.packing import Fp4Packing, Fp8Packing, GroupPacking, Packing
from weightcast.converters.targets.quantization_config import quantization_config, reader_notes
from weightcast.converters.targets.rules import HEAD, Chosen, choose_types, rule_notes
from weightcast.converters.targets.target import (
    Output,
    Packed,
    PlannedFile,
    PlannedTensor,
    Request,
    type_of,
)
from weightcast.errors import LayoutError
from weightcast.formats import safetensors
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import Fp8Type
from weightcast.formats.packed.weightcast import Described, header_metadata
from weightcast.formats.tokenizer.sentencepiece import Vocabulary
from weightcast.quant.groups import GroupType
from weightcast.quant.types import QuantType

_HEAD_GGUF: Final = "output.weight"
DEFAULT_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor of the directory and the entries of its file that it becomes."""

    tensor: Tensor
    type: QuantType
    place: Place
    expert: int | None
    packing: Packing | None = None

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
    def stem(self) -> str:
        return self.tensor.name.removesuffix(".weight")

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


def lay_out_directory(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
    imatrix: ImportanceMatrix | None = None,
) -> Output:
    """Lay out a directory; `split_bytes` limits the tensor data of a file (0: 5 GB)."""
    kind = request.directory or directory_type(request.recipe.name)
    assert kind is not None
    plain = [(place, type_of(d)) for place, d in choose(graph, request.recipe)]
    chosen = choose_types(plain, graph.spec.num_experts, kind, request.overrides)
    notes = rule_notes(chosen)
    types = _module_types(chosen)
    items = list(_items(graph, kind, chosen))
    weighing = Weighing()
    if kind.is_packed and imatrix is not None:
        searched = {i.place.gguf for i in items if _is_searched(i)}
        weighing = weigh_named(imatrix, gguf_tensors(graph), searched)
        notes += tuple(weighing.notes())
    shards = _shards(items, split_bytes or DEFAULT_SHARD_BYTES)
    files, tensors, weight_map = [], [], {}
    constants: list[tuple[int, int, bytes]] = []
    for n, shard in enumerate(shards):
        entries = [entry for item in shard for entry in item.entries]
        layout = safetensors.lay_out(entries, {"format": "pt", **_metadata(shard, kind)})
        name = safetensors.shard_name(n, len(shards))
        files.append(PlannedFile(request.path / name, layout.header, layout.size))
        weight_map.update({entry.name: name for entry in entries})
        for item in shard:
            planned = _planned(item, n, layout.offsets, weighing)
            tensors.append(planned)
            constants += _constants(item, planned)
    companions = grok1_hf.companion_files(
        graph.spec, request.recipe.name, vocabulary, quantization_config(kind.layout, types)
    )
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        companions[safetensors.INDEX_NAME] = safetensors.index_file(weight_map, total)
    notes += (*reader_notes(kind.layout, types), *_notes(graph.spec, companions))
    outputs = (request, tuple(files), tuple(tensors), companions, notes, weighing)
    return Output(*outputs, tuple(constants))


def _notes(spec: Grok1Spec, companions: dict[str, bytes]) -> Iterator[str]:
    if not grok1_hf.has_standard_attention_scale(spec):
        yield (
            "vLLM and SGLang will be wrong: they scale attention by key_size ** -0.5, this model "
            f"by {spec.attn_output_multiplier}"
        )
    if "tokenizer.model" not in companions:
        yield "no tokenizer.model: give one with --tokenizer FILE"


def _metadata(shard: list[_Item], kind: DirectoryType) -> dict[str, str]:
    """What the header of one file says about packed matrices: our own layout describes itself."""
    if kind.layout != WEIGHTCAST:
        return {}
    described = {
        item.stem: Described(item.packing.type, *item.tensor.shape)
        for item in shard
        if isinstance(item.packing, GroupPacking)
    }
    return header_metadata(described)


def _planned(item: _Item, file: int, offsets: dict[str, int], weighing: Weighing) -> PlannedTensor:
    """A tensor with its place, or the places of its parts."""
    packed = None
    if item.packing is not None:
        places = {e.name.removeprefix(item.stem): (file, offsets[e.name]) for e in item.entries}
        packed = Packed(item.packing, places)
    importance = None
    if _is_searched(item) and item.place.gguf in weighing.rows:
        rows = weighing.rows[item.place.gguf]
        importance = rows if item.expert is None else rows[item.expert : item.expert + 1]
    first = min(offsets[entry.name] for entry in item.entries)
    gguf = _HEAD_GGUF if item.tensor.name == HEAD else item.place.gguf
    return PlannedTensor(item.tensor, item.type, file, first, importance, packed, gguf)


def _constants(item: _Item, planned: PlannedTensor) -> Iterator[tuple[int, int, bytes]]:
    if planned.packed is not None:
        n_out, n_in = item.tensor.shape
        for suffix, data in planned.packed.packing.constants(n_out, n_in).items():
            yield (*planned.packed.places[suffix], data)


def _is_searched(item: _Item) -> bool:
    """Whether scales are fitted to the weights, so that an importance makes a difference."""
    return isinstance(item.packing, GroupPacking) and not item.packing.is_carried


def _items(
    graph: TensorGraph[Grok1Spec], kind: DirectoryType, chosen: list[Chosen]
) -> Iterator[_Item]:
    """The tensors of a directory, layers in order: one for each expert, the tied head twice.

    model.norm.weight comes last, because llama.cpp's converter drops the experts of a layer after
    which no other tensor follows.
    """
    for choice in chosen:
        tensor = graph[choice.place.name]
        source = tensor if choice.expert is None else take(tensor, choice.expert)
        yield _item(choice, source, kind)
        if choice.place.name == EMBEDDING:
            head = quantized(HEAD, tensor, choice.plain.name)
            yield _Item(head, choice.plain, choice.place, None)


def _item(choice: Chosen, source: Tensor, kind: DirectoryType) -> _Item:
    name, plain, place = choice.name, choice.plain, choice.place
    if is_plain(choice.type):
        return _Item(quantized(name, source, plain.name), plain, place, choice.expert)
    packing = _packing(choice, source, kind)
    made = quantized(name, source, packing.label)
    return _Item(made, plain, place, choice.expert, packing)


def _module_types(chosen: Iterable[Chosen]) -> dict[Module, WeightType]:
    """The types of the layers' matrices, by modules."""
    return {
        Module(c.place.layer, c.expert, c.name.split(".")[-2]): c.type
        for c in chosen
        if c.place.layer is not None and not c.place.role.stays_float32
    }


def _packing(choice: Chosen, source: Tensor, kind: DirectoryType) -> Packing:
    """How a matrix is packed. Raises LayoutError if it cannot be stored so."""
    try:
        packing = _packing_of(source, choice.type, kind)
        packing.parts(*source.shape)
    except LayoutError as problem:
        asked = "" if choice.override is None else f"{choice.override}: "
        raise LayoutError(f"{asked}{choice.name}: {problem}") from None
    return packing


def _packing_of(source: Tensor, weight_type: WeightType, kind: DirectoryType) -> Packing:
    label = type_label(weight_type)
    if isinstance(weight_type, QuantType):
        return Fp4Packing(FP4_LAYOUTS[weight_type.name])
    if isinstance(weight_type, Fp8Type):
        return Fp8Packing(label, weight_type)
    problem = _why_not_carried(source, weight_type)
    is_carried = carries_codes(weight_type) and matrices(source)[0].scales is not None
    if is_carried and problem and not kind.may_change:
        raise LayoutError(problem)
    is_carried = is_carried and problem is None
    return GroupPacking(label, LAYOUTS[kind.layout], weight_type, is_carried, kind.may_change)


def _why_not_carried(source: Tensor, group_type: GroupType) -> str | None:
    """Say what is wrong if groups do not lie within the groups of the source's scales."""
    scales = matrices(source)[0].scales
    if scales is None:
        return None
    of_source = source.shape[-1] // scales.shape[1]
    size = group_type.group_size or source.shape[-1]
    if of_source % size == 0:
        return None
    fitting = next((n for n in (256, 128, 64, 32) if of_source % n == 0), None)
    exact = "no smaller groups keep it exact"
    if fitting is not None:
        exact = f"groups of {fitting} keep it exact (int8-g{fitting}-gptq, for example)"
    return (
        f"its scales cover {of_source} values each, which are not whole groups of {size}: {exact}; "
        "--allow-requantize quantizes it anew"
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
