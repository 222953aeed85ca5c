"""Count what running models over a text takes: bytes, weights, products, memory.

Nothing is measured here, and no weights are read. Experts are taken to be used evenly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Final

from weightcast.converters.graph import matrices, stored_bytes
from weightcast.evaluation.arithmetic import FLOAT32
from weightcast.evaluation.networks import Heads, Hidden, Network, Part
from weightcast.evaluation.scoring import USUAL_BYTES
from weightcast.evaluation.weights import SLAB_BYTES, TILE_WEIGHTS, Weights
from weightcast.evaluation.workers import BLOCK_TOKENS
from weightcast.formats.kl_base import scored_positions

_F32: Final = 4
# Tiles of a matrix in memory at once: in use, decoded ahead, and what `linear` wants of the first.
_TILES: Final = 3
# Copies of a block that operations make on their way, as GELU does.
_COPIES: Final = 5


@dataclass(frozen=True, slots=True)
class Extent:
    """What is run: sequences of so many tokens each, and whether layers are measured alone, too."""

    chunks: int
    context: int
    isolated: bool = False

    @property
    def tokens(self) -> int:
        return self.chunks * self.context

    @property
    def scored(self) -> int:
        return self.chunks * scored_positions(self.context)


@dataclass(frozen=True, slots=True)
class Work:
    """What one model needs. Weights are decoded anew for each group of tokens.

    `products` are multiplications of weights, `whole` weights that are decoded while nobody works
    and `tiles` those decoded beside products; `attended` are products of attention, of positions
    whether visible or not, `activated` values of hidden layers, `passed` those of states in parts.
    """

    read_bytes: int
    products: int
    whole: int
    tiles: int
    attended: int
    activated: int
    passed: int

    @property
    def flops(self) -> int:
        """Count two for each product."""
        return 2 * (self.products + self.attended)


def work_of(weights: Weights, network: Network, extent: Extent, group: int) -> Work:
    """Count what a network needs over so many tokens, `group` of them at once in hidden layers."""
    products = whole = tiles = attended = activated = passed = 0
    times = 1 + extent.isolated
    for part in _parts(network):
        stored = sum(prod(weights.shape(name)) for name in part.matrices)
        passed += times * extent.tokens * _emb_size(weights, network)
        if isinstance(part.kind, Heads):
            attended += times * extent.chunks * attention_products(part.kind, extent.context)
            products += times * extent.tokens * stored
            whole += times * stored
        else:
            share = part.kind.used / part.kind.experts
            products += round(times * extent.tokens * stored * share)
            tiles += times * stored * ceil(_routed(part.kind, extent.tokens) / group)
            width = weights.shape(part.matrices[-1])[-1]
            activated += times * extent.tokens * width * part.kind.used
    head = prod(weights.shape(network.ends[1]))
    read_bytes = sum(map(stored_bytes, weights.graph.tensors.values()))
    products += extent.scored * head
    # Once for the embedding, once or more for the head.
    return Work(read_bytes, products, whole + head, tiles + head, attended, activated, passed)


def attention_products(heads: Heads, context: int) -> int:
    """Count the products that queries, keys and values of one sequence make."""
    return heads.queries * (heads.key_size + heads.value_size) * context**2


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a run takes: of states, what a layer adds to them, or in the end the head.

    `in_file` of these lie in a file. `weights` are those of tiles and slabs, of one model at a
    time, `blocks` what workers take meanwhile; `process` is what there was before.
    """

    states: int
    layer: int
    head: int
    in_file: int
    weights: int
    blocks: int
    process: int

    @property
    def activations(self) -> int:
        return self.states + max(self.layer, self.head)

    @property
    def resident(self) -> int:
        """Give what has to be in memory at the worst moment."""
        return self.activations - self.in_file + self.weights + self.blocks + self.process


