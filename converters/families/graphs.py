"""Turn stored arrays into the graph of a family: name them, check them, solve the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from weightcast.converters.graph import (
    Dimensions,
    Family,
    Number,
    Place,
    Tensor,
    TensorGraph,
    check_readable,
    concatenated,
    dequantized,
    first_array,
    scaled,
    stacked,
    stored,
)
from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.jax.arrays import QuantizedArray
from weightcast.text import shown

_NO_SHARES: Final[Mapping[str, tuple[StoredArray, ...]]] = MappingProxyType({})
_NO_FACTORS: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Told:
    """Hyperparameters that a file gives, and that file's name for messages."""

    values: Mapping[str, Number]
    origin: str


def leaf_places(family: Family, num_layers: int) -> list[Place]:
    """List the tensors in the order of the shards: sorted tree keys, so layer 10 follows layer 1.

    JAX flattens a tree of parameters in the order of its keys, which are text.
    """
    places = family.places(num_layers)
    return sorted(places, key=lambda place: family.name_in(place, "jax").split("/"))


def graph_from_shards(
    family: Family, directory: Path, shards: Sequence[StoredArray | QuantizedArray], told: Told
) -> TensorGraph:
    """Name the leaves of a checkpoint directory. Raises LayoutError, MissingTensorError."""
    in_layer = sum(role.per_layer for role in family.roles)
    outside = sum(not role.per_layer and role.tied_to is None for role in family.roles)
    num_layers, rest = divmod(len(shards) - outside, in_layer)
    if rest or num_layers < 1:
        layers = int(told.values.get("num_layers", 0))
        wanted = f" ({outside + layers * in_layer} with {layers} layers)" if layers else ""
        raise MissingTensorError(
            f"{directory}: {len(shards)} shards; {family.title} has {outside} and {in_layer} per "
            f"layer{wanted}, so some are missing or do not belong here; finish the download"
        )
    where = f"{len(shards)} shards"
    try:
        tensors = {
            place.name: _from_shard(family, place, shard)
            for place, shard in zip(leaf_places(family, num_layers), shards, strict=True)
        }
        graph = _checked(family, "shards", str(directory), tensors, "jax", num_layers, where, told)
        return replace(graph, spoken="jax")
    except LayoutError as problem:
        # Shards are told by their numbers alone.
        place = "" if str(problem).startswith(str(directory)) else f"{directory}: "
        joined_by = ", and " if "; " in str(problem) else "; "
        raise LayoutError(
            f"{place}{problem}{joined_by}if shards were renamed, download them again"
        ) from None


def _from_shard(family: Family, place: Place, shard: StoredArray | QuantizedArray) -> Tensor:
    name, read = family.name_in(place, "jax"), family.stored(place, "jax").read
    if isinstance(shard, QuantizedArray):
        if place.role.storage != "packed":
            raise LayoutError(
                f"{shard.weight.path}: int8 with scales, expected plain numbers for {name}"
            )
        tensor = dequantized(name, shard.weight, shard.scales)
    else:
        tensor = stored(name, shard)
    return tensor if read is None or len(tensor.shape) < 2 else read(tensor)


def graph_from_names(
    family: Family,
    container: str,
    source: str,
    arrays: Mapping[str, StoredArray],
    convention: str,
    num_layers: int,
    told: Told,
    shares: Mapping[str, tuple[StoredArray, ...]] = _NO_SHARES,
    factors: Mapping[str, tuple[float, ...]] = _NO_FACTORS,
) -> TensorGraph:
    """Find a family's tensors under the names of a convention; `shares` are those of ranks.

    Tensors are multiplied by the `factors` under their stored names.

    Raises MissingTensorError, and FormatError for tensors that the family does not have.
    """
    left: dict[str, StoredArray | tuple[StoredArray, ...]] = {**arrays, **shares}

    def pull(place: Place, names: Sequence[str]) -> Tensor:
        for name in names:
            if name in left:
                found = left.pop(name)
                if isinstance(found, StoredArray):
                    tensor = stored(name, found)
                    return scaled(tensor, factors[name]) if name in factors else tensor
                return joined(family, place, name, found)
        raise MissingTensorError(f"{source}: tensor {names[0]} is missing")

    def find(place: Place) -> Tensor:
        if not family.stored(place, convention).is_one_expert:
            return pull(place, family.names_in(place, convention))
        experts: list[Tensor] = []
        while (name := family.name_in(place, convention, len(experts))) in left or not experts:
            experts.append(pull(place, [name]))
        return stacked(place.name, tuple(experts))

    tensors, tables = {}, {}
    for place in family.places(num_layers):
        if place.name in family.ties:
            held = next((left[n] for n in family.names_in(place, convention) if n in left), ())
            tables[place.name] = (held,) if isinstance(held, StoredArray) else held
        tensor, read = find(place), family.stored(place, convention).read
        tensors[place.name] = tensor if read is None else read(tensor)
    # A copy of a tied tensor under its own name adds nothing.
    for original, tied in family.ties.items():
        if tied.role.name not in family.names[convention]:
            continue
        copy = left.pop(family.name_in(tied, convention), None)
        if copy is not None:
            heads = (copy,) if isinstance(copy, StoredArray) else copy
            check_tied(family, heads, tables[original])
    if left:
        names = ", ".join(shown(name) for name in sorted(left)[:3])
        raise FormatError(
            source, None, f"{len(left)} tensors that {family.title} does not have: {names}"
        )
    where = f"the tensor names of {source}"
    return _checked(family, container, source, tensors, convention, num_layers, where, told)


