"""Arrays of activations, in memory as long as a budget lasts and then in files.

Files are nameless: they are gone when the last array in them is, however a run ends.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import OutputError
from weightcast.evaluation.arithmetic import F32
from weightcast.text import bytes_text


class Activations:
    """Make float32 arrays; those for which the memory does not suffice lie in `folder`."""

    def __init__(self, memory: int | None, folder: Path) -> None:
        self._left = memory
        self._folder = folder

    def empty(self, *shape: int) -> F32:
        """Make an array of any content. Raises OutputError if it does not fit on the disk."""
        nbytes = 4 * int(np.prod(shape, dtype=np.int64))
        if self._left is None:
            return np.empty(shape, np.float32)
        if nbytes > self._left:
            return self._mapped(shape, nbytes)
        found = np.empty(shape, np.float32)
        self._left -= nbytes
        # Given back with the array, or with the last view of it.
        weakref.finalize(found, self._give_back, nbytes)
        return found

    def copy(self, array: F32) -> F32:
        """Copy an array. Raises OutputError if it does not fit on the disk."""
        found = self.empty(*array.shape)
        found[:] = array
        return found

    def _give_back(self, nbytes: int) -> None:
        assert self._left is not None
        self._left += nbytes

    def _mapped(self, shape: tuple[int, ...], nbytes: int) -> F32:
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Reserved now: a full disk met while it is mapped would kill the process.
                os.posix_fallocate(file.fileno(), 0, max(1, nbytes))
                found: NDArray[np.float32] = np.memmap(file, np.float32, "r+", shape=shape)
                return found
        except OSError as problem:
            raise OutputError(
                f"{self._folder}: no {bytes_text(nbytes)} for activations: {problem.strerror}; "
                "free some, use another folder, or give more memory"
            ) from None


def in_memory() -> Activations:
    """Give room for activations without a limit."""
    return Activations(None, Path(tempfile.gettempdir()))
