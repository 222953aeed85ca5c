"""Lay out a GGUF output of a model that is not GGUF itself."""

from __future__ import annotations

from weightcast.converters.families.grok1 import gguf as grok1_gguf
from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.families.grok1.types import choose, gguf_tensors
from weightcast.converters.graph import TensorGraph, is_stored_as, quantized
from weightcast.converters.recipes.importance import provenance, weigh
from weightcast.converters.targets.target import (
    Output,
    PlannedTensor,
    Request,
    choice_notes,
    place_files,
    type_of,
)
from weightcast.formats.gguf import layout as gguf_layout
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.tokenizer.sentencepiece import Vocabulary


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
    entries = [gguf_layout.Entry(p.gguf, type_of(d), graph[p.name].shape) for p, d in chosen]
    if sum(entry.nbytes for entry in entries) <= split_bytes:
        split_bytes = 0  # one file will do
    writer = grok1_gguf.metadata_writer(graph, vocabulary, recipe.file_type, split_bytes)
    if weighing.matrix is not None:
        for key, value in provenance(weighing.matrix).items():
            if isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_uint32(key, value)
    layouts = gguf_layout.lay_out(writer, entries)
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
