"""Leave layers of a GGUF file out: the others move up, and what the metadata say of layers too.

llama-quantize's --prune-layers does it for names and block_count. It forgets arrays with a value
for each layer, without which llama.cpp refuses the file or takes the values of other layers, and
counts of the first and the last layers; here they follow.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from weightcast.converters.families.generic import GGUFModel
from weightcast.converters.graph import TensorGraph
from weightcast.converters.graph.layers import LayerName, find_layer
from weightcast.errors import LayoutError
from weightcast.formats.gguf.factors import Factors
from weightcast.formats.gguf.header import (
    TYPE_NAMES,
    Metadata,
    raw_array,
    raw_number,
    raw_strings,
)
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.text import count, option, shown, some

# The layers of a language model; encoders of images and sound count their own.
_STACKS: Final = ("", "enc.", "dec.")
# Arrays that may be as long as there are layers by chance.
_NOT_OF_LAYERS: Final = re.compile(r"rope\.dimension_sections|adapters\.|classifier\.|\.ple\.")
BLOCK_COUNT: Final = "block_count"
# Counts of the first layers, all of them among these, and of the last: get_key in
# src/models/*.cpp of llama.cpp.
_OF_FIRST: Final = (
    BLOCK_COUNT,
    "decoder_block_count",
    "hash_layer_count",
    "leading_dense_block_count",
)
_OF_LAST: Final = ("attention.shared_kv_layers", "nextn_predict_layers")
# Lists of layers by their numbers.
_NUMBERS: Final = ("ple.layers",)
# Numbers that say which layers are of another kind by where they are.
_BY_POSITION: Final = (
    "attention.sliding_window_pattern",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
)


def pruned(graph: TensorGraph, layers: Sequence[int]) -> TensorGraph:
    """Leave layers, in order, of a GGUF file's graph out. Raises LayoutError if there are none."""
    assert graph.metadata is not None
    there = {found.number for name in graph if (found := _layer(name)) is not None}
    absent = sorted({*layers} - there)
    if absent:
        has = f"its layers are {min(there)} to {max(there)}" if there else "it has no layers"
        raise LayoutError(
            f"{graph.source}: {option('prune_layers')}: there is no layer "
            f"{some([str(number) for number in absent])}; {has}"
        )
    if not there - {*layers}:
        raise LayoutError(f"{graph.source}: {option('prune_layers')}: no layer would be left")
    tensors = {}
    for name, tensor in graph.items():
        moved = moved_name(name, layers)
        if moved in tensors:  # blk.01 beside blk.1
            raise LayoutError(f"{graph.source}: {shown(name)}: its layer has two names")
        if moved is not None:
            tensors[moved] = replace(tensor, name=moved)
    metadata = Metadata({**graph.metadata.raw, **dict(_changed(graph.metadata, layers))})
    notes = (*graph.notes, *_notes(graph.metadata, layers))
    return replace(
        graph,
        spec=GGUFModel(metadata),
        tensors=tensors,
        metadata=metadata,
        notes=notes,
        factors=_moved_factors(graph.factors, layers),
    )


def _moved_factors(factors: Factors, layers: Sequence[int]) -> Factors:
    def moved(names: Iterable[str]) -> dict[str, str]:
        found = {name: moved_name(name, layers) for name in names}
        return {old: new for old, new in found.items() if new is not None}

    of = {new: factors.of[old] for old, new in moved(factors.of).items()}
    names, scales = moved(factors.names), moved(factors.input_scales)
    return Factors(of, frozenset(names.values()), frozenset(scales.values()))


def renumbered(matrix: ImportanceMatrix | None, layers: Sequence[int]) -> ImportanceMatrix | None:
    """Give the entries of an importance matrix the numbers that layers have without others.

    Those of layers that are left out go; they are still counted, as in llama-quantize.
    """
    if matrix is None or not layers:
        return matrix
    moved = {name: moved_name(name, layers) for name in matrix.entries}
    entries = {new: matrix.entries[old] for old, new in moved.items() if new is not None}
    unused = {
        new: matrix.unused[old]
        for old, new in moved.items()
        if new is not None and old in matrix.unused
    }
    left_out = matrix.left_out + len(matrix.entries) - len(entries)
    return replace(matrix, entries=entries, unused=unused, left_out=left_out)


def moved_name(name: str, layers: Sequence[int]) -> str | None:
    """Give the name of a tensor without `layers`, in order; None if it is in one of them."""
    found = _layer(name)
    if found is None:
        return name
    if found.number in layers:
        return None
    return f"{found.stack}blk.{found.number - bisect_left(layers, found.number)}.{found.rest}"


def are_last_layers(missing: Collection[str], names: Iterable[str]) -> bool:
    """Tell whether what is missing of names is all of the last layers, as where any were pruned."""
    layers = {name: -1 if (found := _layer(name)) is None else found.number for name in names}
    first = min((layers.get(name, -1) for name in missing), default=-1)
    return first > 0 and {name for name, n in layers.items() if n >= first} == {*missing}


def _layer(name: str) -> LayerName | None:
    found = find_layer(name)
    return found if found is not None and found.stack in _STACKS else None


def _prefix(metadata: Metadata) -> str:
    return f"{metadata.get('general.architecture', '')}."


def _changed(metadata: Metadata, layers: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """List what is to be said of the layers that are left."""
    prefix = _prefix(metadata)

    def whole(key: str) -> int:
        value = metadata.get(prefix + key)
        return value if type(value) is int else 0

    total = whole(BLOCK_COUNT)
    counts = {key: range(whole(key)) for key in _OF_FIRST}
    counts |= {key: range(total - whole(key), total) for key in _OF_LAST}
    for key, counted in counts.items():
        if whole(key):
            left = len(counted) - sum(n in counted for n in layers)
            yield prefix + key, raw_number(TYPE_NAMES[metadata.kind(prefix + key)], left)
    of_layers = total, total - whole("nextn_predict_layers")
    for key in metadata:
        array = metadata.array_type(key)
        if array is None or not key.startswith(prefix):
            continue
        if key.removeprefix(prefix) in _NUMBERS and isinstance(metadata[key], np.ndarray):
            moved = [n - bisect_left(layers, n) for n in metadata[key] if n not in layers]
            yield key, raw_array(array[0], np.array(moved))
        elif array[1] in of_layers and not _NOT_OF_LAYERS.search(key):
            yield key, _cut(metadata, key, layers)


def _cut(metadata: Metadata, key: str, layers: Sequence[int]) -> bytes:
    """Leave the values of layers out of an array."""
    values, array = metadata[key], metadata.array_type(key)
    assert array is not None
    if isinstance(values, np.ndarray):
        kept = [n for n in range(len(values)) if n not in layers]
        return raw_array(array[0], values[kept])
    return raw_strings([value for n, value in enumerate(values) if n not in layers])


def _notes(metadata: Metadata, layers: Sequence[int]) -> Iterator[str]:
    prefix = _prefix(metadata)
    yield f"{count(len(layers), 'layer')} left out: {', '.join(map(str, layers))}"
    for key in _BY_POSITION:
        value = metadata.get(prefix + key)
        if type(value) is int and value > 1:
            yield (
                f"{prefix}{key} is {value}: which layers it is for depends on their numbers, and "
                "layers have others now"
            )
