"""Grok-1's tensors by all their names, as golden data and artifacts have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.families.graphs import leaf_places
from weightcast.converters.families.grok1.family import GROK_1
from weightcast.converters.families.hyperparameters import read_spec as read_family_spec
from weightcast.converters.graph.dimensions import Number
from weightcast.converters.graph.model import Place, Role

EMBEDDING = "language_model/in_out_embed/embeddings"


@dataclass(frozen=True)
class Named:
    """A tensor: `name` is that of its leaf, which golden data go by."""

    place: Place

    @property
    def role(self) -> Role:
        return self.place.role

    @property
    def layer(self) -> int | None:
        return self.place.layer

    @property
    def name(self) -> str:
        return GROK_1.name_in(self.place, "jax")

    @property
    def gguf(self) -> str:
        return self.place.name

    def hugging_face(self, expert: int | str | None = None) -> str:
        return GROK_1.name_in(self.place, "hugging_face", expert)


def places(num_layers: int) -> list[Named]:
    return [Named(place) for place in GROK_1.places(num_layers)]


def shard_places(num_layers: int) -> list[Named]:
    return [Named(place) for place in leaf_places(GROK_1, num_layers)]


def read_spec(path: Path) -> Mapping[str, Number]:
    return read_family_spec(GROK_1, path)
