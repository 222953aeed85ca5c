"""Outputs laid out: every file's header, size and offsets, known before a weight is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightcast.converters import grok1_gguf
from weightcast.converters.directory_types import DirectoryType, WeightType, type_label
from weightcast.converters.graph import Tensor, TensorGraph, is_stored_as, quantized
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.importance import Weighing, provenance, weigh
from weightcast.converters.packing import Packing
from weightcast.converters.recipe import choose, gguf_tensors
from weightcast.converters.recipes import Decision, Override, Recipe
from weightcast.converters.words import count
from weightcast.formats import gguf
from weightcast.formats.imatrix import ImportanceMatrix
from weightcast.formats.layout import Layout
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.types import QuantType


@dataclass(frozen=True, slots=True)
class Request:
    """One output asked for: where, "gguf" or "safetensors", by which recipe.

    For a directory the recipe gives the type of the plain floats, `directory` that of the rest.
    `overrides` ask for types that the output can hold.
    """

    path: Path
    kind: str
    recipe: Recipe
    overrides: tuple[Override, ...] = ()
    pure: bool = False
    directory: DirectoryType | None = None

    @property
    def type_name(self) -> str:
        """What was asked for, as the name of the output says it."""
        packed = self.directory is not None and self.directory.is_packed
        return self.directory.name if self.directory and packed else self.recipe.name

    def that_may_change(self) -> Request:
        """The same, but int8 codes that cannot be carried unchanged are quantized anew."""
        if self.directory is None:
            return self
        return replace(self, directory=replace(self.directory, may_change=True))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: final path, first bytes, size in bytes."""

    path: Path
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """How a matrix is packed, and where each of its parts goes: (file, byte offset) by suffix."""

    packing: Packing
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of an output and its place: index of the file, byte offset in it.

    `importance`, float32 [matrices, in], weighs the errors of its columns. What is `packed` has
    several places, and `type` is that of the values that are packed.
    """

    tensor: Tensor
    type: QuantType
    file: int
    offset: int
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    packed: Packed | None = None
    gguf: str = ""  # its name there, if that is another one

    @property
    def gguf_name(self) -> str:
        return self.gguf or self.tensor.name

    @property
    def type_name(self) -> str:
        return self.type.name if self.packed is None else self.packed.packing.label

    @property
    def nbytes(self) -> int:
        if self.packed is not None:
            n_out, n_in = self.tensor.shape
            return sum(part.nbytes for part in self.packed.packing.parts(n_out, n_in))
        rows = self.tensor.size // self.tensor.shape[-1]
        return rows * self.type.row_bytes(self.tensor.shape[-1])


@dataclass(frozen=True)
class Output:
    """One output: its large files, the small files of a directory, its tensors.

    `constants` are bytes that do not depend on the weights: file, offset, content. `tokenizer` is
    the file that its tokens come from, if it is not the source's own.
    """

    request: Request
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    companions: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weighing: Weighing = field(default_factory=Weighing)
    constants: tuple[tuple[int, int, bytes], ...] = field(default=(), repr=False)
    tokenizer: Path | None = None

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
            "type": self.request.type_name,
            "bytes": self.size,
            "tensor_bytes": self.data_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "tensors": len(self.tensors),
            "types": dict(sorted(Counter(t.type_name for t in self.tensors).items())),
            "files": [{"name": file.path.name, "bytes": file.size} for file in self.files],
            "importance": self.weighing.describe(),
            "notes": list(self.notes),
        }


def with_split_note(output: Output, split_bytes: int) -> Output:
    """Say so if tensors are larger than the limit of a file."""
    larger = [tensor for tensor in output.tensors if 0 < split_bytes < tensor.nbytes]
    if larger:
        note = f"tensors larger than --split have a file of their own: {len(larger)}"
        output = replace(output, notes=(*output.notes, note))
    return output


def choice_notes(chosen: Iterable[tuple[str, Decision]]) -> tuple[str, ...]:
    """What became another type than the recipe's, and why."""
    return grouped_notes((name, _why(decision)) for name, decision in chosen)


def _why(decision: Decision) -> str | None:
    if decision.type is not None and decision.override:
        return asked_note(decision.type, decision.override)
    if decision.type is not None and decision.fallback:
        return f"stored as {decision.type.name}, because {decision.fallback}"
    return None


def asked_note(weight_type: WeightType, origin: str) -> str:
    return f"stored as {type_label(weight_type)}, as {origin} asks"


def grouped_notes(said: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Say the same of many tensors once."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, what in said:
        if what is not None:
            found[what].append(name)
    return tuple(
        f"{what}: {count(len(names), 'tensor')}, for example {names[0]}"
        for what, names in found.items()
    )


def type_of(decision: Decision) -> QuantType:
    assert decision.type is not None
    return decision.type


def lay_out_gguf(
    graph: TensorGraph[Grok1Spec],
    request: Request,
    vocabulary: Vocabulary | None,
    split_bytes: int,
    imatrix: ImportanceMatrix | None,
) -> Output:
    """Lay out a GGUF output; `split_bytes` limits the tensor data of a file (0: one file)."""
    recipe = request.recipe
    chosen = choose(
        graph,
        recipe,
        request.overrides,
        pure=request.pure,
        has_importance=imatrix is not None,
    )
    copied = {p.gguf for p, d in chosen if is_stored_as(graph[p.name], type_of(d).name)}
    weighing = weigh(imatrix, gguf_tensors(graph), [decision for _, decision in chosen], copied)
    entries = [gguf.Entry(p.gguf, type_of(d), graph[p.name].shape) for p, d in chosen]
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
            quantized(place.gguf, graph[place.name], type_of(decision).name),
            type_of(decision),
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
