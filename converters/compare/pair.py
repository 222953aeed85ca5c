"""Two checkpoints side by side: the tensors that both have, and what one differs by from the other.

A is what errors are measured against, B what is measured: either can be anything that is read. Of
each matrix the same rows of both come into memory, a slab at a time, and workers measure pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.families.grok1.gguf import ARCHITECTURE
from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.families.grok1.tensors import LAYER_ROLES, Place, places
from weightcast.converters.graph import Tensor, check_readable, stored_as, stored_bytes
from weightcast.converters.graph.layers import any_expert
from weightcast.converters.sources.detect import kind_of
from weightcast.converters.sources.open import AnyGraph, open_carried, open_grok1
from weightcast.errors import CheckpointError, LayoutError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor [..., out, in] that both have: its name in B and in GGUF, and how B stores it.

    `type` is in the words of `inspect`; `nbytes` counts B's scales and other parts too. Of experts
    that are tensors of their own there is one pair, named experts.*.
    """

    name: str
    gguf: str
    source: Tensor
    output: Tensor
    type: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Pairing:
    """Tensors in the order of B, and those without a counterpart.

    `plain` are numbers that no kernel reads, whole ones and float64, stored alike in both; where
    they are not stored alike, the names are in `unlike`.
    """

    pairs: tuple[Pair, ...]
    only_source: tuple[str, ...]
    only_output: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]
    plain: tuple[Pair, ...] = ()
    unlike: tuple[str, ...] = ()


def open_pair(
    a: Path, b: Path, spec_a: Path | None = None, spec_b: Path | None = None
) -> tuple[AnyGraph, AnyGraph]:
    """Open two checkpoints so that their tensors can be paired; no weights are read.

    Both as Grok-1 where both are; GGUF files of whatever else under their own names. A GGUF file
    that is a Grok, but not a whole Grok-1, also goes with a Grok-1. Raises CheckpointError.
    """
    first, second = _open(a, spec_a), _open(b, spec_b)
    if _is_grok1(first) == _is_grok1(second):
        return first, second
    own = [
        open_carried(path) if spec is None else None for path, spec in ((a, spec_a), (b, spec_b))
    ]
    if own[0] is not None and own[1] is not None:
        return own[0], own[1]
    other, grok1 = (second, first) if _is_grok1(first) else (first, second)
    if other.family != ARCHITECTURE:
        raise LayoutError(
            f"{other.source} is a GGUF file of {other.family} and {grok1.source} a Grok-1: only "
            "GGUF files of one model, or checkpoints of Grok-1, can be compared"
        )
    return first, second


def _open(path: Path, spec: Path | None) -> AnyGraph:
    try:
        return open_grok1(path, spec)
    except CheckpointError:
        carried = open_carried(path) if spec is None else None
        if carried is None:
            raise
        return carried


def _is_grok1(graph: AnyGraph) -> bool:
    return isinstance(graph.spec, Grok1Spec)


def pair_tensors(source: AnyGraph, output: AnyGraph) -> Pairing:
    """Pair tensors by name, those of a Grok-1 by their names in GGUF."""
    of_source, of_output = _by_gguf_name(source), _by_gguf_name(output)
    pairs, plain, unlike, reshaped = [], [], [], []
    for gguf, (name, tensor) in of_output.items():
        if gguf not in of_source:
            continue
        _, original = of_source[gguf]
        if original.shape != tensor.shape:
            reshaped.append((name, original.shape, tensor.shape))
            continue
        pair = Pair(name, gguf, original, tensor, stored_as(tensor), stored_bytes(tensor))
        if _is_weights(original) and _is_weights(tensor):
            pairs.append(pair)
        elif original.dtype == tensor.dtype:
            plain.append(pair)
        else:
            unlike.append(name)
    return Pairing(
        tuple(pairs),
        tuple(name for gguf, (name, _) in of_source.items() if gguf not in of_output),
        tuple(name for gguf, (name, _) in of_output.items() if gguf not in of_source),
        tuple(reshaped),
        tuple(plain),
        tuple(unlike),
    )


def _by_gguf_name(graph: AnyGraph) -> dict[str, tuple[str, Tensor]]:
    """Find the tensors with their names in the graph's own format."""
    if not isinstance(graph.spec, Grok1Spec):
        is_grok = graph.family == ARCHITECTURE
        return {_today(name) if is_grok else name: (name, t) for name, t in graph.items()}
    is_directory = kind_of(Path(graph.source)) == "safetensors"
    return {
        place.gguf: (_in_directory(place) if is_directory else place.gguf, graph[place.name])
        for place in places(graph.spec.num_layers)
    }


def _today(name: str) -> str:
    """The name that llama.cpp gives a tensor of Grok-1 now, if it gave it another one before."""
    for role in LAYER_ROLES:
        if role.old_gguf is not None and name.endswith(f".{role.old_gguf}.weight"):
            return name.replace(role.old_gguf, role.gguf)
    return name


def _in_directory(place: Place) -> str:
    return any_expert(place.hugging_face())


def _is_weights(tensor: Tensor) -> bool:
    try:
        check_readable(tensor)
    except LayoutError:
        return False
    return True
