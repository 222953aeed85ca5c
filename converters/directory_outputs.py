"""Safetensors directories laid out: plain floats, or weights packed for serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from weightcast.converters import grok1_hf
from weightcast.converters.directory_types import (
    PLAIN,
    WEIGHTCAST,
    DirectoryType,
    WeightType,
    directory_type,
    type_label,
)
from weightcast.converters.graph import Tensor, TensorGraph, matrices, quantized, take
from weightcast.converters.grok1 import EMBEDDING, Place
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.importance import Weighing, weigh_packed
from weightcast.converters.outputs import (
    Output,
    Packed,
    PlannedFile,
    PlannedTensor,
    Request,
    choice_notes,
    type_of,
)
from weightcast.converters.packing import Fp4Packing, Fp8Packing, GroupPacking, Packing
from weightcast.converters.recipe import choose, gguf_tensors
from weightcast.converters.recipes import Decision
from weightcast.formats import safetensors
from weightcast.formats.imatrix import ImportanceMatrix
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed_fp4 import FP4_LAYOUTS
from weightcast.formats.packed_parts import Fp8Type, Scheme
from weightcast.formats.packed_weightcast import Described, header_metadata
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.errors import LayoutError
from weightcast.quant.groups import GroupType
from weightcast.quant.types import QuantType

DEFAULT_SHARD_BYTES: Final = 5_000_000_000
_ATTENTION: Final = "self_attn."


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
    chosen = choose(graph, request.recipe)
    notes = choice_notes((p.name, d) for p, d in chosen)
    items = list(_items(graph, kind, chosen))
    weighing = Weighing()
    if kind.is_packed and imatrix is not None:
        searched = {i.place.gguf for i in items if _is_searched(i)}
        weighing = weigh_packed(imatrix, gguf_tensors(graph), searched)
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
        graph.spec, request.recipe.name, vocabulary, quantization_config(kind)
    )
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        companions[safetensors.INDEX_NAME] = safetensors.index_file(weight_map, total)
    notes += tuple(_notes(graph.spec, companions))
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
    return PlannedTensor(item.tensor, item.type, file, first, importance, packed)


def _constants(item: _Item, planned: PlannedTensor) -> Iterator[tuple[int, int, bytes]]:
    if planned.packed is not None:
        n_out, n_in = item.tensor.shape
        for suffix, data in planned.packed.packing.constants(n_out, n_in).items():
            yield (*planned.packed.places[suffix], data)


def _is_searched(item: _Item) -> bool:
    """Whether scales are fitted to the weights, so that an importance makes a difference."""
    return isinstance(item.packing, GroupPacking) and not item.packing.is_carried


def _items(
    graph: TensorGraph[Grok1Spec], kind: DirectoryType, chosen: list[tuple[Place, Decision]]
) -> Iterator[_Item]:
    """The tensors of a directory, layers in order: one for each expert, the tied head twice.

    model.norm.weight comes last, because llama.cpp's converter drops the experts of a layer after
    which no other tensor follows.
    """
    for place, decision in chosen:
        tensor, plain = graph[place.name], type_of(decision)
        if place.role.is_experts:
            for n in range(tensor.shape[0]):
                yield _item(place, place.hugging_face(n), take(tensor, n), plain, kind, n)
        else:
            yield _item(place, place.hugging_face(), tensor, plain, kind)
        if place.name == EMBEDDING:
            # SGLang requires the tied head under its own name.
            head = quantized("lm_head.weight", tensor, plain.name)
            yield _Item(head, plain, place, None)


def _item(
    place: Place,
    name: str,
    source: Tensor,
    plain: QuantType,
    kind: DirectoryType,
    expert: int | None = None,
) -> _Item:
    weight_type: WeightType = plain
    if place.role.is_experts:
        weight_type = kind.experts if kind.is_packed else plain
    elif _ATTENTION in name and kind.is_packed:
        weight_type = kind.attention
    if isinstance(weight_type, QuantType) and weight_type.block_elements == 1:
        return _Item(quantized(name, source, weight_type.name), weight_type, place, expert)
    packing = _packing(name, source, weight_type, kind)
    return _Item(quantized(name, source, packing.label), plain, place, expert, packing)


def _packing(name: str, source: Tensor, weight_type: WeightType, kind: DirectoryType) -> Packing:
    """How a matrix is packed. Raises LayoutError if it cannot be stored so."""
    packing = _packing_of(name, source, weight_type, kind)
    try:
        packing.parts(*source.shape)
    except LayoutError as problem:
        raise LayoutError(f"{name}: {problem}") from None
    return packing


def _packing_of(name: str, source: Tensor, weight_type: WeightType, kind: DirectoryType) -> Packing:
    label = type_label(weight_type)
    if isinstance(weight_type, QuantType):
        return Fp4Packing(FP4_LAYOUTS[weight_type.name])
    if isinstance(weight_type, Fp8Type):
        return Fp8Packing(label, weight_type)
    problem = _why_not_carried(source, weight_type)
    is_carried = kind.is_carried and matrices(source)[0].scales is not None
    if is_carried and problem and not kind.may_change:
        raise LayoutError(f"{name}: {problem}")
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
    return (
        f"its scales cover {of_source} values each, which are not whole groups of {size}: smaller "
        "groups keep it exact (int8-gptq has 128, int8-g32-gptq 32); --allow-requantize "
        "quantizes it anew"
    )


def quantization_config(kind: DirectoryType) -> dict[str, Any] | None:
    """What config.json says about packed weights; nothing for plain floats.

    Patterns match modules by their names in transformers and in vLLM, which differ before `attn`.
    """
    if kind.layout == PLAIN:
        return None
    ignore = ["lm_head", "re:.*gate$"]
    block_modules: tuple[str, ...] = ()
    schemes = [Scheme(("Linear",), kind.experts)]
    if kind.attention == kind.experts:
        block_modules = ("q_proj", "k_proj", "v_proj", "o_proj")
    elif kind.attention == kind.base:
        ignore.append("re:.*attn.*")
    else:
        by_name = {"re:.*attn.*": kind.attention, "re:.*experts.*": kind.experts}
        schemes = [Scheme((pattern,), type) for pattern, type in by_name.items()]
    return LAYOUTS[kind.layout].quantization_config(schemes, ignore, block_modules)


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
