"""Find the layer, and the expert, in a tensor's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Encoders count their own layers beside those of the language model: v.blk.0., v.sam.blk.0.
_LAYER: Final = re.compile(r"(?P<stack>|.*?\.)blk\.(?P<number>[0-9]{1,9})\.", re.DOTALL)
# As sscanf reads "blk.%d.": what follows the number does not matter.
_COUNTED_LAYER: Final = re.compile(r"blk\.\s*([+-]?[0-9]+)")
_EXPERT: Final = re.compile(r"\.experts\.[0-9]+\.")


@dataclass(frozen=True, slots=True)
class LayerName:
    """A GGUF name taken apart: `stack` before the layer ("v." of an encoder), number, the rest."""

    stack: str
    number: int
    rest: str


def find_layer(name: str) -> LayerName | None:
    """Take a GGUF name apart at its layer; None for tensors outside the layers."""
    match = _LAYER.match(name)
    if match is None:
        return None
    return LayerName(match["stack"], int(match["number"]), name[match.end() :])


def llama_cpp_order(name: str) -> tuple[int, bytes]:
    """Give the key by which llama.cpp sorts the tensors of a model: layer, then name.

    Source: llama_model_loader::weight_name_comparer.
    """
    match = _COUNTED_LAYER.match(name)
    return -1 if match is None else int(match[1]), name.encode(errors="surrogateescape")


def any_expert(name: str) -> str:
    """Name all experts of a layer as one tensor: model.layers.0....experts.*.w1.weight."""
    return _EXPERT.sub(".experts.*.", name)
