"""Two checkpoints side by side: the tensors that both have, and what one differs by from the other.

A is what errors are measured against, B what is measured: either can be anything that is read. Of
each matrix the same rows of both come into memory, a slab at a time, and workers measure them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.families import of_architecture
from weightcast.converters.graph import Tensor, TensorGraph, check_readable, stored_as, stored_bytes
from weightcast.converters.sources import CONTAINERS, open_as_it_is, open_family, resolve_source
from weightcast.converters.sources.adapters import with_adapters
from weightcast.converters.sources.prune import are_last_layers, pruned
from weightcast.errors import CheckpointError, LayoutError, RequestError
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.text import option

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

    `plain` are numbers that no kernel reads, whole ones and float64, stored alike in both, and
    tensors without values; where they are not stored alike, the names are in `unlike`.
    `are_layers_missing` if what only A has is all of its last layers.
    """

    pairs: tuple[Pair, ...]
    only_source: tuple[str, ...]
    only_output: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]
    plain: tuple[Pair, ...] = ()
    unlike: tuple[str, ...] = ()
    are_layers_missing: bool = False


def open_pair(
    a: Path,
    b: Path,
    spec_a: Path | None = None,
    spec_b: Path | None = None,
    lora: Sequence[str] = (),
    left_out: Sequence[int] = (),
) -> tuple[TensorGraph, TensorGraph]:
    """Open two checkpoints so that their tensors can be paired; no weights are read.

    Both as Grok-1 where both are; GGUF files of whatever else under their own names. A GGUF file
    that is a Grok, but not a whole Grok-1, also goes with a Grok-1. Adapters are merged into A;
    `left_out` are layers of A, a GGUF file, that B is without. Raises CheckpointError.
    """
    a, b = resolve_source(a), resolve_source(b)
    if not left_out:
        first, second = _open_alike(a, b, spec_a, spec_b)
        return with_adapters(first, lora), second
    whole, made = open_as_it_is(a), open_as_it_is(b)
    if whole is None or made is None:
        other = a if whole is None else b
        raise RequestError(f"{other}: {option('prune_layers')}: only of GGUF files are there any")
    return pruned(with_adapters(whole, lora), left_out), made


def _open_alike(
    a: Path, b: Path, spec_a: Path | None, spec_b: Path | None
) -> tuple[TensorGraph, TensorGraph]:
    """Open both by a family's table, or both under their own names."""
    first, second = _open(a, spec_a), _open(b, spec_b)
    if first.family.has_table == second.family.has_table:
        return first, second
    own = [
        open_as_it_is(path) if spec is None else None for path, spec in ((a, spec_a), (b, spec_b))
    ]
    if own[0] is not None and own[1] is not None:
        return own[0], own[1]
    other, known = (second, first) if first.family.has_table else (first, second)
    if other.family.architecture != known.family.architecture:
        title = known.family.title
        raise LayoutError(
            f"{other.source} is a GGUF file of {other.family.name} and {known.source} a {title}: "
            f"only GGUF files of one model, or checkpoints of {title}, can be compared"
        )
    return first, second


def _open(path: Path, spec: Path | None) -> TensorGraph:
    try:
        return open_family(path, spec)
    except CheckpointError:
        as_it_is = open_as_it_is(path) if spec is None else None
        if as_it_is is None:
            raise
        return as_it_is


def pair_tensors(source: TensorGraph, output: TensorGraph) -> Pairing:
    """Pair tensors by canonical name.

    What lies beside weights is none: factors are part of the values. Scales of activations are no
    weights, and left out unless both have them.
    """
    of_source, of_output = _by_name(source), _by_name(output)
    inputs = source.factors.input_scales | output.factors.input_scales
    for name in inputs & (of_source.keys() ^ of_output.keys()):
        of_source.pop(name, None)
        of_output.pop(name, None)
    pairs, plain, unlike, reshaped = [], [], [], []
    for gguf, (name, tensor) in of_output.items():
        if gguf not in of_source:
            continue
        _, original = of_source[gguf]
        if ggml_shape(original.shape) != ggml_shape(tensor.shape):
            reshaped.append((name, original.shape, tensor.shape))
            continue
        pair = Pair(name, gguf, original, tensor, stored_as(tensor), stored_bytes(tensor))
        if gguf in inputs:
            plain.append(pair)
        elif tensor.size and _is_weights(original) and _is_weights(tensor):
            pairs.append(pair)
        elif original.dtype == tensor.dtype or not tensor.size:
            plain.append(pair)
        else:
            unlike.append(name)
    only_source = {gguf: name for gguf, (name, _) in of_source.items() if gguf not in of_output}
    return Pairing(
        tuple(pairs),
        tuple(only_source.values()),
        tuple(name for gguf, (name, _) in of_output.items() if gguf not in of_source),
        tuple(reshaped),
        tuple(plain),
        tuple(unlike),
        source.metadata is not None and are_last_layers(only_source, of_source),
    )


def _by_name(graph: TensorGraph) -> dict[str, tuple[str, Tensor]]:
    """Find the tensors by canonical name, each with its name in the graph's own container."""
    family = graph.family
    if not family.has_table:
        known = of_architecture(family.architecture)
        return {
            known.renamed(name) if known else name: (name, tensor)
            for name, tensor in graph.items()
            if name not in graph.factors.names
        }
    written = CONTAINERS[graph.container].written
    return {
        name: (family.name_in(place, written, "*"), graph[name])
        for name, place in graph.places.items()
    }


def _is_weights(tensor: Tensor) -> bool:
    try:
        check_readable(tensor)
    except LayoutError:
        return False
    return True
