"""States of a run after each layer, on disk, so that one that was killed can go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import OutputError, TakenError

Arrays = Mapping[str, NDArray[Any]]
_FINGERPRINT: Final = "fingerprint"
_NAME: Final = re.compile(r"layer-(\d{1,6})\.npz")


@dataclass(frozen=True, slots=True)
class SavedStates:
    """A folder with the arrays that a run had after the last layer it finished.

    `fingerprint` is everything that they depend on, as JSON values: a run that has another one
    must not go on with them.
    """

    folder: Path
    fingerprint: Mapping[str, Any]

    def load(self) -> tuple[int, dict[str, NDArray[Any]]] | None:
        """Give the number of layers that are done and the arrays after them; None at the start.

        Raises TakenError if the folder belongs to a run of something else.
        """
        for done, path in sorted(self._found(), reverse=True):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                    arrays = {name: saved[name] for name in saved.files}
                said = json.loads(str(arrays.pop(_FINGERPRINT)))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # damaged: it starts at an earlier layer, or anew
            if said != self._said:
                raise TakenError(
                    f"{self.folder}: is what an unfinished run with other inputs or options left; "
                    "finish that one, or delete this folder"
                )
            return done, arrays
        return None

    def save(self, done: int, arrays: Arrays) -> None:
        """Keep the arrays after so many layers, and then delete the earlier ones.

        Raises OutputError if they cannot be written; the earlier ones then stay.
        """
        earlier = [path for _, path in self._found()]
        path = self.folder / f"layer-{done}.npz"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                said = np.array(json.dumps(self._said))
                everything: dict[str, Any] = {_FINGERPRINT: said, **arrays}
                np.savez(file, **everything)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError as problem:
            partial.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written: {problem.strerror}") from None
        for old in earlier:
            if old != path:
                old.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete the folder: the run has its results."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)

    @property
    def _said(self) -> Any:
        """Give the fingerprint as JSON reads it back, without tuples."""
        return json.loads(json.dumps(self.fingerprint))

    def _found(self) -> list[tuple[int, Path]]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise OutputError(f"{self.folder}: cannot be read: {problem.strerror}") from None
        matches = (_NAME.fullmatch(name) for name in names)
        return [(int(match[1]), self.folder / match[0]) for match in matches if match]
