"""Files that appear under their final name only when they are complete.

Each output is written beside its final name as .NAME.partial, flushed to the disk, then renamed;
an earlier output under that name stays untouched until that moment. A journal beside it says what
is finished, for a run that goes on. It and the partial files are locked, so two conversions of one
output exclude each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from weightcast.converters.files import (
    allocate,
    allow_open_files,
    bundle_names,
    defer_signals,
    exchange,
    explained,
    ignore_signals,
    journal_path,
    open_locked,
    page_cache,
    partial_path,
    replaced_path,
    sync_directory,
    write_all,
)
from weightcast.converters.output.fingerprint import changes, file_names, fingerprint
from weightcast.converters.output.journal import (
    Contents,
    FinishedRows,
    Journal,
    MatrixRecord,
    Write,
    read_journal,
)
from weightcast.converters.plan import Destination, Plan
from weightcast.converters.targets import TARGETS
from weightcast.converters.targets.target import Output, Request, Target
from weightcast.errors import ChangedError, FormatError, LayoutError, OutputError, TakenError
from weightcast.formats.directory import is_trace
from weightcast.text import option

# Of a bundle that was being written when its conversion was killed.
_OWN_PARTIALS: Final = {f".{name}.partial" for name in bundle_names.NAMES}


def foreign_entry(directory: Path, target: Target) -> Path | None:
    """Find something in a directory that no conversion wrote, or that was edited in a bundle."""
    bundle = set(bundle_names.written_before(bundle_names.BundlePaths(directory)))
    for entry in sorted(directory.iterdir()):
        if is_trace(entry.name) and entry.is_file():
            continue
        is_own = target.owns(entry.name) or entry.name in _OWN_PARTIALS or entry in bundle
        if not is_own or not (entry.is_file() or entry.is_symlink()):
            return entry
    return None


def grown_paths(output: Output) -> list[Path]:
    """List the paths at which an output's files grow, or grew in an interrupted run."""
    return [*_partial_paths(output), *_other_parts(output)]


def grown_path(output: Output, path: Path) -> Path:
    """Name the growing file that will be `path` in the end."""
    return _grown(output.request.path, path.name, is_directory=output.request.target.is_directory)


def _grown(output: Path, name: str, *, is_directory: bool) -> Path:
    """Name the growing file of an output that will be called `name`."""
    return partial_path(output) / name if is_directory else partial_path(output.with_name(name))


def _partial_paths(output: Output) -> list[Path]:
    return [grown_path(output, file.path) for file in output.files]


def _other_parts(output: Output) -> list[Path]:
    """List the grown files that the journal names and this run does not, as by another --split."""
    path, target = output.request.path, output.request.target
    noted = read_journal(journal_path(path), fingerprint_only=True)
    names = file_names(noted.fingerprint or {})
    own = [name for name in names if target.owns_part(path, name)]
    found = {_grown(path, name, is_directory=target.is_directory) for name in own}
    return sorted(found.difference(_partial_paths(output)))


def noted_paths(output: Path, noted: Contents) -> list[Path]:
    """List where an output grew, in one piece or in parts, by what its journal notes."""
    names = file_names(noted.fingerprint or {})
    files = [target for target in TARGETS.values() if not target.is_directory]
    parts = {name for name in names for target in files if target.owns_part(output, name)}
    others = (partial_path(output.with_name(name)) for name in sorted(parts - {output.name}))
    return [partial_path(output), *others]


