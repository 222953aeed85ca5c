"""GGUF from GGUF: the same metadata and tensors in the same order, tensors in other types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import (
    AddLowRank,
    Quantize,
    Rows,
    Tensor,
    TensorGraph,
    is_sum,
    quantized,
    windows,
)
from weightcast.converters.recipes import (
    Decision,
    ImportanceMap,
    Recipe,
    facts_from_metadata,
    match_importance,
    provenance_metadata,
)
from weightcast.converters.recipes.decide import decide
from weightcast.converters.targets.gguf_files import lay_out_files
from weightcast.converters.targets.target import (
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
)
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.header import Metadata, raw_uint
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.gguf.layout import Entry
from weightcast.quant.types import FLOAT_TYPES, STORED_TYPES, TYPES
from weightcast.text import option, shown

FILE_TYPE_KEY: Final = "general.file_type"
QUANTIZATION_VERSION_KEY: Final = "general.quantization_version"
_EXACT: Final = {t.name for t in FLOAT_TYPES}
_LOSSY: Final = TYPES.keys() - _EXACT


def lay_out_copy(
    graph: TensorGraph, metadata: Metadata, request: Request, context: Context
) -> Output:
    """Lay out a GGUF output that keeps everything but types. Raises CheckpointError."""
    recipe, imatrix = request.recipe, context.imatrix
    facts = facts_from_metadata(metadata, has_importance=imatrix is not None)
    shapes = shapes_of(graph)
    decisions = [
        _possible(graph[name], decision)
        for (name, _), decision in zip(
            shapes, decide(recipe, shapes, facts, request.overrides, pure=request.pure), strict=True
        )
    ]
    made = [_made(graph[name], d) for (name, _), d in zip(shapes, decisions, strict=True)]
    copied = {tensor.name for tensor in made if not isinstance(tensor.origin, Quantize)}
    importance = match_importance(imatrix, shapes, decisions, copied)
    entries = [Entry(t.name, STORED_TYPES[t.dtype], t.shape) for t in made]
    raw = _metadata(metadata, recipe, importance.matrix)
    placed = lay_out_files(request.path, raw, entries, context.split_bytes)
    tensors = tuple(
        PlannedTensor(
            tensor, entry.type, *placed.offsets[entry.name], _rows_for(importance, tensor)
        )
        for tensor, entry in zip(made, entries, strict=True)
    )
    notes = (*choice_notes(zip(graph, decisions, strict=True)), *importance.notes())
    return Output(request, placed.files, tensors, {}, notes, importance)


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
    """The tensor in its new type, or itself if it stays: its bytes are copied then."""
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


def _metadata(
    metadata: Metadata, recipe: Recipe, imatrix: ImportanceMatrix | None
) -> dict[str, bytes]:
    """Keep all metadata, and renew what says how tensors are stored. As in llama-quantize."""
    from gguf import GGML_QUANT_VERSION

    return {
        **metadata.raw,
        QUANTIZATION_VERSION_KEY: raw_uint(GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_uint(recipe.file_type),
        **provenance_metadata(imatrix),
    }


def check_requantized(outputs: Sequence[Output]) -> None:
    """Raise LayoutError for a tensor that would be quantized a second time."""
    for output in outputs:
        for planned in output.tensors:
            for stored in {view.array: None for view in windows(planned.tensor)}:
                _check_requantized(planned, stored)


def _check_requantized(planned: PlannedTensor, stored: StoredArray) -> None:
    if stored.dtype not in _LOSSY or planned.type.name in _EXACT:
        return
    if planned.type.name == stored.dtype and not is_sum(planned.tensor):
        return
    raise LayoutError(
        f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}, and "
        f"{planned.type.name} made of that loses more than made of the original weights; "
        f"convert those, or pass {option('allow_requantize', True)}"
    )
