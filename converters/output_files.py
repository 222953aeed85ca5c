"""Files that appear under their final name only when they are complete.

Each output is written beside its final name as .NAME.partial, flushed to the disk, then renamed;
an earlier output under that name stays untouched until that moment.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from weightcast.converters.plan import Destination, Output
from weightcast.quant.errors import OutputError


def partial_path(path: Path) -> Path:
    """Where an output grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


class OutputFiles:
    """The open files of all outputs; a context that removes them unless `commit` was reached."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._fds: dict[tuple[int, int], int] = {}
        self._locks: list[int] = []
        self._turns: dict[tuple[int, int], threading.Lock] = {}
        # Partial path -> final path, in the order of renaming.
        self._pending: dict[Path, Path] = {}

    def __enter__(self) -> OutputFiles:
        try:
            for number, output in enumerate(self._outputs):
                self._create(number, output)
        except OSError as problem:
            self._close()
            raise _explained(problem, problem.filename) from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _create(self, number: int, output: Output) -> None:
        is_directory = output.request.kind == "safetensors"
        if is_directory:
            folder = partial_path(output.request.path)
            folder.mkdir(exist_ok=True)
            self._lock(os.open(folder, os.O_RDONLY), folder)
            self._pending[folder] = output.request.path
            for leftover in folder.iterdir():  # of a run that was killed
                leftover.unlink()
            for name, content in output.companions.items():
                (folder / name).write_bytes(content)
        for index, file in enumerate(output.files):
            path = folder / file.path.name if is_directory else partial_path(file.path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._fds[number, index] = fd
            self._turns[number, index] = threading.Lock()
            if not is_directory:
                self._lock(fd, path)
                self._pending[path] = file.path
            os.ftruncate(fd, 0)
            os.ftruncate(fd, file.size)
            _write_all(fd, memoryview(file.header), 0)

    def _lock(self, fd: int, path: Path) -> None:
        if fd not in self._fds.values():
            self._locks.append(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path}: another conversion is writing this output") from None

    def write(self, destination: Destination, data: memoryview, offset: int) -> None:
        """Write bytes at an offset of a file. Raises OutputError."""
        key = destination.output, destination.file
        try:
            # The kernel lets one writer at a time into a file, and the others spin until then.
            with self._turns[key]:
                _write_all(self._fds[key], data, offset)
        except OSError as problem:
            path = self._outputs[destination.output].files[destination.file].path
            raise _explained(problem, path) from None

    def commit(self) -> None:
        """Flush everything to the disk, then give each output its name. Raises OutputError."""
        try:
            for fd in self._fds.values():
                os.fsync(fd)
            for partial in [path for path in self._pending if path.is_dir()]:
                _sync_directory(partial)
            for partial in list(self._pending):
                _replace(partial, self._pending[partial])
                del self._pending[partial]
            for parent in {output.request.path.parent for output in self._outputs}:
                _sync_directory(parent)
        except OSError as problem:
            raise _explained(problem, problem.filename2 or problem.filename) from None

    def _close(self) -> None:
        for path in self._pending:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._pending.clear()
        for fd in [*self._fds.values(), *self._locks]:
            os.close(fd)
        self._fds.clear()
        self._locks.clear()


def _replace(partial: Path, final: Path) -> None:
    if not partial.is_dir() or not final.is_dir():
        os.replace(partial, final)
        return
    # A directory that is not empty cannot be replaced at once.
    old = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(final, old)
    os.rename(partial, final)
    shutil.rmtree(old)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _explained(problem: OSError, path: object) -> OutputError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: the disk is full; free some space and run the command again")
    return OutputError(f"{path}: cannot be written: {problem.strerror}")