def memory_of(
    models: Sequence[tuple[Weights, Network]],
    extent: Extent,
    group: int,
    jobs: int,
    budget: int | None,
    precision: str = FLOAT32,
    process: int = 0,
) -> Memory:
    """Count the memory of a run of models side by side, of which `budget` is for activations."""
    weights, network = models[0]
    emb_size = _emb_size(weights, network)
    states = [_F32 * extent.tokens * emb_size] * len(models)
    layers = [list(_layer_arrays(*model, part, extent, group)) for model, part in _each(models)]
    layer = max(layers, key=sum)
    head = list(_head_arrays(models, extent, budget))
    copies = states[:2] if extent.isolated else []
    in_file = max(_beyond([*states, *layer], budget), _beyond([*states, *head], budget))
    return Memory(
        sum(states) + sum(copies),
        sum(layer),
        sum(head),
        in_file,
        max(_weight_bytes(own, part, precision) for (own, _), part in _each(models)),
        jobs * max(_block_bytes(*model, part, extent) for model, part in _each(models)),
        process,
    )


def _each(
    models: Sequence[tuple[Weights, Network]],
) -> Iterator[tuple[tuple[Weights, Network], Part]]:
    return ((model, part) for model in models for part in _parts(model[1]))


def _parts(network: Network) -> Iterator[Part]:
    return (part for number in range(network.num_layers) for part in network.parts(number))


def _emb_size(weights: Weights, network: Network) -> int:
    return weights.shape(network.ends[1])[-1]


def _routed(hidden: Hidden, tokens: int) -> int:
    return ceil(tokens * hidden.used / hidden.experts)


def _layer_arrays(
    weights: Weights, network: Network, part: Part, extent: Extent, group: int
) -> Iterator[int]:
    """List the bytes of arrays that a part makes beside states, in order."""
    if isinstance(part.kind, Heads):
        return
    emb_size = _emb_size(weights, network)
    whole, routed = extent.tokens, _routed(part.kind, extent.tokens)
    rows = [whole, whole] if part.kind.experts == 1 else [whole, whole, routed, routed]
    yield from (_F32 * n * emb_size for n in rows)
    yield _F32 * min(group, routed) * weights.shape(part.matrices[-1])[-1]


def _head_arrays(
    models: Sequence[tuple[Weights, Network]], extent: Extent, budget: int | None
) -> Iterator[int]:
    """List the bytes of logits that are made at a time, of each model."""
    n_vocab = models[0][1].vocab_size
    part = min(BLOCK_TOKENS, scored_positions(extent.context))
    size = (budget or USUAL_BYTES) // (_F32 * n_vocab * len(models) * part)
    rows = min(extent.scored, max(1, size) * part)
    yield from [_F32 * rows * n_vocab] * len(models)


def _beyond(arrays: Sequence[int], budget: int | None) -> int:
    """Count the bytes of arrays, in order, that `Activations` puts into files."""
    if budget is None:
        return 0
    left, in_file = budget, 0
    for nbytes in arrays:
        if nbytes > left:
            in_file += nbytes
        else:
            left -= nbytes
    return in_file


def _weight_bytes(weights: Weights, part: Part, precision: str) -> int:
    """Count what a part's weights take: whole for attention, else two matrices in tiles."""
    cast = 1 if precision == FLOAT32 else 1.5
    if isinstance(part.kind, Heads):
        loaded = sum(_F32 * prod(weights.shape(name)) for name in part.matrices)
        return round(cast * loaded) + max(_slab_bytes(weights, name) for name in part.matrices)
    return sum(
        _slab_bytes(weights, name) + _tile_bytes(weights, name) for name in part.matrices[:2]
    )


def _slab_bytes(weights: Weights, name: str) -> int:
    view = matrices(weights.graph[name])[0]
    return min(view.slab_bytes(0, view.shape[0]), 2 * SLAB_BYTES)


def _tile_bytes(weights: Weights, name: str) -> int:
    return _TILES * _F32 * min(TILE_WEIGHTS, prod(weights.shape(name)[-2:]))


def _block_bytes(weights: Weights, network: Network, part: Part, extent: Extent) -> int:
    """Count what one worker takes while it runs a block, or a sequence through attention."""
    emb_size = _emb_size(weights, network)
    if isinstance(part.kind, Heads):
        heads = part.kind
        scores = heads.queries // heads.keys * extent.context**2
        width = (heads.queries + 2 * heads.keys) * heads.key_size + 2 * emb_size
        return _F32 * (_COPIES * scores + 2 * extent.context * width)
    width = weights.shape(part.matrices[0])[-2]
    return _F32 * BLOCK_TOKENS * (_COPIES * min(width, max(1, TILE_WEIGHTS // emb_size)) + emb_size)
