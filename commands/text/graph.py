"""Describe a graph: the lines that `inspect` prints, and its JSON values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from weightcast.converters.files import Blank
from weightcast.converters.graph import (
    Tensor,
    TensorGraph,
    first_array,
    stored_as,
    stored_bytes,
    stored_files,
)
from weightcast.converters.graph.layers import find_layer
from weightcast.converters.sources import find_unwritten, unwritten_note
from weightcast.errors import visible
from weightcast.text import bytes_text, count, shown


def graph_values(graph: TensorGraph, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a graph as JSON values."""
    return {
        "family": graph.family.name,
        "source": graph.source,
        "parameters": graph.parameters,
        "hyperparameters": graph.spec.describe(),
        "tensors": [
            {
                "name": graph.spoken_name(tensor.name),
                "shape": list(tensor.shape),
                "stored_as": stored_as(tensor),
                "bytes": stored_bytes(tensor),
                "file": first_array(tensor).path.name,
            }
            for tensor in graph.values()
        ],
        "notes": [*notes, *sparse_notes(graph)],
    }


def sparse_notes(graph: TensorGraph, blanks: Sequence[Blank] | None = None) -> list[str]:
    """Warn of files with holes: a download that reserved its space before it had the data.

    `blanks` are those of shards, if they were looked for.
    """
    unwritten = unwritten_note(find_unwritten(graph) if blanks is None else blanks)
    if unwritten is not None:
        return [unwritten]
    paths = sorted({first_array(tensor).path for tensor in graph.values()})
    holes = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # gone since it was read
            continue
        # Compressing file systems also take fewer blocks, but hardly less than half for weights.
        if status.st_blocks * 512 < status.st_size // 2:
            holes.append(path.name)
    if not holes:
        return []
    return [
        f"{count(len(holes), 'file')} mostly of holes ({holes[0]}): "
        "if this was downloaded, the download is not complete"
    ]


def graph_lines(
    graph: TensorGraph, notes: Sequence[str] = (), *, all_tensors: bool
) -> Iterator[str]:
    """Describe a graph for reading: a line for each kind of tensor, or for each tensor."""
    spec = graph.spec
    total = sum(stored_bytes(tensor) for tensor in graph.values())
    yield f"{graph.source}: {graph.family.name}, {graph.parameters:,} parameters"
    files = {path for tensor in graph.values() for path in stored_files(tensor)}
    yield f"{count(len(graph), 'tensor')} in {count(len(files), 'file')}, {bytes_text(total)}"
    values = spec.describe()
    width = max(28, min(46, max(map(len, values), default=0)))
    for name, value in values.items():
        yield f"  {visible(name):<{width}} {_value_text(value)}"
    yield ""
    if all_tensors:
        for tensor in graph.values():
            name = graph.spoken_name(tensor.name)
            yield _tensor_line(name, tensor, first_array(tensor).path.name)
    else:
        kinds: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
        for tensor in graph.values():
            leaf = _in_any_layer(graph, tensor.name)
            kinds.setdefault((leaf, tensor.shape, stored_as(tensor)), []).append(tensor)
        for (leaf, _, stored), tensors in kinds.items():
            yield _tensor_line(leaf, tensors[0], f"x {len(tensors)}", stored)
    yield from (f"note: {note}" for note in (*notes, *sparse_notes(graph)))


def _in_any_layer(graph: TensorGraph, name: str) -> str:
    """Name a tensor alike in all layers of the language model, or of an encoder beside it."""
    place = graph.places.get(name)
    if place is not None and place.layer is not None:
        pattern = graph.family.stored(place, graph.spoken).name
        return f"layer N: {pattern.partition('{layer}')[2][1:]}"
    layer = find_layer(name) if place is None else None
    if layer is None or layer.stack.count(".") > 1:
        return graph.spoken_name(name)
    return f"layer N: {layer.rest}"


def _value_text(value: Any) -> str:
    """Show a hyperparameter or metadata: numbers in a column, the rest in short."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:>17}"
    if isinstance(value, dict):
        return f"{value['length']:,} x {value['array']}"
    return shown(value)


def _tensor_line(name: str, tensor: Tensor, last: str, stored: str = "") -> str:
    shape = " x ".join(map(str, tensor.shape)) or "one value"
    return f"  {visible(name):<52} {shape:>20}  {stored or stored_as(tensor):<14} {last}"