def joined(family: Family, place: Place, name: str, shares: Sequence[StoredArray]) -> Tensor:
    """Join what ranks have of a tensor, or of one expert, along the axis that it is split by.

    Raises LayoutError if it has none.
    """
    n_axes = len(shares[0].shape)
    axes = place.role.axes[-n_axes:] if n_axes else ()
    axis = next((n for n, axis in enumerate(axes) if axis in family.split_axes), None)
    if axis is None:
        raise LayoutError(f"{shares[0].path}: {name} is not split by ranks in {family.title}")
    return concatenated(name, tuple(stored(name, share) for share in shares), axis)


def check_tied(family: Family, heads: Sequence[StoredArray], tables: Sequence[StoredArray]) -> None:
    """Raise LayoutError if an output head differs from the embedding table that it is tied to.

    Either may lie in several files, rows after rows. Compares tables up to 64 MiB whole and of
    larger ones 1024 pieces of 64 KiB, so that looking at a checkpoint stays quick. Of heads in
    another type or order, or packed, only the shape is compared.
    """
    first = heads[0]
    problem = f"{first.path}: the output head is not the embedding table, as in {family.title}"
    of_both = (*heads, *tables)
    if any(len(array.shape) != 2 for array in of_both):
        raise LayoutError(problem)
    rows, n_in = (sum(array.shape[0] for array in tables), tables[0].shape[1:])
    if (sum(array.shape[0] for array in heads), first.shape[1:]) != (rows, n_in):
        raise LayoutError(problem)
    if len({(a.dtype, a.axis_strides) for a in of_both}) > 1 or any(a.packed for a in of_both):
        return
    piece, nbytes = 1 << 16, sum(array.nbytes for array in heads)
    with ExitStack() as stack:
        files = {a.path: stack.enter_context(a.path.open("rb")) for a in of_both}

        def read(arrays: Sequence[StoredArray], start: int, count: int) -> bytes:
            raw = b""
            for array in arrays:
                if start < array.nbytes and len(raw) < count:
                    file = files[array.path]
                    file.seek(array.offset + start)
                    raw += file.read(min(count - len(raw), array.nbytes - start))
                start = max(0, start - array.nbytes)
            return raw

        for start in range(0, nbytes, max(piece, nbytes // 1024)):
            count = min(piece, nbytes - start)
            if read(heads, start, count) != read(tables, start, count):
                raise LayoutError(problem)


def _checked(
    family: Family,
    container: str,
    source: str,
    tensors: Mapping[str, Tensor],
    convention: str,
    num_layers: int,
    layers_where: str,
    told: Told,
) -> TensorGraph:
    """Hold the shapes against each other and what was told; put the tensors in order."""
    assert family.solve is not None
    dimensions = Dimensions(family.told_sizes(told.values), told.origin)
    dimensions.check("num_layers", num_layers, layers_where)
    ordered = {}
    for place in family.places(num_layers):
        tensor = tensors[place.name]
        name = family.name_in(place, convention, "*")
        where = f"{first_array(tensor).path.name} ({name})"
        if len(tensor.shape) != len(place.role.axes):
            raise LayoutError(
                f"{where} has {len(tensor.shape)} axes, expected {len(place.role.axes)}: "
                f"{', '.join(place.role.axes)}"
            )
        for axis, size in zip(place.role.axes, tensor.shape, strict=True):
            if size < 1:
                raise LayoutError(f"{axis} is {size} by {where}")
            dimensions.check(axis, size, where)
        renamed = Tensor(place.name, tensor.shape, tensor.dtype, tensor.origin)
        check_readable(renamed, name)
        ordered[place.name] = renamed
    spec = family.solve(dimensions, told.values)
    return TensorGraph(family, source, spec, ordered, container)
