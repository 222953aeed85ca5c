"""Make the tensors of a directory those of a model, by whatever tool it was written.

Wrappers prefix names, buffers are saved beside weights, ranks have a share of a tensor each, and a
packed matrix is several tensors. What is left has the names and shapes that a family knows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weightcast.converters.sources.packed import join_packed, scales_of_activations
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.text import count, some

# Of DistributedDataParallel, torch.compile, and peft; they can be nested.
_PREFIXES: Final = ("module.", "_orig_mod.", "base_model.model.")
# What old versions of transformers save, and config.json tells.
_BUFFERS: Final = ("rotary_emb.inv_freq",)
# lmzheng/grok-1 and xai-org/grok-2: a file for each rank, and one of what all have.
_RANK: Final = re.compile(r".*-TP-(\d{3}|common)\.safetensors")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, those of ranks as their shares in order; notes say what was left out."""

    arrays: Mapping[str, StoredArray]
    shares: Mapping[str, tuple[StoredArray, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that tensors are in; of a packed matrix each part can be in another."""
        found = {array.path for array in self.arrays.values()}
        for array in self.arrays.values():
            if array.packed is not None:
                found.update(part.path for part in array.packed.parts.values())
        return tuple(sorted(found.union(a.path for all_of in self.shares.values() for a in all_of)))


def weights_of(source: Path, config_file: Path, stored: Mapping[str, StoredArray]) -> Weights:
    """Give tensors the names that they have without wrappers, and join packed matrices.

    Raises CheckpointError for what is packed and cannot be read.
    """
    notes = []
    arrays, prefix = _without_prefixes(stored)
    if prefix:
        notes.append(f"names of tensors without {prefix!r}, which a wrapper added")
    buffers = [name for name in arrays if name.endswith(_BUFFERS)]
    if buffers:
        notes.append(f"left out: {count(len(buffers), 'buffer')} of rotary positions")
        arrays = {name: array for name, array in arrays.items() if name not in buffers}
    joined = join_packed(source, config_file, arrays)
    scales = scales_of_activations(arrays, joined)
    if scales:
        notes.append(f"left out: {count(len(scales), 'scale')} of activations")
    return Weights(joined, notes=tuple(notes))


def _without_prefixes(
    stored: Mapping[str, StoredArray],
) -> tuple[dict[str, StoredArray], str]:
    """Take wrappers' prefixes off the names, where all have them."""
    arrays, taken = dict(stored), ""
    while arrays:
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in arrays)), None)
        if prefix is None:
            break
        taken += prefix
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays, taken


def is_of_ranks(file: Path) -> bool:
    """Tell whether a file has the share of one rank, or what all of them have."""
    return _RANK.fullmatch(file.name) is not None


def join_ranks(by_file: Mapping[Path, Mapping[str, StoredArray]]) -> Weights:
    """Bring the shares of ranks together, in the order of ranks.

    Raises MissingTensorError where a rank is missing or lacks a tensor, LayoutError where ranks
    differ, or a tensor is of one rank and of all.
    """
    arrays: dict[str, StoredArray] = {}
    ranks: dict[int, Path] = {}
    for file, found in by_file.items():
        match = _RANK.fullmatch(file.name)
        assert match is not None
        if match[1] != "common":
            ranks[int(match[1])] = file
            continue
        twice = sorted(arrays.keys() & found.keys())
        if twice:
            raise LayoutError(f"{file}: {twice[0]} is also in {arrays[twice[0]].path.name}")
        arrays |= found
    missing = sorted(set(range(max(ranks, default=-1) + 1)) - ranks.keys())
    if missing:
        listed = some([f"{rank:03}" for rank in missing])
        raise MissingTensorError(f"{ranks[max(ranks)]}: there is no file of rank {listed}")
    shares: dict[str, list[StoredArray]] = defaultdict(list)
    for rank in sorted(ranks):
        file = ranks[rank]
        for name, array in by_file[file].items():
            shares[name].append(array)
    for name, of_ranks in shares.items():
        place = f"{of_ranks[0].path}: {name}"
        if name in arrays:
            raise LayoutError(f"{place} is a rank's, and also in {arrays[name].path.name}")
        if len(of_ranks) != len(ranks):
            raise MissingTensorError(f"{place} is of {len(of_ranks)} ranks, not of {len(ranks)}")
        if len({(a.dtype, a.shape) for a in of_ranks}) > 1:
            raise LayoutError(f"{place} has other types or shapes in other ranks")
    note = f"joined from the files of {count(len(ranks), 'rank')}: {count(len(shares), 'tensor')}"
    return Weights(arrays, {name: tuple(found) for name, found in shares.items()}, (note,))
