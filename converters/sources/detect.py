"""Tell what a path holds, and find the spec and the tokenizer beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from weightcast.converters.sources.foreign import absent, no_checkpoint
from weightcast.errors import CheckpointError, MissingTensorError
from weightcast.formats import safetensors, torch_zip
from weightcast.formats.directory import entries, files_ending
from weightcast.formats.foreign import cut_piece, refuse_foreign, spelled, unfinished
from weightcast.formats.foreign.tables import WANTED
from weightcast.formats.gguf import read as gguf
from weightcast.formats.jax import shards
from weightcast.formats.reading import read_small
from weightcast.text import shown, some

TOKENIZER_NAME: Final = "tokenizer.model"
SPEC_NAME: Final = "spec.json"
CHECKPOINTS: Final = "checkpoints"
_MAX_REVISION_BYTES: Final = 1 << 10


def container_of(path: Path) -> str:
    """Say what a path is: "shards", "gguf", "safetensors" or "torch". Raises CheckpointError."""
    try:
        if path.is_file():
            return _container_of_file(path)
        if path.is_dir():
            return _container_of_directory(path)
        raise CheckpointError(f"{spelled(path)}: {absent(path)}")
    except OSError as problem:
        where = problem.filename or path
        raise CheckpointError(f"{where}: cannot be read: {problem.strerror}") from None


def _container_of_file(path: Path) -> str:
    """Say what a file is, by its first bytes or its name."""
    found = unfinished(path) or cut_piece(path)
    if found is not None:
        raise MissingTensorError(f"{path}: {found}")
    with path.open("rb") as file:
        is_gguf = file.read(len(gguf.MAGIC)) == gguf.MAGIC
    if path.suffix == ".safetensors":
        return "safetensors"
    if is_gguf or path.suffix == ".gguf":
        return "gguf"
    if torch_zip.is_torch(path):
        return "torch"
    if shards.is_shard_name(path.name):
        raise CheckpointError(
            f"{path}: one shard of a checkpoint; give its directory: {path.parent}"
        )
    refuse_foreign(path, "checkpoint")
    raise CheckpointError(f"{path}: not a checkpoint; {WANTED['checkpoint'].remedy}")


def _container_of_directory(path: Path) -> str:
    """Say what a directory holds, by the names in it."""
    if checkpoint_directory(path) is not None:
        return "shards"
    if files_ending(path, ".safetensors") or (path / safetensors.INDEX_NAME).is_file():
        return "safetensors"
    if torch_zip.files_in(path) or (path / torch_zip.INDEX_NAME).is_file():
        return "torch"
    raise CheckpointError(f"{path}: {no_checkpoint(path)}")


def checkpoint_directory(path: Path) -> Path | None:
    """Find the directory with the shards: the path itself or the one ckpt-N directory in it.

    The release's instructions put that in `checkpoints` of a clone of its code.
    """
    if shards.has_shards(path):
        return path
    folders = [path, path / CHECKPOINTS]
    found = [d for folder in folders for d in sorted(folder.glob("ckpt-*")) if d.is_dir()]
    inside = [d for d in found if shards.has_shards(d)]
    if len(inside) > 1:
        names = ", ".join(map(str, inside))
        raise CheckpointError(f"{path}: holds several checkpoints ({names}); name one of them")
    return inside[0] if inside else None


def in_hub_cache(path: Path) -> Path:
    """Go from a repository in a model hub's cache to its revision, from an index to its folder.

    Other paths stay. `refs/main` names the revision, or else there is one only. Raises
    CheckpointError.
    """
    if path.name in (safetensors.INDEX_NAME, torch_zip.INDEX_NAME) and path.is_file():
        return path.parent
    snapshots = path / "snapshots"
    if not snapshots.is_dir() or not (path / "blobs").is_dir():
        return path
    there = [entry for entry in entries(snapshots) if entry.is_dir()]
    main = path / "refs" / "main"
    if main.is_file():
        said = read_small(main, _MAX_REVISION_BYTES).decode(errors="replace").strip()
        named = snapshots / said
        if named not in there:
            raise CheckpointError(
                f"{path}: refs/main is {shown(said)}, which is not in snapshots: "
                "finish the download, or name a revision"
            )
        return named
    if not there:
        raise CheckpointError(f"{path}: a cache without a revision; download the model again")
    if len(there) > 1:
        names = some([entry.name for entry in there])
        raise CheckpointError(f"{path}: a cache with several revisions ({names}); name one of them")
    return there[0]


def find_beside(path: Path, name: str) -> Path | None:
    """Look for a file in a directory and beside it."""
    path = Path(os.path.abspath(path))  # "." has neighbours too; links are not followed
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    if CHECKPOINTS in (path.name, path.parent.name):  # of a clone, where its own files lie
        folders.append(path.parent if path.name == CHECKPOINTS else path.parent.parent)
    return next((f / name for f in folders if (f / name).is_file()), None)


def find_spec(directory: Path) -> Path | None:
    """Look for hyperparameters in the directory of the shards and beside it."""
    return find_beside(directory, SPEC_NAME)
