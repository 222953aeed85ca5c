"""An adapter as the GGUF file that llama.cpp loads beside its model.

All factors have the type that is asked for. Source: convert_lora_to_gguf.py of llama.cpp, which
takes the same types.
"""

from __future__ import annotations

from typing import Final

from weightcast.converters.graph import Tensor, TensorGraph, quantized
from weightcast.converters.recipes import (
    Candidate,
    Decision,
    Override,
    find_overrides,
    unfollowed_notes,
)
from weightcast.converters.targets.gguf_files import lay_out_files
from weightcast.converters.targets.search_record import search_metadata, search_of
from weightcast.converters.targets.target import (
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
    type_of,
)
from weightcast.errors import LayoutError, RequestError
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.layout import Entry
from weightcast.quant.types import BF16, F16, F32, Q8_0, QuantType
from weightcast.text import option

_TYPES: Final = (F32, F16, BF16, Q8_0)


def lay_out_adapter(
    graph: TensorGraph, metadata: Metadata, request: Request, context: Context
) -> Output:
    """Lay out a GGUF file with the factors of an adapter.

    Raises LayoutError for other types, RequestError for options that are for models.
    """
    _check_options(graph, request, context)
    base = request.recipe.base
    if base not in _TYPES or request.recipe.name != base.name:
        raise LayoutError(
            f"{request.path}: an adapter cannot be {request.type_name}; it can be F32, F16, BF16 "
            "or Q8_0"
        )
    candidates = [Candidate((name,), whole_name=False) for name in graph]
    overrides = find_overrides(request.overrides, candidates)
    decisions = [
        _decide(tensor, base, override)
        for tensor, override in zip(graph.values(), overrides, strict=True)
    ]
    made = [
        quantized(tensor.name, tensor, type_of(decision).name)
        for tensor, decision in zip(graph.values(), decisions, strict=True)
    ]
    entries = [Entry(t.name, type_of(d), t.shape) for t, d in zip(made, decisions, strict=True)]
    search = search_of(request.search, map(type_of, decisions))
    raw = {**metadata.raw, **search_metadata(search), **request.metadata}
    placed = lay_out_files(request.path, raw, entries, context.split_bytes)
    tensors = tuple(
        PlannedTensor(tensor, entry.type, *placed.offsets[entry.name])
        for tensor, entry in zip(made, entries, strict=True)
    )
    notes = (
        *graph.notes,
        *choice_notes(zip(graph, decisions, strict=True)),
        *unfollowed_notes(request.overrides, candidates, "in the adapter"),
    )
    return Output(request, placed.files, tensors, {}, notes)


def _check_options(graph: TensorGraph, request: Request, context: Context) -> None:
    """Refuse what makes no difference to an adapter. Raises RequestError."""
    ends = request.ends
    given = {
        "output_tensor_type": ends.output,
        "token_embedding_type": ends.token_embd,
        "leave_output_tensor": ends.keeps_output,
        "imatrix": context.imatrix,
        "prune_layers": request.pruned,
        "nvfp4_factors": request.nvfp4_factors,
        "keep_split": context.keep_split,
        "keep_order": context.keep_order,
    }
    useless = [option(name) for name, value in given.items() if value]
    if useless:
        raise RequestError(
            f"{', '.join(useless)}: of use for models only, and {graph.source} is an adapter"
        )


def _decide(tensor: Tensor, base: QuantType, override: Override | None) -> Decision:
    wanted = base if override is None else override.type
    origin = None if override is None else override.origin
    assert isinstance(wanted, QuantType)
    if wanted.fits(tensor.shape[-1]):
        return Decision(wanted, override=origin)
    why = f"rows of {tensor.shape[-1]} do not fill blocks of {wanted.block_elements}"
    return Decision(F16, why, origin)
