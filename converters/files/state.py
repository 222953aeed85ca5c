"""Files in the state that they had at some moment, and whether they still are what they were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightcast.errors import ChangedError, CheckpointError, MissingTensorError


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a file from one that took its name, and from what it becomes when written to."""

    # Not the device too: the same file of a network has another one on each machine, where values
    # that were pickled may go.
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Look a file up. Raises CheckpointError if it is not there."""
        try:
            status = os.stat(path)
        except FileNotFoundError as problem:
            raise MissingTensorError(f"{path}: cannot be read: {problem.strerror}") from None
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FileStates:
    """Files as they were when they were opened."""

    states: Mapping[Path, FileState]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> FileStates:
        """Look files up. Raises CheckpointError if one is not there."""
        return cls({path: FileState.of(path) for path in sorted(paths)})

    def check(self, paths: Iterable[Path] | None = None) -> None:
        """Raise ChangedError if some of the files, or all, are not what they were."""
        for path in self.states if paths is None else paths:
            if FileState.of(path) != self.states[path]:
                raise ChangedError(f"{path}: was changed since it was opened; open it again")
