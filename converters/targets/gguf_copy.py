"""GGUF from GGUF: the same metadata and tensors, tensors in other types.

Metadata and tensors come in the order in which llama-quantize writes them, or in the source's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import (
    AddLowRank,
    Quantize,
    Rows,
    Tensor,
    TensorGraph,
    first_array,
    quantized,
)
from weightcast.converters.graph.layers import llama_cpp_order
from weightcast.converters.recipes import (
    COPY,
    Decision,
    ImportanceMap,
    match_importance,
    provenance_metadata,
)
from weightcast.converters.sources import pruned, renumbered
from weightcast.converters.targets.gguf_factors import factor_notes, written_factors
from weightcast.converters.targets.gguf_files import (
    QUANTIZE_KEYS,
    GgufFiles,
    lay_out_files,
    lay_out_parts,
)
from weightcast.converters.targets.gguf_metadata import (
    alignment_note,
    copied_file_type,
    file_type_of,
    renewed_metadata,
)
from weightcast.converters.targets.gguf_readers import unread_notes
from weightcast.converters.targets.search_record import search_metadata, search_of
from weightcast.converters.targets.target import (
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
)
from weightcast.converters.targets.types import decide_types
from weightcast.errors import LayoutError
from weightcast.formats.gguf.factors import factor_name
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.layout import Entry, ggml_shape
from weightcast.quant.types import F32, STORED_TYPES, TYPES
from weightcast.text import count, shown


def lay_out_copy(
    graph: TensorGraph, metadata: Metadata, request: Request, context: Context
) -> Output:
    """Lay out a GGUF output that keeps everything but types. Raises CheckpointError.

    `metadata` are the graph's. Layers that are left out are so before all else.
    """
    source = graph
    if request.pruned:
        graph = pruned(graph, request.pruned)
        context = replace(context, imatrix=renumbered(context.imatrix, request.pruned))
    # The rules see the new numbers of layers, and how many there were, as in llama-quantize.
    chosen, unchanged = _choose(graph, metadata, request, context)
    factors = written_factors(graph, chosen, request)
    chosen = {name: d for name, d in chosen.items() if name not in factors.left_out}
    made = [_made(factors.divided(graph[name]), decision) for name, decision in chosen.items()]
    copied = {tensor.name for tensor in made if not isinstance(tensor.origin, Quantize)}
    search = search_of(request.search, (TYPES[t.dtype] for t in made if t.name not in copied))
    shapes = [(name, graph[name].shape) for name in chosen]
    importance = match_importance(context.imatrix, shapes, list(chosen.values()), copied, search)
    is_copy = request.recipe == COPY
    file_type = copied_file_type(source) if is_copy else file_type_of(request.recipe, made)
    provenance = provenance_metadata(context.imatrix) | search_metadata(search)
    raw = renewed_metadata(graph, request, file_type, provenance, keep_order=context.keep_order)
    entries = [
        entry
        for tensor in made
        for entry in _entries(tensor, factors.found, keeps_shape=context.keep_order)
    ]
    placed = _place(graph, request.path, raw, entries, context)
    notes = (
        *graph.notes,
        *choice_notes(chosen.items()),
        *unchanged,
        *importance.notes(),
        *factor_notes(graph, chosen, factors),
        *alignment_note(metadata),
        *unread_notes(raw, entries),
    )
    if request.nvfp4_factors:
        notes += (f"NVFP4 with a factor beside it: {count(len(factors.found), 'tensor')}",)
    tensors = tuple(_planned(tensor, placed, importance, factors.beside) for tensor in made)
    constants = _constants(factors.found, placed)
    return Output(request, placed.files, tensors, {}, notes, importance, constants)


def _choose(
    graph: TensorGraph, metadata: Metadata, request: Request, context: Context
) -> tuple[dict[str, Decision], tuple[str, ...]]:
    """Choose the type of each tensor, in the order of the output; say what rules do not change."""
    names = _order(graph, context)
    decisions, unchanged = decide_types(
        request,
        [(name, graph[name].shape) for name in names],
        metadata,
        has_importance=context.imatrix is not None,
        in_order=context.keep_split,
    )
    pairs = zip(names, decisions, strict=True)
    return {name: _possible(graph[name], decision) for name, decision in pairs}, unchanged


def _planned(
    tensor: Tensor,
    placed: GgufFiles,
    importance: ImportanceMap,
    factors: Mapping[str, tuple[float, ...]],
) -> PlannedTensor:
    return PlannedTensor(
        tensor,
        STORED_TYPES[tensor.dtype],
        *placed.offsets[tensor.name],
        _rows_for(importance, tensor),
        factors=factors.get(tensor.name, ()),
    )


def _constants(
    factors: Mapping[str, Sequence[float]], placed: GgufFiles
) -> tuple[tuple[int, int, bytes], ...]:
    """Place factors that are found: file, offset, content."""
    return tuple(
        (*placed.offsets[factor_name(name)], np.array(values, "<f4").tobytes())
        for name, values in factors.items()
    )


def _entries(
    tensor: Tensor, factors: Mapping[str, Sequence[float]], *, keeps_shape: bool
) -> Iterator[Entry]:
    """List a tensor of a file, and the factor that it gets."""
    yield entry_of(tensor, keeps_shape=keeps_shape)
    if tensor.name in factors:
        yield Entry(factor_name(tensor.name), F32, (len(factors[tensor.name]),))


def _order(graph: TensorGraph, context: Context) -> list[str]:
    """Put the tensors' names in the order of the output."""
    if context.keep_order:
        return list(graph)
    if context.keep_split:
        places = _places(graph)
        return sorted(graph, key=lambda name: places[name])
    return sorted(graph, key=llama_cpp_order)


