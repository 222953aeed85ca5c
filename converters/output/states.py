"""The folder of states beside an output: what a run over a text keeps after a layer.

.NAME.states holds layer-N.npz, the arrays after N layers, and layer-N.partial, which grows to one.
The folder is locked by the run that has it. Whatever else is in it is nobody's to delete, and so is
a file of such a name that does not begin as a run writes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Final

from weightcast.converters.files import explained, open_locked, states_path
from weightcast.errors import OutputError, TakenError
from weightcast.text import shown

# What a run depends on is the first array in a file.
FINGERPRINT: Final = "fingerprint"
_FILE: Final = re.compile(r"layer-(\d{1,6})\.(npz|partial)")
# The header of a file in a ZIP archive, before its name. Source: 4.3.7 in APPNOTE.TXT of PKWARE.
_ZIP_MAGIC: Final = b"PK\3\4"
_ZIP_NAME_AT: Final = 30


def lock_states(output: Path) -> int:
    """Open and lock the folder of states of an output, and make it if there is none.

    Gives a file descriptor. Raises TakenError if another run has it, OutputError, also if something
    is in it that no run wrote.
    """
    folder = states_path(output)
    while True:
        try:
            if not folder.is_symlink():
                folder.mkdir(exist_ok=True)
            return _refuse_foreign(open_locked(folder, os.O_RDONLY | os.O_DIRECTORY), folder)
        except TakenError:
            raise TakenError(
                f"{output}: another run is making this output; wait for it, or name another one"
            ) from None
        except OSError as problem:
            if folder.is_symlink():
                raise OutputError(f"{folder}: is a link; remove it") from None
            # The other run may have deleted it between the two calls.
            if not (isinstance(problem, FileNotFoundError) and folder.parent.is_dir()):
                raise explained(problem, folder) from None


def _refuse_foreign(fd: int, folder: Path) -> int:
    foreign = foreign_state(folder)
    if foreign is None:
        return fd
    os.close(fd)
    raise OutputError(f"{folder}: holds {shown(foreign)}, which no run wrote; move it away")


def state_files(folder: Path) -> Iterator[tuple[int, Path]]:
    """List the complete files of a folder, with the layers that are done in each. Raises OSError.

    There are none in a folder that is not there.
    """
    for path in _own(folder):
        match = _FILE.fullmatch(path.name)
        if match and match[2] == "npz":
            yield int(match[1]), path


def finished_layers(output: Path) -> int:
    """Tell after how many layers an interrupted run can go on; 0 if it is none."""
    with contextlib.suppress(OSError):
        return max((done for done, _ in state_files(states_path(output))), default=0)
    return 0


def foreign_state(folder: Path) -> str | None:
    """Name something in a folder of states that no run wrote. Raises OSError."""
    own = {path.name for path in _own(folder)}
    return min((name for name in os.listdir(folder) if name not in own), default=None)


def remove_states(folder: Path) -> None:
    """Remove what runs wrote into a folder. Raises OSError."""
    for path in list(_own(folder)):
        path.unlink(missing_ok=True)


def release_states(fd: int, folder: Path) -> None:
    """Give the lock of a folder back, and remove the folder unless something is in it."""
    with contextlib.suppress(OSError):
        # By now another run may have one of that name.
        if os.path.samestat(os.fstat(fd), folder.lstat()):
            folder.rmdir()
    os.close(fd)


def _own(folder: Path) -> Iterator[Path]:
    """List the files that runs wrote; none of a link or of a folder that is not there."""
    if folder.is_symlink():
        return
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if _FILE.fullmatch(name) and _begins_as_written(folder / name):
                yield folder / name


def _begins_as_written(path: Path) -> bool:
    if not S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        beginning = file.read(_ZIP_NAME_AT + len(FINGERPRINT))
    if not beginning:
        return path.suffix == ".partial"  # of a run that was killed at once
    named = beginning[_ZIP_NAME_AT:]
    return beginning.startswith(_ZIP_MAGIC) and named == FINGERPRINT.encode()
