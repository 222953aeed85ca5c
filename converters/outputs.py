"""Outputs laid out: every file's header, size and offsets, known before a weight is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters import grok1_gguf, grok1_hf
from weightcast.converters.graph import Tensor, TensorGraph, quantized, take
from weightcast.converters.grok1 import EMBEDDING, Place
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.importance import Weighing, provenance, weigh
from weightcast.converters.recipe import choose, gguf_tensors
from weightcast.converters.recipes import Decision, Override, Recipe
from weightcast.converters.words import count
from weightcast.formats import gguf, safetensors
from weightcast.formats.imatrix import ImportanceMatrix
from weightcast.formats.layout import Layout
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.types import TYPES, QuantType

DEFAULT_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One output asked for: where, "gguf" or "safetensors", by which recipe."""

    path: Path
    kind: str
    recipe: Recipe
    overrides: tuple[Override, ...] = ()
    pure: bool = False


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: final path, first bytes, size in bytes."""

    path: Path
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of an output and its place: index of the file, byte offset in it.

    `importance`, float32 [matrices, in], weighs the errors of its columns.
    """

    tensor: Tensor
    type: QuantType
    file: int
    offset: int
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

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
    weighing: Weighing = field(default_factory=Weighing)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files) + sum(map(len, self.companions.values()))

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data alone, without headers and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight that is stored; 0 for a file of metadata alone."""
        weights = sum(planned.tensor.size for planned in self.tensors)
        return 8 * self.data_bytes / weights if weights else 0.0

    def describe(self) -> dict[str, Any]:
        return {
            "path": str(self.request.path),
            "kind": self.request.kind,
            "type": self.request.recipe.name,
            "bytes": self.size,
            "tensor_bytes": self.data_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "tensors": len(self.tensors),
            "types": dict(sorted(Counter(t.type.name for t in self.tensors).items())),
            "files": [{"name": file.path.name, "bytes": file.size} for file in self.files],
            "importance": self.weighing.describe(),
            "notes": list(self.notes),
        }


def lay_out(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
    imatrix: ImportanceMatrix | None = None,
) -> Output:
    """Lay out one output; `split_bytes` limits the tensor data of a file (0: GGUF in one file)."""
    if request.kind == "gguf":
        output = _gguf_output(graph, request, vocabulary, split_bytes, imatrix)
    else:
        output = _safetensors_output(graph, request, vocabulary, split_bytes)
    return with_split_note(output, split_bytes)


def with_split_note(output: Output, split_bytes: int) -> Output:
    """Say so if tensors are larger than the limit of a file."""
    larger = [tensor for tensor in output.tensors if 0 < split_bytes < tensor.nbytes]
    if larger:
        note = f"tensors larger than --split have a file of their own: {len(larger)}"
        output = replace(output, notes=(*output.notes, note))
    return output


Chosen = list[tuple[Place, Decision]]


def choice_notes(chosen: Iterable[tuple[str, Decision]]) -> tuple[str, ...]:
    """What became another type than the recipe's, and why."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, decision in chosen:
        if decision.type is None:
            continue
        if decision.override:
            found[f"stored as {decision.type.name}, as {decision.override} asks"].append(name)
        elif decision.fallback:
            found[f"stored as {decision.type.name}, because {decision.fallback}"].append(name)
    return tuple(
        f"{what}: {count(len(names), 'tensor')}, for example {names[0]}"
        for what, names in found.items()
    )


def _type(decision: Decision) -> QuantType:
    assert decision.type is not None
    return decision.type


def _gguf_output(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
    imatrix: ImportanceMatrix | None,
) -> Output:
    recipe = request.recipe
    chosen = choose(
        graph,
        recipe,
        request.overrides,
        pure=request.pure,
        has_importance=imatrix is not None,
    )
    weighing = weigh(imatrix, gguf_tensors(graph), [decision for _, decision in chosen])
    entries = [gguf.Entry(p.gguf, _type(d), graph[p.name].shape) for p, d in chosen]
    if sum(entry.nbytes for entry in entries) <= split_bytes:
        split_bytes = 0  # one file will do
    writer = grok1_gguf.metadata_writer(graph, vocabulary, recipe.file_type, split_bytes)
    if weighing.matrix is not None:
        for key, value in provenance(weighing.matrix).items():
            if isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_uint32(key, value)
    layouts = gguf.lay_out(writer, entries)
    files, found = place_files(request.path, layouts)
    tensors = tuple(
        PlannedTensor(
            quantized(place.gguf, graph[place.name], _type(decision).name),
            _type(decision),
            *found[place.gguf],
            weighing.rows.get(place.gguf),
        )
        for place, decision in chosen
    )
    notes = (*choice_notes((p.gguf, d) for p, d in chosen), *weighing.notes())
    spec = graph.spec
    if spec.num_q_heads * spec.key_size != spec.emb_size:
        notes += (
            f"llama.cpp cannot run this model: its heads make {spec.num_q_heads * spec.key_size} "
            f"values, not emb_size {spec.emb_size}",
        )
    return Output(request, files, tensors, {}, notes, weighing)


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
    chosen = choose(graph, request.recipe)
    notes = choice_notes((p.name, d) for p, d in chosen)
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
    companions = grok1_hf.companion_files(graph.spec, request.recipe.name, vocabulary)
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


def _hugging_face_tensors(graph: TensorGraph[Grok1Spec], chosen: Chosen) -> Iterator[Tensor]:
    """The tensors of a directory, layers in order: one for each expert, the tied head twice.

    model.norm.weight comes last, because llama.cpp's converter drops the experts of a layer after
    which no other tensor follows.
    """
    for place, decision in chosen:
        tensor, type_name = graph[place.name], _type(decision).name
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