def _places(graph: TensorGraph) -> dict[str, tuple[int, int]]:
    """Tell where each tensor lies: the number of the source's file, and the byte."""
    numbers = {path: number for number, path in enumerate(graph.files)}
    arrays = {name: first_array(tensor) for name, tensor in graph.items()}
    return {name: (numbers[array.path], array.offset) for name, array in arrays.items()}


def _place(
    graph: TensorGraph,
    path: Path,
    raw: Mapping[str, bytes],
    entries: Sequence[Entry],
    context: Context,
) -> GgufFiles:
    """Place tensors in files: as many as the source's, or as large as they may be."""
    if not context.keep_split or len(graph.files) == 1:
        return lay_out_files(path, raw, entries, context.split_bytes)
    parts: list[list[Entry]] = [[] for _ in graph.files]
    places = _places(graph)
    number = 0
    for entry in entries:
        if entry.name in places:  # a factor that is found goes with its weight
            number = places[entry.name][0]
        parts[number].append(entry)
    return lay_out_parts(path, raw, parts, QUANTIZE_KEYS)


def entry_of(tensor: Tensor, *, keeps_shape: bool = False) -> Entry:
    """Describe a tensor as it is written, of the shape that ggml gives it."""
    shape = tensor.shape if keeps_shape else ggml_shape(tensor.shape)
    return Entry(tensor.name, STORED_TYPES[tensor.dtype], shape)


def _possible(tensor: Tensor, decision: Decision) -> Decision:
    """Choose a type that is possible: whole numbers and float64 are no weights, they stay."""
    if decision.type is None or decision.type.name == tensor.dtype or tensor.dtype in TYPES:
        return decision
    if decision.override is None:
        return Decision(None)
    raise LayoutError(
        f"{decision.override}: {shown(tensor.name)} is {tensor.dtype}, which cannot become "
        f"{decision.type.name}"
    )


def _made(tensor: Tensor, decision: Decision) -> Tensor:
    """Give a tensor in its new type, or itself if it stays: its bytes are copied then."""
    if isinstance(tensor.origin, AddLowRank):
        kept = tensor.origin.source.dtype
        return quantized(tensor.name, tensor, kept if decision.type is None else decision.type.name)
    if decision.type is None or decision.type.name == tensor.dtype:
        return tensor
    return quantized(tensor.name, tensor, decision.type.name)


def _rows_for(importance: ImportanceMap, tensor: Tensor) -> NDArray[np.float32] | None:
    if not isinstance(tensor.origin, Quantize):
        return None
    rows = importance.rows.get(tensor.name)
    if rows is not None and isinstance(tensor.origin.source.origin, Rows):
        raise LayoutError(
            f"{shown(tensor.name)}: no importance can be given to shape {list(tensor.shape)}"
        )
    return rows
