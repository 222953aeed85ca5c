"""Outputs laid out: every file's header, size and offsets, known before a weight is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters import grok1_gguf, grok1_hf
from weightcast.converters.graph import Tensor, TensorGraph, quantized, take
from weightcast.converters.grok1 import EMBEDDING, Place, places
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.recipe import Choice, choose
from weightcast.formats import gguf, safetensors
from weightcast.formats.layout import Layout
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.types import TYPES, QuantType

DEFAULT_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One output asked for: where, "gguf" or "safetensors", in which type."""

    path: Path
    kind: str
    type: QuantType


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: final path, first bytes, size in bytes."""

    path: Path
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of an output and its place: index of the file, byte offset in it."""

    tensor: Tensor
    type: QuantType
    file: int
    offset: int

    @property
    def nbytes(self) -> int:
        rows = self.tensor.size // self.tensor.shape[-1]
        return rows * self.type.row_bytes(self.tensor.shape[-1])


@dataclass(frozen=True)
class Output:
    """One output: its large files, the small files of a directory, its tensors."""

    request: Request
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    companions: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files) + sum(map(len, self.companions.values()))

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data alone, without headers and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def describe(self) -> dict[str, Any]:
        return {
            "path": str(self.request.path),
            "kind": self.request.kind,
            "type": self.request.type.name,
            "bytes": self.size,
            "tensor_bytes": self.data_bytes,
            "tensors": len(self.tensors),
            "types": dict(sorted(Counter(t.type.name for t in self.tensors).items())),
            "files": [{"name": file.path.name, "bytes": file.size} for file in self.files],
            "notes": list(self.notes),
        }


def lay_out(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
) -> Output:
    """Lay out one output; `split_bytes` limits the tensor data of a file (0: GGUF in one file)."""
    kind = _gguf_output if request.kind == "gguf" else _safetensors_output
    return with_split_note(kind(graph, request, vocabulary, split_bytes), split_bytes)


def with_split_note(output: Output, split_bytes: int) -> Output:
    """Say so if tensors are larger than the limit of a file."""
    larger = [tensor for tensor in output.tensors if 0 < split_bytes < tensor.nbytes]
    if larger:
        note = f"tensors larger than --split have a file of their own: {len(larger)}"
        output = replace(output, notes=(*output.notes, note))
    return output


def _choices(
    graph: TensorGraph[Grok1Spec], base: QuantType
) -> tuple[list[tuple[Place, Choice]], tuple[str, ...]]:
    chosen = [(p, choose(p, graph[p.name], base)) for p in places(graph.spec.num_layers)]
    fallbacks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place, choice in chosen:
        if choice.reason:
            fallbacks[choice.type.name, choice.reason].append(place.name)
    notes = tuple(
        f"stored as {name}, because {reason}: {len(names)} tensors, for example {names[0]}"
        for (name, reason), names in fallbacks.items()
    )
    return chosen, notes


def _gguf_output(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
) -> Output:
    chosen, notes = _choices(graph, request.type)
    entries = [gguf.Entry(p.gguf, c.type, graph[p.name].shape) for p, c in chosen]
    if sum(entry.nbytes for entry in entries) <= split_bytes:
        split_bytes = 0  # one file will do
    writer = grok1_gguf.metadata_writer(graph, vocabulary, request.type, split_bytes)
    layouts = gguf.lay_out(writer, entries)
    files, found = place_files(request.path, layouts)
    tensors = tuple(
        PlannedTensor(quantized(p.gguf, graph[p.name], c.type.name), c.type, *found[p.gguf])
        for p, c in chosen
    )
    spec = graph.spec
    if spec.num_q_heads * spec.key_size != spec.emb_size:
        notes += (
            f"llama.cpp cannot run this model: its heads make {spec.num_q_heads * spec.key_size} "
            f"values, not emb_size {spec.emb_size}",
        )
    return Output(request, files, tensors, {}, notes)


def place_files(
    path: Path, layouts: list[Layout]
) -> tuple[tuple[PlannedFile, ...], dict[str, tuple[int, int]]]:
    """Name the files of a GGUF output; tell the file (its index) and offset of each tensor."""
    stem = path.name.removesuffix(".gguf")
    names = [path.name]
    if len(layouts) > 1:
        names = [gguf.split_name(stem, n, len(layouts)) for n in range(len(layouts))]
    files = tuple(
        PlannedFile(path.with_name(name), layout.header, layout.size)
        for name, layout in zip(names, layouts, strict=True)
    )
    found = {
        name: (n, offset)
        for n, layout in enumerate(layouts)
        for name, offset in layout.offsets.items()
    }
    return files, found


def _safetensors_output(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
) -> Output:
    chosen, notes = _choices(graph, request.type)
    shards = _shards(_hugging_face_tensors(graph, chosen), split_bytes or DEFAULT_SHARD_BYTES)
    files, tensors, weight_map = [], [], {}
    for n, shard in enumerate(shards):
        entries = [safetensors.Entry(t.name, t.dtype, t.shape) for t in shard]
        layout = safetensors.lay_out(entries, {"format": "pt"})
        name = safetensors.shard_name(n, len(shards))
        files.append(PlannedFile(request.path / name, layout.header, layout.size))
        for tensor in shard:
            weight_map[tensor.name] = name
            offset = layout.offsets[tensor.name]
            tensors.append(PlannedTensor(tensor, TYPES[tensor.dtype], n, offset))
    companions = grok1_hf.companion_files(graph.spec, request.type.name, vocabulary)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        companions[safetensors.INDEX_NAME] = safetensors.index_file(weight_map, total)
    if not grok1_hf.has_standard_attention_scale(graph.spec):
        notes += (
            "vLLM and SGLang will be wrong: they scale attention by key_size ** -0.5, this model "
            f"by {graph.spec.attn_output_multiplier}",
        )
    if "tokenizer.model" not in companions:
        notes += ("no tokenizer.model: give one with --tokenizer FILE",)
    return Output(request, tuple(files), tuple(tensors), companions, notes)


def _hugging_face_tensors(
    graph: TensorGraph[Grok1Spec], chosen: list[tuple[Place, Choice]]
) -> Iterator[Tensor]:
    """The tensors of a directory, layers in order: one for each expert, the tied head twice.

    model.norm.weight comes last, because llama.cpp's converter drops the experts of a layer after
    which no other tensor follows.
    """
    for place, choice in chosen:
        tensor, type_name = graph[place.name], choice.type.name
        if place.role.is_experts:
            for n in range(tensor.shape[0]):
                yield quantized(place.hugging_face(n), take(tensor, n), type_name)
        else:
            yield quantized(place.hugging_face(), tensor, type_name)
        if place.name == EMBEDDING:
            # SGLang requires the tied head under its own name.
            yield quantized("lm_head.weight", tensor, type_name)


def _shards(tensors: Iterable[Tensor], limit_bytes: int) -> list[list[Tensor]]:
    """Fill files up to a limit, in order; a larger tensor gets a file of its own."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = safetensors.Entry(tensor.name, tensor.dtype, tensor.shape).nbytes
        if shards[-1] and filled + nbytes > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes
    return shards
