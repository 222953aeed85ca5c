"""Files that appear under their final name only when they are complete.

Each output is written beside its final name as .NAME.partial, flushed to the disk, then renamed;
an earlier output under that name stays untouched until that moment. The partial files are locked,
so two conversions of one output exclude each other.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters import bundle_files
from weightcast.converters.held import signals_held
from weightcast.converters.outputs import Output
from weightcast.converters.plan import Destination
from weightcast.quant.errors import OutputError

# The files of a directory that a conversion writes, and so may replace.
_OWN_NAMES: Final = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.model|tokenizer(_config)?\.json"
    r"|(configuration|modeling)_grok1\.py|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
# Of a bundle that was being written when its conversion was killed.
_OWN_PARTIALS: Final = {f".{name}.partial" for name in bundle_files.NAMES}


def partial_path(path: Path) -> Path:
    """Where an output grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


def replaced_path(path: Path) -> Path:
    """Where an earlier directory lies for a moment, on file systems that cannot exchange two."""
    return path.with_name(f".{path.name}.replaced")


def foreign_entry(directory: Path) -> Path | None:
    """Find something in a directory that no conversion wrote, or that was edited in a bundle."""
    bundle = set(bundle_files.written_before(bundle_files.BundlePaths(directory)))
    for entry in sorted(directory.iterdir()):
        is_own = _OWN_NAMES.fullmatch(entry.name) or entry.name in _OWN_PARTIALS or entry in bundle
        if not is_own or not (entry.is_file() or entry.is_symlink()):
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
        path: Path | None = None
        try:
            _allow_open_files(sum(len(output.files) for output in self._outputs))
            for number, output in enumerate(self._outputs):
                path = output.request.path
                self._create(number, output)
        except OSError as problem:
            self._close()
            raise explained(problem, problem.filename or path) from None
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
        for index, offset, content in output.constants:
            _write_all(self._fds[number, index], memoryview(content), offset)

    def _create_folder(self, final: Path) -> Path:
        folder = partial_path(final)
        if replaced_path(final).exists():
            raise OutputError(
                f"{replaced_path(final)}: an earlier output that a killed run had put aside; "
                "rename or delete it"
            )
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
        runs = np.frombuffer(data, np.uint8).reshape(1, -1)
        self.write_runs(destination.output, destination.file, runs, offset, 0)

    def write_runs(
        self, output: int, file: int, runs: NDArray[np.uint8], offset: int, stride: int
    ) -> None:
        """Write runs of bytes [n, run_bytes], `stride` apart from an offset on."""
        if stride == runs.shape[1] and runs.flags.c_contiguous:
            runs = runs.reshape(1, -1)
        key = output, file
        try:
            # The kernel lets one writer at a time into a file, and the others spin until then.
            with self._turns[key]:
                for number, run in enumerate(runs):
                    _write_all(self._fds[key], run.data, offset + number * stride)
        except OSError as problem:
            raise explained(problem, self._outputs[output].files[file].path) from None

    def commit(self) -> None:
        """Flush everything to the disk, then give each output its name. Raises OutputError."""
        done: list[Path] = []
        path: Path | None = None
        try:
            for (number, index), fd in self._fds.items():
                path = self._outputs[number].files[index].path
                os.fsync(fd)
            for fd in self._folder_fds:
                os.fsync(fd)
            earlier = [path for output in self._outputs for path in _earlier_bundle(output)]
            with signals_held():
                for partial, path in list(self._pending.items()):
                    _replace(partial, path)
                    done.append(self._pending.pop(partial))
                for path in earlier:
                    path.unlink(missing_ok=True)
            for parent in {output.request.path.parent for output in self._outputs}:
                sync_directory(parent)
        except (OSError, OutputError) as problem:
            error = problem if isinstance(problem, OutputError) else explained(problem, path)
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


def _earlier_bundle(output: Output) -> list[Path]:
    """The bundle of what an output replaces; that of a directory goes with the directory."""
    if output.request.kind == "safetensors":
        return []
    return bundle_files.written_before(
        bundle_files.bundle_paths(output.request.path, output.request.kind)
    )


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


def _replace(partial: Path, final: Path) -> None:
    if not partial.is_dir() or not final.is_dir():
        os.replace(partial, final)
        return
    foreign = foreign_entry(final)
    if foreign is not None:
        raise OutputError(f"{foreign}: appeared during the conversion; name another directory")
    # A directory that is not empty cannot be replaced at once, but two can change places.
    if _exchange(partial, final):
        shutil.rmtree(partial, ignore_errors=True)
        return
    old = replaced_path(final)
    os.rename(final, old)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places at once; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_working_directory, exchange = -100, 2
    status = libc.renameat2(
        at_working_directory, os.fsencode(a), at_working_directory, os.fsencode(b), exchange
    )
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(b))


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def explained(problem: OSError, path: object) -> OutputError:
    """What went wrong while a file was written, and the remedy."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: the disk is full; free some space and run the command again")
    if problem.errno == errno.EFBIG:
        return OutputError(
            f"{path}: the file system, or ulimit -f, does not allow files this large; use --split"
        )
    if problem.errno == errno.EMFILE:
        return OutputError(f"{path}: too many open files; use a larger --split or ulimit -n")
    if problem.errno == errno.ELOOP:
        return OutputError(f"{path}: is a link; remove it")
    return OutputError(f"{path}: cannot be written: {problem.strerror or problem}")
