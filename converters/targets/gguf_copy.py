"""GGUF from GGUF: the same metadata and tensors in the same order, tensors in other types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import (
    Quantize,
    Rows,
    Tensor,
    TensorGraph,
    quantized,
    windows,
)
from weightcast.converters.recipes import (
    RECIPES,
    Decision,
    ImportanceMap,
    Recipe,
    match_importance,
    provenance_metadata,
)
from weightcast.converters.recipes.common_part import common_part
from weightcast.converters.sources import pruned, renumbered
from weightcast.converters.targets.gguf_files import lay_out_files
from weightcast.converters.targets.target import (
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
)
from weightcast.converters.targets.types import decide_types, shapes_of
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
    whole = metadata
    if request.pruned:
        graph, imatrix = pruned(graph, request.pruned), renumbered(imatrix, request.pruned)
        assert graph.metadata is not None
        metadata = graph.metadata
    shapes = shapes_of(graph)
    # The rules see the new numbers of layers, and how many there were, as in llama-quantize.
    chosen, unchanged = decide_types(request, shapes, whole, has_importance=imatrix is not None)
    decisions = [
        _possible(graph[name], decision) for (name, _), decision in zip(shapes, chosen, strict=True)
    ]
    made = [_made(graph[name], d) for (name, _), d in zip(shapes, decisions, strict=True)]
    copied = {tensor.name for tensor in made if not isinstance(tensor.origin, Quantize)}
    importance = match_importance(imatrix, shapes, decisions, copied)
    entries = [Entry(t.name, STORED_TYPES[t.dtype], t.shape) for t in made]
    raw = _metadata(metadata, _file_type(recipe, made), importance.matrix) | dict(request.metadata)
    placed = lay_out_files(request.path, raw, entries, context.split_bytes)
    tensors = tuple(
        PlannedTensor(
            tensor, entry.type, *placed.offsets[entry.name], _rows_for(importance, tensor)
        )
        for tensor, entry in zip(made, entries, strict=True)
    )
    notes = (
        *graph.notes,
        *choice_notes(zip(graph, decisions, strict=True)),
        *unchanged,
        *importance.notes(),
    )
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


def _file_type(recipe: Recipe, made: Sequence[Tensor]) -> int:
    """Number the type that the file is; if no tensor is quantized, the floats that most are."""
    if recipe.base in FLOAT_TYPES or any(tensor.dtype in _LOSSY for tensor in made):
        return recipe.file_type
    sizes = Counter[str]()
    for tensor in made:
        sizes[tensor.dtype] += tensor.size
    floats = max(sorted(_EXACT), key=lambda name: sizes[name])
    return RECIPES[floats].file_type if sizes[floats] else recipe.file_type


def _metadata(
    metadata: Metadata, file_type: int, imatrix: ImportanceMatrix | None
) -> dict[str, bytes]:
    """Keep all metadata, and renew what says how tensors are stored. As in llama-quantize."""
    from gguf import GGML_QUANT_VERSION

    return {
        **metadata.raw,
        QUANTIZATION_VERSION_KEY: raw_uint(GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_uint(file_type),
        **provenance_metadata(imatrix),
    }


def check_requantized(outputs: Sequence[Output]) -> None:
    """Raise LayoutError for a tensor that would be quantized a second time."""
    for output in outputs:
        refused = [
            (planned, stored)
            for planned in output.tensors
            for stored in {view.array: None for view in windows(planned.tensor)}
            if stored.dtype in _LOSSY and planned.type.name not in (stored.dtype, *_EXACT)
        ]
        if refused:
            planned, stored = refused[0]
            raise LayoutError(
                f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}, and "
                f"{planned.type.name} made of that loses more than made of the original weights; "
                f"{_remedy(output, refused)}"
            )


def _stored(planned: PlannedTensor) -> str:
    origin = planned.tensor.origin
    return origin.source.dtype if isinstance(origin, Quantize) else planned.tensor.dtype


def _remedy(output: Output, refused: Sequence[tuple[PlannedTensor, StoredArray]]) -> str:
    """Say how to do without losses; a rule that keeps all of them as they are comes first."""
    stored = {array.dtype for _, array in refused}
    names = {planned.tensor.name: None for planned, _ in refused}
    others = [t for t in output.tensors if t.tensor.name not in names]
    again = f"convert those, or pass {option('allow_requantize', True)}"
    # Without others that are quantized, nothing would be left to do.
    is_mixed = any(t.type.name in _LOSSY and t.type.name != _stored(t) for t in others)
    part = common_part([*names], [t.tensor.name for t in others]) if len(stored) == 1 else None
    if part is None or not is_mixed:
        return again
    rule = option("tensor_types", f"{part}={stored.pop()}")
    return f"{rule} keeps all such tensors as they are; or else {again}"
