"""Refuse models that have more, less or other than a network computes with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from weightcast.converters.graph import TensorGraph
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.text import shown, some

Shape = tuple[int, ...]
# They describe a model, and what it was trained with, but not what its layers compute.
_DESCRIPTIVE: Final = frozenset(
    (
        *("context_length", "feed_forward_length", "vocab_size", "pooling_type"),
        *("tensor_data_layout", "rope.scaling.finetuned"),
        "rope.scaling.original_context_length",
    )
)
# Values with which a key changes nothing, where that is not 0.
_NEUTRAL: Final[Mapping[str, Sequence[float]]] = {
    "attention.causal": (1,),
    "embedding_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
}
_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def check_keys(
    metadata: Mapping[str, Any],
    architecture: str,
    used: Collection[str],
    same: Mapping[str, int] = _NOTHING,
) -> None:
    """Refuse GGUF metadata of an architecture that a network does not know: they may change it.

    `used` are the keys that the network reads, without the architecture before them; those in
    `same` must have the value there. Raises LayoutError that names a key.
    """
    for key in metadata:
        place, _, name = key.partition(".")
        if place != architecture or name in used or name in _DESCRIPTIVE:
            continue
        value = metadata[key]
        neutral = (same[name],) if name in same else _NEUTRAL.get(name, (0,))
        if not isinstance(value, int | float) or value not in neutral:
            raise LayoutError(f"{key} is {shown(value)}, and models with that cannot be run")


def check_tensors(
    graph: TensorGraph,
    required: Iterable[tuple[str, Shape]],
    optional: Mapping[str, Shape],
    unused: Collection[str] = (),
) -> None:
    """Refuse a graph with tensors that a network does not use, without those that it needs.

    Names come with the shapes that tensors must have; -1 is any length, and axes of length 1 do not
    count. `unused` are there, but no part of the weights. Raises LayoutError for tensors and
    shapes that are unknown, MissingTensorError.
    """
    known = set(unused)
    missing = None
    for name, shape in (*required, *optional.items()):
        known.add(name)
        if name in graph.tensors:
            _check_shape(name, graph.tensors[name].shape, shape)
        elif name not in optional:
            missing = missing or name
    if foreign := [shown(name) for name in graph.tensors if name not in known]:
        architecture = graph.family.architecture
        raise LayoutError(
            f"has {some(foreign)}, with which the architecture {architecture} cannot be run"
        )
    if missing is not None:
        raise MissingTensorError(f"{graph.source}: tensor {missing} is missing")


def _check_shape(name: str, found: Shape, expected: Shape) -> None:
    lengths = [length for length in found if length != 1]
    wanted = [length for length in expected if length != 1]
    fits = len(lengths) == len(wanted) and all(
        want in (-1, length) for length, want in zip(lengths, wanted, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if length < 0 else str(length) for length in expected)
        raise LayoutError(f"{name} has the shape {list(found)}, and its metadata say [{shape}]")
