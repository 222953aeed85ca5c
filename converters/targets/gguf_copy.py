"""GGUF from GGUF: the same metadata and tensors in the same order, tensors in other types.

A factor beside weights (formats/gguf/factors.py) stays beside them, and their blocks are quantized
without it: llama.cpp multiplies by it whatever their type, and the bytes are llama-quantize's. Only
where llama.cpp would refuse or ignore the factor with a type that NVFP4 becomes, which depends on
the tensor and the architecture, are the weights multiplied, and the factor and the scale of
activations beside it left out. What stays NVFP4 stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import (
    Quantize,
    Rows,
    Scaled,
    Tensor,
    TensorGraph,
    quantized,
    scaled,
    unscaled,
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
from weightcast.converters.targets.gguf_factors import find_factors
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
from weightcast.formats.gguf.factors import FACTOR, INPUT_SCALE, factor_name, is_multiplied
from weightcast.formats.gguf.header import Metadata, raw_uint
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.gguf.layout import Entry
from weightcast.quant.types import F32, FLOAT_TYPES, NVFP4, STORED_TYPES, TYPES
from weightcast.text import count, option, shown

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
    chosen = {
        name: _possible(graph[name], decision)
        for (name, _), decision in zip(
            shapes, decide(recipe, shapes, facts, request.overrides, pure=request.pure), strict=True
        )
    }
    multiplied = _multiplied(graph, chosen)
    for name in multiplied:
        for ending in (FACTOR, INPUT_SCALE):
            chosen.pop(factor_name(name, ending), None)
    found = find_factors(graph, chosen) if request.nvfp4_factors else {}
    beside = {**graph.factors.of, **found, **dict.fromkeys(multiplied, ())}
    shapes = [(name, shape) for name, shape in shapes if name in chosen]
    decisions = list(chosen.values())
    made = [
        _made(_divided(graph[name], beside.get(name, ())), decision)
        for name, decision in chosen.items()
    ]
    copied = {tensor.name for tensor in made if not isinstance(tensor.origin, Quantize)}
    importance = match_importance(imatrix, shapes, decisions, copied)
    entries = [entry for tensor in made for entry in _entries(tensor, found)]
    raw = _metadata(metadata, recipe, importance.matrix)
    placed = lay_out_files(request.path, raw, entries, context.split_bytes)
    tensors = tuple(
        PlannedTensor(
            tensor,
            STORED_TYPES[tensor.dtype],
            *placed.offsets[tensor.name],
            _rows_for(importance, tensor),
            factors=beside.get(tensor.name, ()),
        )
        for tensor in made
    )
    constants = tuple(
        (*placed.offsets[factor_name(name)], np.array(factors, "<f4").tobytes())
        for name, factors in found.items()
    )
    notes = (*choice_notes(chosen.items()), *importance.notes())
    notes += tuple(_factor_notes(graph, chosen, multiplied))
    if request.nvfp4_factors:
        notes += (f"NVFP4 with a factor beside it: {count(len(found), 'tensor')}",)
    return Output(request, placed.files, tensors, {}, notes, importance, constants)


def _divided(tensor: Tensor, factors: Sequence[float]) -> Tensor:
    """Give what lies in an output with factors beside it: the stored blocks if these have them."""
    if not factors:
        return tensor
    if isinstance(tensor.origin, Scaled):
        return unscaled(tensor)
    return scaled(tensor, [1 / factor for factor in factors])


def _entries(tensor: Tensor, factors: Mapping[str, Sequence[float]]) -> Iterator[Entry]:
    """List a tensor of a file, and the factor that it gets."""
    yield Entry(tensor.name, STORED_TYPES[tensor.dtype], tensor.shape)
    if tensor.name in factors:
        yield Entry(factor_name(tensor.name), F32, (len(factors[tensor.name]),))


def _multiplied(graph: TensorGraph, chosen: Mapping[str, Decision]) -> list[str]:
    """List the tensors of NVFP4 that become a type which llama.cpp multiplies by no factor."""
    return [
        name
        for name in graph.factors.of
        if graph[name].dtype == NVFP4.name
        and (made := chosen[name].type) not in (None, NVFP4)
        and not is_multiplied(graph.family.architecture, name, made.name)
    ]


def _factor_notes(
    graph: TensorGraph, chosen: Mapping[str, Decision], multiplied: Sequence[str]
) -> Iterator[str]:
    if multiplied:
        yield (
            "multiplied by the factor beside it, which llama.cpp would not do with that type: "
            f"{count(len(multiplied), 'tensor')}, for example {multiplied[0]}"
        )
    ignored = [
        name
        for name in graph.factors.of
        if name in chosen and name not in multiplied and graph[name].dtype == NVFP4.name
        if not is_multiplied(graph.family.architecture, name, NVFP4.name)
    ]
    if ignored:
        yield (
            "copied with a factor beside it, which llama.cpp refuses or ignores in this "
            f"architecture, but not once it has another type: {count(len(ignored), 'tensor')}, "
            f"for example {ignored[0]}"
        )


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
    if stored.dtype not in _LOSSY or planned.type.name in (stored.dtype, *_EXACT):
        return
    raise LayoutError(
        f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}, and "
        f"{planned.type.name} made of that loses more than made of the original weights; "
        f"convert those, or pass {option('allow_requantize', True)}"
    )
