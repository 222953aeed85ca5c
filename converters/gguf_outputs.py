"""GGUF from GGUF: the same metadata and tensors in the same order, tensors in other types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from weightcast.converters.gguf_model import GGUFModel
from weightcast.converters.graph import Tensor, TensorGraph, first_array, quantized
from weightcast.converters.outputs import (
    Output,
    PlannedTensor,
    Request,
    place_files,
    with_split_note,
)
from weightcast.converters.recipes import (
    Decision,
    Recipe,
    decide,
    facts_from_metadata,
    recipe_named,
)
from weightcast.formats import gguf
from weightcast.formats.gguf_header import raw_number
from weightcast.formats.small_files import shown
from weightcast.quant.errors import LayoutError
from weightcast.quant.types import FLOAT_TYPES, STORED_TYPES, TYPES

FILE_TYPE_KEY: Final = "general.file_type"
QUANTIZATION_VERSION_KEY: Final = "general.quantization_version"

_EXACT: Final = {t.name for t in FLOAT_TYPES}
_LOSSY: Final = TYPES.keys() - _EXACT


def lay_out_carried(graph: TensorGraph[GGUFModel], request: Request, split_bytes: int) -> Output:
    """Lay out a GGUF output that keeps everything but types. Raises CheckpointError."""
    recipe = recipe_named(request.type.name)
    assert recipe is not None
    facts = facts_from_metadata(graph.spec.metadata, has_importance=False)
    shapes = [(name, tensor.shape) for name, tensor in graph.items()]
    decisions = decide(recipe, shapes, facts)
    pairs = zip(graph.values(), decisions, strict=True)
    made = [_made(tensor, decision) for tensor, decision in pairs]
    entries = [gguf.Entry(t.name, STORED_TYPES[t.dtype], t.shape) for t in made]
    layouts = gguf.lay_out_raw(_metadata(graph.spec, recipe), entries, split_bytes)
    files, found = place_files(request.path, layouts)
    tensors = tuple(
        PlannedTensor(tensor, entry.type, *found[tensor.name])
        for tensor, entry in zip(made, entries, strict=True)
    )
    notes = fallback_notes(zip(graph, decisions, strict=True))
    return with_split_note(Output(request, files, tensors, {}, notes), split_bytes)


def _metadata(model: GGUFModel, recipe: Recipe) -> dict[str, bytes]:
    """All metadata, with the two values that say how tensors are stored. As in llama-quantize."""
    from gguf import GGML_QUANT_VERSION

    return {
        **model.metadata.raw,
        QUANTIZATION_VERSION_KEY: raw_number("uint32", GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_number("uint32", recipe.file_type),
    }


def _made(tensor: Tensor, decision: Decision) -> Tensor:
    """The tensor in its new type, or itself if it stays: its bytes are copied then.

    Whole numbers and float64 are no weights and stay.
    """
    if decision.type is None or decision.type.name == tensor.dtype:
        return tensor
    if tensor.dtype not in TYPES:
        if decision.override is None:
            return tensor
        raise LayoutError(
            f"{decision.override}: {shown(tensor.name)} is {tensor.dtype}, which cannot become "
            f"{decision.type.name}"
        )
    if decision.needs_importance:
        raise LayoutError(
            f"{shown(tensor.name)} as {decision.type.name} needs an importance matrix"
        )
    return quantized(tensor.name, tensor, decision.type.name)


def fallback_notes(decisions: Iterable[tuple[str, Decision]]) -> tuple[str, ...]:
    """Say which tensors have another type than the recipe means them to have, and why."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, decision in decisions:
        if decision.type is not None and decision.fallback is not None:
            reasons[decision.type.name, decision.fallback].append(name)
    return tuple(
        f"stored as {name}, because {reason}: {len(names)} tensors, for example {names[0]}"
        for (name, reason), names in reasons.items()
    )


def check_requantized(outputs: Sequence[Output]) -> None:
    """Raise LayoutError for a tensor that would be quantized a second time."""
    for output in outputs:
        for planned in output.tensors:
            stored = first_array(planned.tensor)
            if stored.dtype not in _LOSSY or planned.type.name in (stored.dtype, *_EXACT):
                continue
            raise LayoutError(
                f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}, and "
                f"{planned.type.name} made of that loses more than made of the original weights; "
                "convert those, or pass --allow-requantize"
            )
