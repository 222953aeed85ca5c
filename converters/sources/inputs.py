"""Files that a conversion reads, in the state they had when it was planned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weightcast.converters.files import Blank, find_blanks
from weightcast.converters.graph import TensorGraph, stored_files, windows
from weightcast.converters.sources.containers import CONTAINERS, container
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import ChangedError, CheckpointError, MissingTensorError
from weightcast.text import count, option, spoken

SOURCE: Final = "source"
CHANGED: Final = "was changed while it was read; convert again when nothing writes to it"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is read: its role, and its size and time of change (ns) before that."""

    path: Path
    role: str
    size: int
    mtime_ns: int

    def check(self, status: os.stat_result, changed: str = CHANGED) -> None:
        """Raise ChangedError, which says `changed`, if the file is no longer what it was."""
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ChangedError(f"{self.path}: {changed}")


@dataclass(frozen=True)
class Inputs:
    """The source of a conversion, all files that it reads, and its options.

    `blanks` are parts of its shards that were never written.
    """

    source: Path
    files: tuple[InputFile, ...] = field(repr=False)
    options: ConvertOptions = field(default_factory=ConvertOptions)
    blanks: tuple[Blank, ...] = field(default=(), repr=False)

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    def check(self, changed: str = CHANGED) -> None:
        """Raise ChangedError if a file is no longer what it was, CheckpointError if it is gone."""
        for file in self.files:
            try:
                file.check(file.path.stat(), changed)
            except FileNotFoundError as problem:
                raise MissingTensorError(f"{file.path}: vanished ({problem.strerror})") from None
            except OSError as problem:
                # Perhaps for a moment only, as on a network.
                raise CheckpointError(f"{file.path}: vanished ({problem.strerror})") from None

    def check_blanks(self) -> None:
        """Raise MissingTensorError if parts were never written, unless that is allowed."""
        note = unwritten_note(self.blanks)
        if note is not None and not self.options.allow_holes:
            source = str(self.source)
            check = spoken(f"weightcast verify {source}", f"weightcast.verify({source!r})")
            raise MissingTensorError(
                f"{note}: finish the download, or check it ({check}); "
                f"{option('allow_holes', True)} converts it as it is"
            )

    @property
    def source_name(self) -> str:
        """The name of the source without its folder; of a hub's cache, its name on the hub."""
        path = Path(os.path.abspath(self.source))
        found = hub_repository(path)
        return path.name if found is None else "/".join((found[0], *found[1].parts))

    @property
    def extras(self) -> dict[str, InputFile]:
        """The files beside the source, by their role."""
        return {file.role: file for file in self.files if file.role != SOURCE}


def hub_repository(path: Path) -> tuple[str, Path] | None:
    """Tell the repository of a path in a model hub's cache, and the path in it; None elsewhere.

    There a repository's files lie in models--OWNER--NAME/snapshots/REVISION.
    """
    for folder in (path, *path.parents):
        kind, _, name = folder.parent.parent.name.partition("--")
        if folder.parent.name == "snapshots" and kind == "models" and name:
            return name.replace("--", "/"), path.relative_to(folder)
    return None


def list_inputs(
    source: Path, graph: TensorGraph, beside: Mapping[str, str | Path | None]
) -> tuple[InputFile, ...]:
    """List every file that a conversion of `graph` reads, with its state at this moment.

    `beside` are files beside the source by their role, such as an importance matrix; a spec that
    was found beside the source is added. Raises CheckpointError for a file that vanished.
    """
    roles = {path: SOURCE for path in sorted(source_files(graph))}
    holder = container(source)
    roles.update(dict.fromkeys(holder.beside(source), SOURCE))
    found = dict(beside)
    if found.get("spec") is None:
        found["spec"] = holder.find_spec(source)
    roles.update({Path(path): role for role, path in found.items() if path is not None})
    return tuple(_input(path, role) for path, role in roles.items())


def find_unwritten(graph: TensorGraph) -> tuple[Blank, ...]:
    """Find holes and zeros in the shards of a checkpoint, by a few samples of each.

    Other files can be sparse for good reasons, and are not looked at. Raises CheckpointError.
    """
    if not CONTAINERS[graph.container].is_never_blank:
        return ()
    arrays = (view.array for tensor in graph.values() for view in windows(tensor))
    runs = {(a.path, a.offset, a.offset + a.nbytes) for a in arrays if a.text is None}
    return tuple(blank for run in sorted(runs) for blank in find_blanks(*run))


def unwritten_note(blanks: Sequence[Blank]) -> str | None:
    """Say that parts of shards were never written; None if there are none."""
    if not blanks:
        return None
    shards = count(len({blank.path for blank in blanks}), "shard")
    return f"{shards} with parts that were never written, such as {blanks[0]}"


def source_files(graph: TensorGraph) -> set[Path]:
    """List the files that hold a model's tensors."""
    paths = set(graph.files)
    for tensor in graph.values():
        paths.update(stored_files(tensor))
    return paths


def _input(path: Path, role: str) -> InputFile:
    try:
        status = path.stat()
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    return InputFile(path, role, status.st_size, status.st_mtime_ns)


def without_folders(text: str, files: Iterable[InputFile]) -> str:
    """Replace the paths of files in a text by their names."""
    for path in sorted((str(file.path) for file in files), key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    return text
