"""Tell what a path holds, and find the spec and the tokenizer beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from weightcast.errors import CheckpointError, MissingTensorError
from weightcast.formats import peft, safetensors, torch_zip
from weightcast.formats.directory import beside, entries, files_ending
from weightcast.formats.foreign.downloads import is_cut_piece, surely_unfinished
from weightcast.formats.gguf import read as gguf
from weightcast.formats.jax import shards
from weightcast.formats.reading import read_small
from weightcast.formats.split import SPLIT_NAME
from weightcast.text import shown, some

TOKENIZER_NAME: Final = "tokenizer.model"
SPEC_NAME: Final = "spec.json"
CHECKPOINTS: Final = "checkpoints"
_MAX_REVISION_BYTES: Final = 1 << 10


def container_of(path: Path) -> str:
    """Say what a path is: "shards", "gguf", "safetensors", "torch" or "peft".

    Raises CheckpointError.
    """
    try:
        if path.is_file():
            found = _container_of_file(path)
        else:
            found = _container_of_directory(path) if path.is_dir() else None
        if found is None:
            raise no_source(path)
    except OSError as problem:
        raise unreadable(path, problem) from None
    return found


def _container_of_file(path: Path) -> str | None:
    """Say what a file is, by its first bytes or its name; None if of no kind that is read."""
    found = surely_unfinished(path)
    if found is not None:
        raise MissingTensorError(f"{path}: {found}")
    with path.open("rb") as file:
        is_gguf = file.read(len(gguf.MAGIC)) == gguf.MAGIC
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix == ".gguf" or (is_gguf and not is_cut_piece(path)):
        return "gguf"
    return "torch" if torch_zip.is_torch(path) else None


def _container_of_directory(path: Path) -> str | None:
    """Say what a directory holds, by the names in it; None if nothing that is read."""
    if checkpoint_directory(path) is not None:
        return "shards"
    if peft.is_adapter(path):
        return "peft"
    if files_ending(path, ".safetensors") or (path / safetensors.INDEX_NAME).is_file():
        return "safetensors"
    if torch_zip.files_in(path) or (path / torch_zip.INDEX_NAME).is_file():
        return "torch"
    return None


def unreadable(path: Path, problem: OSError) -> CheckpointError:
    """Make the error for a source that the system does not let one read."""
    from weightcast.formats.foreign.missing import closed

    found = closed(path) if problem.errno == errno.EACCES else None
    if found is not None:
        return CheckpointError(f"{path}: {found}")
    return CheckpointError(f"{problem.filename or path}: cannot be read: {problem.strerror}")


def no_source(path: Path) -> CheckpointError:
    """Make the error for a path that holds nothing that is read."""
    from weightcast.converters.sources.foreign import why_no_source

    is_there = os.path.lexists(path)
    return (CheckpointError if is_there else MissingTensorError)(why_no_source(path))


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


def resolve_source(path: Path) -> Path:
    """Go from what somebody names to what is read.

    That is of a repository in a model hub's cache its revision, which `refs/main` names unless
    there is one only; of an index and of an adapter's files the folder; of a split GGUF file, under
    the name that its parts go by, the first part. Other paths stay. Raises CheckpointError.
    """
    try:
        if path.suffix == ".gguf" and path.parent.is_dir() and not os.path.lexists(path):
            return _first_part(path)
        if path.name in (safetensors.INDEX_NAME, torch_zip.INDEX_NAME) and path.is_file():
            return path.parent
        if path.name in peft.NAMES and path.is_file() and peft.is_adapter(path.parent):
            return path.parent
        if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
            return _revision(path)
    except OSError as problem:
        raise unreadable(path, problem) from None
    return path


def _first_part(path: Path) -> Path:
    """Find the first part of a split GGUF file that is there; the path itself if there is none.

    Raises CheckpointError if parts of several splits are there.
    """
    matches = (SPLIT_NAME.fullmatch(entry.name) for entry in beside(path.parent, 0))
    parts = sorted(match[0] for match in matches if match and f"{match[1]}.gguf" == path.name)
    counts = {name.rpartition("-of-")[2]: name for name in reversed(parts)}
    if len(counts) > 1:
        names = some(sorted(counts.values()))
        raise CheckpointError(f"{path}: split in several ways ({names}); name one of them")
    return path.with_name(parts[0]) if parts else path


def _revision(path: Path) -> Path:
    """Find the revision of a repository in a model hub's cache. Raises CheckpointError."""
    snapshots = path / "snapshots"
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
