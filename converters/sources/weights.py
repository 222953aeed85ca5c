"""Make the tensors of a directory those of a model, by whatever tool it was written.

Wrappers prefix names, buffers are saved beside weights, ranks have a share of a tensor each, and a
packed matrix is several tensors. What is left has the names and shapes that a family knows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weightcast.converters.sources.packed import join_packed, scales_of_activations
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.recognize import is_part
from weightcast.formats.packed.scaled_nvfp4 import split_global_scale
from weightcast.text import count, shown, some

# Of DistributedDataParallel, torch.compile, and peft; they can be nested.
_PREFIXES: Final = ("module.", "_orig_mod.", "base_model.model.")
_MOST_NESTED: Final = 8
# What old versions of transformers save, and config.json tells.
_BUFFERS: Final = ("rotary_emb.inv_freq",)
# Files of a rank, which has one or several, and files of what all ranks have.
_RANK: Final = re.compile(r".*-TP-(\d{3}|common)\.safetensors")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, those of ranks as their shares in order; notes say what was left out.

    `files` are all that were read, also those of tensors that were left out. Arrays are to be
    multiplied by the `factors` under their names.
    """

    arrays: Mapping[str, StoredArray]
    shares: Mapping[str, tuple[StoredArray, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self.arrays) | frozenset(self.shares)


def weights_of(
    source: Path, config_file: Path, by_file: Mapping[Path, Mapping[str, StoredArray]]
) -> Weights:
    """Join ranks and packed matrices, and give tensors the names that they have without wrappers.

    A tensor is in one file only, but for shares of ranks. Raises CheckpointError for ranks that do
    not go together, and for what is packed and cannot be read.
    """
    notes = []
    if any(map(is_of_ranks, by_file)):
        stored, shares, note = _join_ranks(by_file)
        packed = next(filter(is_part, shares), None)
        if packed is not None:
            raise LayoutError(
                f"{source}: {shown(packed)}: packed weights of ranks are not read; "
                "convert the model that they were made of"
            )
        notes.append(note)
    else:
        stored, shares = {n: a for arrays in by_file.values() for n, a in arrays.items()}, {}
    prefix = _prefix([*stored, *shares])
    if prefix:
        notes.append(f"names of tensors without {prefix!r}, which a wrapper added")
    arrays = {name.removeprefix(prefix): array for name, array in stored.items()}
    kept = {name: array for name, array in arrays.items() if not name.endswith(_BUFFERS)}
    if len(kept) < len(arrays):
        n_buffers = count(len(arrays) - len(kept), "buffer")
        notes.append(f"left out: {n_buffers} of rotary positions")
    shares = {name.removeprefix(prefix): found for name, found in shares.items()}
    shares = {name: found for name, found in shares.items() if not name.endswith(_BUFFERS)}
    joined = join_packed(source, config_file, kept)
    notes += left_out(len(scales_of_activations(kept, joined)))
    factors: dict[str, tuple[float, ...]] = {}
    for name, array in joined.items():
        if (split := split_global_scale(array)) is not None:
            joined[name], factor = split
            factors[name] = (factor,)
    return Weights(joined, shares, tuple(notes), tuple(sorted(by_file)), factors)


def left_out(scales: int) -> tuple[str, ...]:
    """Note that scales of activations are no part of what is read."""
    return (f"left out: {count(scales, 'scale')} of activations",) if scales else ()


def _prefix(names: Collection[str]) -> str:
    """Tell what wrappers put before the names, if it is before all of them."""
    taken = ""
    for _ in range(_MOST_NESTED if names else 0):
        tried = (taken + prefix for prefix in _PREFIXES)
        longer = next((p for p in tried if all(name.startswith(p) for name in names)), None)
        if longer is None:
            break
        taken = longer
    return taken


def is_of_ranks(file: Path) -> bool:
    """Tell whether a file has the share of one rank, or what all of them have."""
    return _RANK.fullmatch(file.name) is not None


def _join_ranks(
    by_file: Mapping[Path, Mapping[str, StoredArray]],
) -> tuple[dict[str, StoredArray], dict[str, tuple[StoredArray, ...]], str]:
    """Bring the shares of ranks together, in the order of ranks; also what all have, and a note.

    Raises MissingTensorError where a rank is missing or lacks a tensor, LayoutError where ranks
    differ, a tensor is there twice, or a file is of no rank.
    """
    common: dict[str, StoredArray] = {}
    ranks: dict[int, dict[str, StoredArray]] = defaultdict(dict)
    for file, found in by_file.items():
        match = _RANK.fullmatch(file.name)
        if match is None:
            raise LayoutError(f"{file}: of no rank, but files beside it are; move it away")
        own = common if match[1] == "common" else ranks[int(match[1])]
        for name, array in found.items():
            if name in own:
                raise LayoutError(f"{file}: {shown(name)} is also in {own[name].path.name}")
            own[name] = array
    missing = sorted(set(range(max(ranks, default=-1) + 1)) - ranks.keys())
    if missing:
        listed, folder = some([f"{rank:03}" for rank in missing]), next(iter(by_file)).parent
        raise MissingTensorError(f"{folder}: there is no file of rank {listed}")
    shares: dict[str, list[StoredArray]] = defaultdict(list)
    for rank in sorted(ranks):
        for name, array in ranks[rank].items():
            shares[name].append(array)
    for name, of_ranks in shares.items():
        place = f"{of_ranks[0].path}: {shown(name)}"
        if name in common:
            raise LayoutError(f"{place} is a rank's, and also in {common[name].path.name}")
        if len(of_ranks) != len(ranks):
            raise MissingTensorError(f"{place} is of {len(of_ranks)} ranks, not of {len(ranks)}")
        if len({(array.dtype, array.shape) for array in of_ranks}) > 1:
            raise LayoutError(f"{place} has other types or shapes in other ranks")
    note = f"joined from the files of {count(len(ranks), 'rank')}: {count(len(shares), 'tensor')}"
    return common, {name: tuple(found) for name, found in shares.items()}, note
