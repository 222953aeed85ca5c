"""The plan: every output file's header, size and offsets, known before a weight is read.

A work item is one slab of one stored matrix with everything that is made of it, so one read feeds
all outputs. Items are independent and write to places of their own.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters import grok1_gguf, grok1_hf
from weightcast.converters.graph import Tensor, TensorGraph, View, matrices, quantized, take
from weightcast.converters.grok1 import EMBEDDING, Place, places
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.recipe import Choice, choose
from weightcast.converters.slabs import rows_per_slab, slab_bytes
from weightcast.formats import gguf, safetensors
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.types import QuantType

# One expert of the release: read as a whole, so that shards are read front to back.
SLAB_BYTES: Final = 192 << 20
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


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the rows of one matrix go: output, file, byte offset of its first row."""

    output: int
    file: int
    offset: int
    type: QuantType
    tensor: str
    expert: int | None


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Rows [out0, out1) of a stored matrix and all that is made of them."""

    view: View
    out0: int
    out1: int
    destinations: tuple[Destination, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return slab_bytes(self.view, self.out1 - self.out0)


@dataclass(frozen=True)
class Plan:
    """All outputs and all work."""

    graph: TensorGraph[Grok1Spec]
    outputs: tuple[Output, ...]
    items: tuple[WorkItem, ...]

    @property
    def read_bytes(self) -> int:
        return sum(item.nbytes for item in self.items)

    @property
    def write_bytes(self) -> int:
        return sum(output.size for output in self.outputs)

    @property
    def slab_bytes(self) -> int:
        """The largest slab."""
        return max((item.nbytes for item in self.items), default=0)


def make_plan(
    graph: TensorGraph[Grok1Spec],
    requests: Sequence[Request],
    vocabulary: Vocabulary | None,
    split_bytes: int = 0,
    notes: Sequence[str] = (),
) -> Plan:
    """Lay out all outputs and cut the work into items in the order of the source files.

    `notes` are what the user should know of each output.
    """
    outputs = []
    for request in requests:
        lay_out = _gguf_output if request.kind == "gguf" else _safetensors_output
        output = lay_out(graph, request, vocabulary, split_bytes)
        outputs.append(replace(output, notes=(*notes, *output.notes)))
    by_view: dict[View, list[Destination]] = defaultdict(list)
    for number, output in enumerate(outputs):
        for planned in output.tensors:
            offset = planned.offset
            name, has_experts = planned.tensor.name, len(planned.tensor.shape) > 2
            for n, view in enumerate(matrices(planned.tensor)):
                expert = n if has_experts else None
                by_view[view].append(
                    Destination(number, planned.file, offset, planned.type, name, expert)
                )
                offset += view.shape[0] * planned.type.row_bytes(view.shape[1])
    items = []
    for view in sorted(by_view, key=lambda v: (v.array.path, v.array.offset, v.start)):
        rows = rows_per_slab(view, SLAB_BYTES)
        for out0 in range(0, view.shape[0], rows):
            out1 = min(out0 + rows, view.shape[0])
            items.append(WorkItem(view, out0, out1, tuple(by_view[view])))
    return Plan(graph, tuple(outputs), tuple(items))


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
    stem = request.path.name.removesuffix(".gguf")
    names = [request.path.name]
    if len(layouts) > 1:
        names = [gguf.split_name(stem, n, len(layouts)) for n in range(len(layouts))]
    files = tuple(
        PlannedFile(request.path.with_name(name), layout.header, layout.size)
        for name, layout in zip(names, layouts, strict=True)
    )
    found = {
        name: (n, offset)
        for n, layout in enumerate(layouts)
        for name, offset in layout.offsets.items()
    }
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


def _safetensors_output(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
) -> Output:
    chosen, notes = _choices(graph, request.type)
    wanted: list[tuple[str, Tensor, QuantType]] = []
    for place, choice in chosen:
        tensor = graph[place.name]
        if not place.role.is_experts:
            wanted.append((place.hugging_face(), tensor, choice.type))
        else:
            for expert in range(tensor.shape[0]):
                wanted.append((place.hugging_face(expert), take(tensor, expert), choice.type))
        if place.name == EMBEDDING:
            # SGLang requires the tied head under its own name.
            wanted.append(("lm_head.weight", tensor, choice.type))
    # In order of the layers; model.norm.weight comes last, because llama.cpp's converter drops the
    # experts of a layer after which no other tensor follows.
    shards: list[list[tuple[str, Tensor, QuantType]]] = [[]]
    filled = 0
    for name, tensor, quant_type in wanted:
        nbytes = safetensors.Entry(name, quant_type.name, tensor.shape).nbytes
        if shards[-1] and filled + nbytes > (split_bytes or DEFAULT_SHARD_BYTES):
            shards.append([])
            filled = 0
        shards[-1].append((name, tensor, quant_type))
        filled += nbytes
    files, tensors, weight_map = [], [], {}
    for n, shard in enumerate(shards):
        layout = safetensors.lay_out(
            [safetensors.Entry(name, t.name, tensor.shape) for name, tensor, t in shard],
            {"format": "pt"},
        )
        file_name = safetensors.SINGLE_NAME
        if len(shards) > 1:
            file_name = f"model-{n + 1:05}-of-{len(shards):05}.safetensors"
        files.append(PlannedFile(request.path / file_name, layout.header, layout.size))
        for name, tensor, quant_type in shard:
            weight_map[name] = file_name
            output = quantized(name, tensor, quant_type.name)
            tensors.append(PlannedTensor(output, quant_type, n, layout.offsets[name]))
    companions = grok1_hf.companion_files(graph.spec, request.type.name, vocabulary)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        companions[safetensors.INDEX_NAME] = (json.dumps(index, indent=2) + "\n").encode()
    if not grok1_hf.has_standard_attention_scale(graph.spec):
        notes += (
            "vLLM and SGLang will be wrong: they scale attention by key_size ** -0.5, this model "
            f"by {graph.spec.attn_output_multiplier}",
        )
    if "tokenizer.model" not in companions:
        notes += ("no tokenizer.model: give one with --tokenizer FILE",)
    return Output(request, tuple(files), tuple(tensors), companions, notes)
