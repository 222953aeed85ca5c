"""A checkpoint directory of numbered shards: tensor00000_000, tensor00001_000, ...

The first number counts tensors, the second the hosts that a tensor was split over; the release
has one host. Source: checkpoint.py in xai-org/grok-1.
"""

from __future__ import annotations

import re
from itertools import count, islice
from pathlib import Path

from weightcast.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.directory import entries
from weightcast.formats.foreign import require_file
from weightcast.formats.foreign.downloads import is_unfinished
from weightcast.formats.jax.arrays import QuantizedArray, read_pickle

_SHARD = re.compile(r"tensor([0-9]{5,})_([0-9]{3,})")
# What may lie beside the shards without being one of them: texts, checksums, what downloads with.
_COMPANIONS = re.compile(
    r"\..*|.*\.(json|npz|md|txt|model|torrent|magnet|log|sh|py)|LICENSE.*|README.*|USE_POLICY.*"
    r"|.*\.(md5|sha1|sha256|sha512)(sums)?|(md5|sha1|sha256|sha512)(sums)?|SHA256SUMS.*"
    r"|wget-log.*|nohup\.out|__pycache__|_____padding_file_.*",
    re.IGNORECASE,
)


def has_shards(directory: Path) -> bool:
    """Tell whether a directory holds at least one file named like a shard, or part of one."""
    return any(_SHARD.match(entry.name) for entry in directory.iterdir())


def is_shard_name(name: str) -> bool:
    """Tell whether a file is named like a shard of any host."""
    return _SHARD.fullmatch(name) is not None


def list_shards(directory: Path) -> list[Path]:
    """List the shards in order, without opening them.

    Raises MissingTensorError for gaps in the numbering and for downloads in progress, FormatError
    for files that are not part of a checkpoint.
    """
    numbered: dict[int, Path] = {}
    for entry in entries(directory):
        match = _SHARD.fullmatch(entry.name)
        if is_unfinished(entry.name):
            raise MissingTensorError(
                f"{entry}: a download is still in progress; wait until it has finished "
                "(or delete this file if it was given up)"
            )
        if match is None:
            if not _COMPANIONS.fullmatch(entry.name):
                raise FormatError(
                    entry, None, "not a shard; move it out of the checkpoint directory"
                )
            continue
        if int(match[2]) != 0:
            raise FormatError(entry, None, "a checkpoint split over several hosts is not supported")
        if not entry.is_file():
            require_file(entry)
        number = int(match[1])
        if number in numbered:
            raise FormatError(entry, None, f"the same tensor as {numbered[number].name}")
        numbered[number] = entry
    if not numbered:
        raise MissingTensorError(f"{directory}: no shards named tensor00000_000 and so on")
    n_missing = max(numbered) + 1 - len(numbered)
    if n_missing:
        # Only as many as are listed: the largest number may be anything.
        missing = islice((n for n in count() if n not in numbered), min(n_missing, 5))
        listed = ", ".join(f"tensor{n:05}_000" for n in missing)
        more = f" and {n_missing - 5} more" if n_missing > 5 else ""
        them = "it" if n_missing == 1 else "them"
        raise MissingTensorError(f"{directory}: missing {listed}{more}; download {them} again")
    return [numbered[n] for n in sorted(numbered)]


def shards_there(directory: Path) -> list[Path]:
    """List files that are named like shards of one host, whatever else is wrong."""
    return [e for e in entries(directory) if _SHARD.fullmatch(e.name) and e.is_file()]


def read_shards(directory: Path) -> list[StoredArray | QuantizedArray]:
    """Describe every shard of a directory, in order; no payload is loaded."""
    shards = []
    for path in list_shards(directory):
        try:
            shards.append(read_pickle(path))
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    return shards
