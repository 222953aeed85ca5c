"""States of a run after each layer, on disk, so that one that was killed can go on."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from weightcast.converters.files import defer_signals, explained, states_path
from weightcast.converters.output.states import (
    FINGERPRINT,
    lock_states,
    release_states,
    remove_states,
    state_files,
)
from weightcast.errors import OutputError, TakenError
from weightcast.evaluation.arithmetic import F32
from weightcast.text import option

Arrays = Mapping[str, NDArray[Any]]
_SUFFIX: Final = ".npy"
_READ_BYTES: Final = 4 << 20


def _empty(*shape: int) -> F32:
    return np.empty(shape, np.float32)


@dataclass(frozen=True, slots=True)
class SavedStates:
    """A folder beside an output with the arrays that a run had after the last layer it finished.

    `fingerprint` is everything that they depend on, as JSON values: a run that has another one
    must not go on with them. Without `resume` a run starts over. Used within `locked`.
    """

    output: Path
    fingerprint: Mapping[str, Any]
    resume: bool = True

    @property
    def folder(self) -> Path:
        """Name the folder."""
        return states_path(self.output)

    @contextmanager
    def locked(self) -> Iterator[SavedStates]:
        """Keep other runs away from the output. Raises TakenError if one has it, OutputError."""
        with defer_signals():  # what was opened and has no owner would stay locked
            fd = lock_states(self.output)
        try:
            yield self
        finally:
            release_states(fd, self.folder)

    def load(
        self, empty: Callable[..., F32] = _empty
    ) -> tuple[int, dict[str, NDArray[Any]]] | None:
        """Give the number of layers that are done and the arrays after them; None at the start.

        Arrays of float32 are made by `empty`, which gets their shape. Raises TakenError if the
        folder belongs to a run of something else, OutputError.
        """
        try:
            if not self.resume:
                remove_states(self.folder)
                return None
            found = sorted(state_files(self.folder), reverse=True)
        except OSError as problem:
            raise explained(problem, self.folder) from None
        for done, path in found:
            try:
                arrays = _read(path, empty, self._said)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # damaged: it starts at an earlier layer, or anew
            if arrays is None:
                raise TakenError(
                    f"{self.output}: an interrupted run with other inputs or options left its "
                    f"states in {self.folder.name}; finish that one, or "
                    f"{option('resume', False)} starts over"
                )
            return done, arrays
        return None

    def save(self, done: int, arrays: Arrays) -> None:
        """Keep the arrays after so many layers, and then delete the earlier ones.

        Raises OutputError if they cannot be written; the earlier ones then stay.
        """
        path = self.folder / f"layer-{done}.npz"
        partial = path.with_suffix(".partial")
        try:
            earlier = [own for _, own in state_files(self.folder) if own != path]
            with _created(partial) as file:
                said = np.array(json.dumps(self._said))
                everything: dict[str, Any] = {FINGERPRINT: said, **arrays}
                np.savez(file, **everything)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as problem:
            partial.unlink(missing_ok=True)
            raise explained(problem, path) from None
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        for old in earlier:
            old.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete what runs wrote: the output has its name. Raises OutputError."""
        try:
            remove_states(self.folder)
        except OSError as problem:
            raise OutputError(f"{self.folder}: cannot be removed: {problem.strerror}") from None

    @property
    def _said(self) -> Any:
        """Give the fingerprint as JSON reads it back, without tuples."""
        return json.loads(json.dumps(self.fingerprint))


def _created(path: Path) -> BinaryIO:
    """Open a file to write; a link in its place is not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "w+b")


def _read(path: Path, empty: Callable[..., F32], said: object) -> dict[str, NDArray[Any]] | None:
    """Read the arrays of a file; None if another run wrote it. Raises what zipfile and numpy do."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            with archive.open(info) as member:
                array = _read_array(member, info.file_size, empty)
            if name == FINGERPRINT + _SUFFIX:
                if json.loads(str(array)) != said:
                    return None
            else:
                arrays[name.removesuffix(_SUFFIX)] = array
    return arrays


def _read_array(member: Any, nbytes: int, empty: Callable[..., F32]) -> NDArray[Any]:
    """Read an array out of `nbytes`; one of float32 goes where it is to lie, piece by piece."""
    version = npy.read_magic(member)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read_header(member)
    if dtype.hasobject or is_fortran or dtype.itemsize * math.prod(shape) > nbytes:
        raise ValueError("no run wrote this array")
    found: NDArray[Any] = empty(*shape) if dtype == np.float32 else np.empty(shape, dtype)
    raw = found.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), _READ_BYTES):
        piece = raw[start : start + _READ_BYTES]
        got = 0
        while got < len(piece):
            count = member.readinto(piece[got:])
            if not count:
                raise EOFError
            got += count
    if member.read(1):  # also compares the checksum
        raise ValueError("no run wrote this array")
    return found
