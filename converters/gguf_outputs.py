"""GGUF from GGUF: the same metadata and tensors in the same order, tensors in other types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
from weightcast.converters.recipe import Choice
from weightcast.formats import gguf
from weightcast.formats.gguf_header import raw_number
from weightcast.formats.small_files import shown
from weightcast.quant.errors import LayoutError
from weightcast.quant.types import F16, FLOAT_TYPES, STORED_TYPES, TYPES, QuantType

FILE_TYPE_KEY: Final = "general.file_type"
QUANTIZATION_VERSION_KEY: Final = "general.quantization_version"

# enum llama_ftype: "mostly" of one type.
_FILE_TYPES: Final = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_EXACT: Final = {t.name for t in FLOAT_TYPES}
_LOSSY: Final = TYPES.keys() - _EXACT


def lay_out_carried(graph: TensorGraph[GGUFModel], request: Request, split_bytes: int) -> Output:
    """Lay out a GGUF output that keeps everything but types. Raises CheckpointError."""
    choices = [_choose(tensor, request.type) for tensor in graph.values()]
    made = [
        tensor if choice.type.name == tensor.dtype else quantized(name, tensor, choice.type.name)
        for (name, tensor), choice in zip(graph.items(), choices, strict=True)
    ]
    entries = [
        gguf.Entry(tensor.name, choice.type, tensor.shape)
        for tensor, choice in zip(made, choices, strict=True)
    ]
    layouts = gguf.lay_out_raw(_metadata(graph.spec, request), entries, split_bytes)
    files, found = place_files(request.path, layouts)
    tensors = tuple(
        PlannedTensor(tensor, choice.type, *found[tensor.name])
        for tensor, choice in zip(made, choices, strict=True)
    )
    return with_split_note(Output(request, files, tensors, {}, _notes(graph, choices)), split_bytes)


def _metadata(model: GGUFModel, request: Request) -> dict[str, bytes]:
    """All metadata, with the two values that say how tensors are stored. As in llama-quantize."""
    from gguf import GGML_QUANT_VERSION

    return {
        **model.metadata.raw,
        QUANTIZATION_VERSION_KEY: raw_number("uint32", GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_number("uint32", _FILE_TYPES[request.type.name]),
    }


def _choose(tensor: Tensor, base: QuantType) -> Choice:
    stays = STORED_TYPES[tensor.dtype]
    if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or stays.name not in TYPES:
        return Choice(stays)
    if not base.fits(tensor.shape[-1]):
        return Choice(F16, f"rows of {tensor.shape[-1]} do not fill {base.name} blocks")
    return Choice(base)


def _notes(graph: TensorGraph[GGUFModel], choices: Sequence[Choice]) -> tuple[str, ...]:
    fallbacks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, choice in zip(graph, choices, strict=True):
        if choice.reason:
            fallbacks[choice.type.name, choice.reason].append(name)
    return tuple(
        f"stored as {name}, because {reason}: {len(names)} tensors, for example {names[0]}"
        for (name, reason), names in fallbacks.items()
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
