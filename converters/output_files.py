"""Files that appear under their final name only when they are complete.

Each output is written beside its final name as .NAME.partial, flushed to the disk, then renamed;
an earlier output under that name stays untouched until that moment. The partial files are locked,
so two conversions of one output exclude each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from weightcast.converters.outputs import Output
from weightcast.converters.plan import Destination
from weightcast.quant.errors import OutputError

# The files of a directory that a conversion writes, and so may replace.
_OWN_NAMES: Final = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.model|tokenizer_config\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


def partial_path(path: Path) -> Path:
    """Where an output grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


def _replaced_path(path: Path) -> Path:
    """Where an earlier directory lies between the two renames that replace it."""
    return path.with_name(f".{path.name}.replaced")


def foreign_entry(directory: Path) -> Path | None:
    """Find something in a directory that no conversion wrote."""
    for entry in sorted(directory.iterdir()):
        if not _OWN_NAMES.fullmatch(entry.name) or not (entry.is_file() or entry.is_symlink()):
            return entry
    return None


def stale_bytes(output: Output) -> int:
    """Bytes that a killed conversion of the same output left on the disk; they will be reused."""
    paths = [partial_path(file.path) for file in output.files]
    if output.request.kind == "safetensors":
        folder = partial_path(output.request.path)
        paths = list(folder.iterdir()) if folder.is_dir() else []
    return sum(path.lstat().st_blocks * 512 for path in paths if path.is_file())


class OutputFiles:
    """The open files of all outputs; a context that removes them unless `commit` was reached."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._fds: dict[tuple[int, int], int] = {}
        self._turns: dict[tuple[int, int], threading.Lock] = {}
        self._folder_fds: list[int] = []
        # Partial path -> final path, in the order of renaming.
        self._pending: dict[Path, Path] = {}

    def __enter__(self) -> OutputFiles:
        try:
            _allow_open_files(sum(len(output.files) for output in self._outputs))
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
        final = output.request.path
        is_directory = output.request.kind == "safetensors"
        folder = final.parent
        if is_directory:
            folder = self._create_folder(final)
            for name, content in output.companions.items():
                with (folder / name).open("wb") as companion:
                    companion.write(content)
                    companion.flush()
                    os.fsync(companion.fileno())
        for index, file in enumerate(output.files):
            path = folder / file.path.name if is_directory else partial_path(file.path)
            fd = _open_locked(path, os.O_RDWR | os.O_CREAT)
            self._fds[number, index] = fd
            self._turns[number, index] = threading.Lock()
            if not is_directory:
                self._pending[path] = file.path
            os.ftruncate(fd, 0)
            os.ftruncate(fd, file.size)
            _write_all(fd, memoryview(file.header), 0)

    def _create_folder(self, final: Path) -> Path:
        folder = partial_path(final)
        if not final.exists() and _replaced_path(final).is_dir():
            # A conversion was killed between its last two renames: give the earlier output back.
            os.rename(_replaced_path(final), final)
        if not folder.is_symlink():
            folder.mkdir(exist_ok=True)
        self._folder_fds.append(_open_locked(folder, os.O_RDONLY | os.O_DIRECTORY))
        self._pending[folder] = final
        for leftover in folder.iterdir():  # of a run that was killed
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        return folder

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
        done: list[Path] = []
        try:
            for fd in [*self._fds.values(), *self._folder_fds]:
                os.fsync(fd)
            with _signals_held():
                for partial in list(self._pending):
                    _replace(partial, self._pending[partial])
                    done.append(self._pending.pop(partial))
            for parent in {output.request.path.parent for output in self._outputs}:
                _sync_directory(parent)
        except OSError as problem:
            error = _explained(problem, problem.filename2 or problem.filename)
            if done:
                complete = ", ".join(str(path) for path in done)
                error = OutputError(f"{error} (complete before that: {complete})")
            raise error from None

    def _close(self) -> None:
        for path in self._pending:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._pending.clear()
        for fd in [*self._fds.values(), *self._folder_fds]:
            os.close(fd)
        self._fds.clear()
        self._folder_fds.clear()


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files if the outputs need more than it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 128
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _open_locked(path: Path, flags: int) -> int:
    """Open and lock a partial file. Raises OutputError if another conversion has it."""
    while True:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another conversion may have renamed it to its final name.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise OutputError(f"{path}: another conversion is writing this output") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let a signal wait until the renames are through, so that they happen together."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _replace(partial: Path, final: Path) -> None:
    if not partial.is_dir() or not final.is_dir():
        os.replace(partial, final)
        return
    # A directory that is not empty cannot be replaced at once.
    old = _replaced_path(final)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(final, old)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    if problem.errno == errno.EMFILE:
        return OutputError(f"{path}: too many open files; use a larger --split or ulimit -n")
    if problem.errno == errno.ELOOP:
        return OutputError(f"{path}: is a link; remove it")
    return OutputError(f"{path}: cannot be written: {problem.strerror or problem}")