class OutputFiles:
    """The open files of all outputs; a context that removes them unless `commit` was reached.

    What an interrupted run had finished is kept, and added to; so is what this run finished, if
    another could go on with it. With `resume` off it starts over.
    """

    def __init__(self, plan: Plan, *, resume: bool = True) -> None:
        self._plan = plan
        self._outputs = plan.outputs
        self._resume = resume
        self._fds: dict[tuple[int, int], int] = {}
        self._turns: dict[tuple[int, int], threading.Lock] = {}
        self._folder_fds: list[int] = []
        self._journals: dict[int, Journal] = {}
        # Partial path -> number of the output, final path; in the order of renaming.
        self._pending: dict[Path, tuple[int, Path]] = {}
        self._complete: set[int] = set()
        self._written = page_cache.WrittenPages() if plan.outgrows_cache else None

    def __enter__(self) -> OutputFiles:
        path: Path | None = None
        try:
            allow_open_files(sum(len(output.files) + 2 for output in self._outputs))
            for create in (self._open_journal, self._create):  # nothing is made of what is refused
                for number, output in enumerate(self._outputs):
                    path = output.request.path
                    with defer_signals():  # what was opened and has no owner would stay locked
                        create(number, output)
            for parent in self._parents():
                sync_directory(parent)
        except OSError as problem:
            self._close(keep=True)
            raise explained(problem, problem.filename or path) from None
        except BaseException:
            self._close(keep=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Nothing can be made of a source that is wrong.
        with ignore_signals():
            self._close(keep=not isinstance(error, ChangedError | FormatError | LayoutError))

    def _create(self, number: int, output: Output) -> None:
        final = output.request.path
        journal = self._journals[number]
        is_directory = output.request.target.is_directory
        folder = final.parent
        if not is_directory:  # of a bundle, when a run was killed
            for path in bundle_names.bundle_paths(final, output.request.target.is_directory).all:
                partial_path(path).unlink(missing_ok=True)
        if is_directory:
            kept = {file.path.name for file in output.files} if journal.has_work else set()
            folder = self._create_folder(number, final, kept)
            for name, content in output.companions.items():
                with (folder / name).open("wb") as companion:
                    companion.write(content)
                    companion.flush()
                    os.fsync(companion.fileno())
        for index, file in enumerate(output.files):
            path = folder / file.path.name if is_directory else partial_path(file.path)
            fd = open_locked(path, os.O_RDWR | os.O_CREAT, final)
            self._fds[number, index] = fd
            self._turns[number, index] = threading.Lock()
            if not is_directory:
                self._pending[path] = number, file.path
            if journal.has_work:
                # What could not be flushed may still be in the cache: the disk is what counts.
                page_cache.forget(fd)
            else:
                os.ftruncate(fd, 0)
            allocate(fd, file.size)
            write_all(fd, memoryview(file.header), 0)
        for index, offset, content in output.constants:
            write_all(self._fds[number, index], memoryview(content), offset)

    def _open_journal(self, number: int, output: Output) -> None:
        """Open the journal, which excludes other runs. Raises OutputError."""
        final = output.request.path
        now = fingerprint(self._plan.inputs, output)
        # A run that was killed when it was complete may have left a journal of nothing.
        resume = self._resume and any(path.exists() for path in grown_paths(output))
        others = _other_parts(output)
        journal = Journal(final, now, output.data_bytes, resume=resume)
        self._journals[number] = journal
        before = journal.earlier.fingerprint
        if before is not None and before != now:
            raise TakenError(
                f"{final}: an interrupted conversion cannot be continued: "
                f"{changes(before, now, self._plan.inputs.options)}; "
                f"{option('resume', False)} starts over"
            )
        for path in () if journal.has_work else others:
            path.unlink(missing_ok=True)

    def _create_folder(self, number: int, final: Path, kept: set[str]) -> Path:
        folder = partial_path(final)
        if replaced_path(final).exists():
            raise OutputError(
                f"{replaced_path(final)}: an earlier output that a killed run had put aside; "
                "rename or delete it"
            )
        if not folder.is_symlink():
            folder.mkdir(exist_ok=True)
        self._folder_fds.append(open_locked(folder, os.O_RDONLY | os.O_DIRECTORY, final))
        self._pending[folder] = number, final
        for leftover in folder.iterdir():  # of a run that was killed
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            elif leftover.name not in kept:
                leftover.unlink()
        return folder

    def earlier(self, output: int) -> Contents:
        """Read an interrupted run's notes about an output; nothing says yet that they hold."""
        return self._journals[output].earlier

    def has(self, output: int, finished: FinishedRows) -> bool:
        """Tell whether rows that an interrupted run had written can be read from the files."""
        for write in finished.writes:
            fd = self._fds.get((output, write.file))
            with contextlib.suppress(OSError):
                if fd is not None and write.is_in(fd):
                    if self._written is not None and write.runs == 1:
                        page_cache.forget(fd, write.offset, write.run_bytes)
                    continue
            return False
        return True

    def forget_earlier(self) -> None:
        """Give back the memory of what an interrupted run noted."""
        for journal in self._journals.values():
            journal.earlier = Contents()

    def note_rows(self, output: int, finished: FinishedRows) -> None:
        """Note that rows were written. Raises OutputError."""
        self._journals[output].add_rows(finished)

    def note_errors(self, output: int, record: MatrixRecord) -> None:
        """Note what a matrix differs by from its source. Raises OutputError."""
        self._journals[output].add_errors(record)

    def write(self, destination: Destination, data: memoryview, offset: int) -> Write:
        """Write bytes at an offset of a file. Raises OutputError."""
        runs = np.frombuffer(data, np.uint8).reshape(1, -1)
        return self.write_runs(destination.output, destination.file, runs, offset, 0)

    def write_runs(
        self, output: int, file: int, runs: NDArray[np.uint8], offset: int, stride: int
    ) -> Write:
        """Write runs of bytes [n, run_bytes], `stride` apart from an offset on."""
        if stride == runs.shape[1] and runs.flags.c_contiguous:
            runs = runs.reshape(1, -1)
        key = output, file
        digest = xxhash.xxh3_128()
        try:
            # The kernel lets one writer at a time into a file, and the others spin until then.
            with self._turns[key]:
                for number, run in enumerate(runs):
                    write_all(self._fds[key], run.data, offset + number * stride)
                    digest.update(run.data)
        except OSError as problem:
            raise explained(problem, self._outputs[output].files[file].path) from None
        # Runs with gaps share pages with others that are still to come.
        if self._written is not None and len(runs) == 1:
            self._written.add(self._fds[key], offset, runs.shape[1])
        return Write(file, offset, runs.shape[1], len(runs), stride, digest.hexdigest())

    def write_chunks(
        self, output: int, file: int, chunks: Iterable[memoryview], offset: int
    ) -> Write:
        """Write chunks of bytes one after another, from an offset on. Raises OutputError."""
        key, end, digest = (output, file), offset, xxhash.xxh3_128()
        for chunk in chunks:
            digest.update(chunk)
            try:
                with self._turns[key]:
                    write_all(self._fds[key], chunk, end)
            except OSError as problem:
                raise explained(problem, self._outputs[output].files[file].path) from None
            end += len(chunk)
        if self._written is not None:
            self._written.add(self._fds[key], offset, end - offset)
        return Write(file, offset, end - offset, 1, 0, digest.hexdigest())

    def flush(self, on_progress: Callable[[int], None] = lambda nbytes: None) -> None:
        """Flush all files to the disk, and let others read the files. Raises OutputError.

        `on_progress` gets the bytes of each.

        The lock of the journal still keeps other conversions away.
        """
        path: Path | None = None
        try:
            for (number, index), fd in self._fds.items():
                file = self._outputs[number].files[index]
                path = file.path
                os.fsync(fd)
                fcntl.flock(fd, fcntl.LOCK_UN)
                if self._written is not None:
                    page_cache.forget(fd)
                on_progress(file.size)
        except OSError as problem:
            raise explained(problem, path) from None

    def commit(self, beside: Mapping[int, Mapping[Path, Path]]) -> None:
        """Give each output its name, and what is `beside` it: places by names, in their order.

        What is beside a directory lies in it already. Raises OutputError.
        """
        done: list[Path] = []
        path = self._outputs[0].request.path
        try:
            for fd in self._folder_fds:
                os.fsync(fd)
            earlier = [_earlier_bundle(output) for output in self._outputs]
            with ignore_signals():
                for number, output in enumerate(self._outputs):
                    own = [item for item in self._pending.items() if item[1][0] == number]
                    for partial, (_, path) in own:
                        replaced = _replace(partial, output.request, path)
                        del self._pending[partial]
                        done.append(path)
                    self._complete.add(number)
                    try:
                        for path in earlier[number]:
                            path.unlink(missing_ok=True)
                        if not output.request.target.is_directory:
                            for path, place in beside.get(number, {}).items():
                                os.replace(place, path)
                    finally:  # its lock keeps others from what has no name yet
                        self._journals[number].remove()
                    # After the journal: nobody may go on in the files of an earlier output.
                    if replaced is not None:
                        shutil.rmtree(replaced, ignore_errors=True)
            for parent in self._parents():
                sync_directory(parent)
        except (OSError, OutputError) as problem:
            error = problem if isinstance(problem, OutputError) else explained(problem, path)
            if done:
                complete = ", ".join(str(path) for path in done)
                error = OutputError(f"{error} (complete before that: {complete})")
            raise error from None
        finally:
            for place in (place for places in beside.values() for place in places.values()):
                with contextlib.suppress(OSError):
                    place.unlink(missing_ok=True)

    def _parents(self) -> set[Path]:
        return {output.request.path.parent for output in self._outputs}

    def _close(self, *, keep: bool) -> None:
        """Close all files; delete what has no name yet, but `keep` what another run can use."""
        kept = {n for n, journal in self._journals.items() if keep and journal.has_work}
        for path, (number, _) in self._pending.items():
            if number in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for number, journal in self._journals.items():
            if number not in kept | self._complete:
                with contextlib.suppress(OSError):
                    journal.remove()
            journal.close()
        for fd in [*self._fds.values(), *self._folder_fds]:
            os.close(fd)
        for held in (self._pending, self._journals, self._fds):
            held.clear()
        self._folder_fds.clear()


def _earlier_bundle(output: Output) -> list[Path]:
    """The bundle of what an output replaces; that of a directory goes with the directory."""
    if output.request.target.is_directory:
        return []
    return bundle_names.written_before(
        bundle_names.bundle_paths(output.request.path, output.request.target.is_directory)
    )


def _replace(partial: Path, request: Request, final: Path) -> Path | None:
    """Give an output its name; returns where the earlier directory lies, which is to be deleted."""
    if not partial.is_dir() or not final.is_dir():
        os.replace(partial, final)
        return None
    foreign = foreign_entry(request.path, request.target)
    if foreign is not None:
        raise OutputError(f"{foreign}: appeared during the conversion; name another directory")
    # A directory that is not empty cannot be replaced at once, but two can change places.
    if exchange(partial, final):
        return partial
    old = replaced_path(final)
    os.rename(final, old)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(old, final)
        raise
    return old
