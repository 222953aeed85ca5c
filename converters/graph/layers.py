"""Find the layer, and the expert, in a tensor's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Convention = Literal["gguf", "hugging_face", "jax"]

# GGUF counts the layers of encoders beside those of the language model: v.blk.0., v.sam.blk.0.
_LAYERS: Final[dict[Convention, re.Pattern[str]]] = {
    "gguf": re.compile(r"(?P<stack>|.*?\.)blk\.(?P<number>[0-9]{1,9})\.", re.DOTALL),
    "hugging_face": re.compile(r"(?P<stack>)model\.layers\.(?P<number>[0-9]{1,6})\."),
    "jax": re.compile(r"(?P<stack>)transformer/decoder_layer_(?P<number>[0-9]{1,9})/"),
}

_EXPERT: Final = re.compile(r"\.experts\.([0-9]+|None)\.")


@dataclass(frozen=True, slots=True)
class LayerName:
    """A name taken apart: `stack` before the layer ("v." of an encoder), number, what follows."""

    stack: str
    number: int
    rest: str


def find_layer(name: str, *conventions: Convention) -> LayerName | None:
    """Take a name of one of these conventions apart; None for tensors outside the layers."""
    for convention in conventions:
        match = _LAYERS[convention].match(name)
        if match:
            return LayerName(match["stack"], int(match["number"]), name[match.end() :])
    return None


def any_expert(name: str) -> str:
    """Name all experts of a layer as one tensor: model.layers.0....experts.*.w1.weight."""
    return _EXPERT.sub(".experts.*.", name)
