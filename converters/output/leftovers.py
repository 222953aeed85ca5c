"""Find and remove what interrupted runs left beside outputs, and nothing else.

An output NAME grows as .NAME.partial (.PART.partial if it is split), its journal is .NAME.journal,
and .NAME.replaced is an earlier directory that was put aside for a moment. Files of a bundle, and
reports, grow as .FILE.partial. A run over a text keeps states in the folder .NAME.states. That
something has such a name is not enough: its journal must be one, or it must hold what a run writes.
Nothing is touched that a run holds locked, no link is followed, and a directory that holds anything
else stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final

from weightcast.converters.files import (
    NAMES,
    bundle_paths,
    journal_path,
    open_locked,
    partial_path,
    replaced_path,
    states_path,
)
from weightcast.converters.output.files import foreign_entry, noted_paths
from weightcast.converters.output.journal import Contents, read_journal
from weightcast.converters.output.resume import kept_share
from weightcast.converters.output.states import foreign_state, remove_states
from weightcast.converters.targets import TARGETS
from weightcast.errors import OutputError, TakenError
from weightcast.text import shown

_NAME: Final = re.compile(r"\.(.+)\.(?:partial|journal|replaced|states)", re.DOTALL)
_STATES_SUFFIX: Final = ".states"
_REPORTS: Final = (".json", ".html", ".md")
_REPORT_MARKS: Final = (b'"weightcast-report"', b"Quantization errors")
_BEGINNING_BYTES: Final = 4096
_IN_USE: Final = "in use by a run"
_UNKNOWN: Final = "no run is known to have left it"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that an interrupted run left of an output, and its bytes on the disk.

    `share` is what of the output a run could go on with. If it has to stay, `reason` says why.
    """

    path: Path
    output: Path
    nbytes: int
    share: float = 0.0
    reason: str | None = None

    def describe(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        return {
            "path": str(self.path),
            "output": str(self.output),
            "bytes": self.nbytes,
            "finished": round(self.share, 4),
            "kept_because": self.reason,
        }


def clean(paths: Sequence[Path], *, dry_run: bool = False) -> list[Leftover]:
    """Remove what runs left of outputs, or of all outputs that lie directly in a folder.

    Returns what there was, also with `dry_run`, which removes nothing. Raises OutputError, and
    removes nothing, if there is nothing of some name.
    """
    there = {path: _found(path, remove=False) for path in paths}
    for path, found in there.items():
        if not found and not os.path.lexists(path):
            raise OutputError(
                f"{path}: there is nothing of that name, and no run left anything of it; name an "
                "output or a folder"
            )
    if not dry_run:
        there = {path: _found(path, remove=True) for path in paths}
    distinct = {os.path.abspath(each.path): each for found in there.values() for each in found}
    return list(distinct.values())


def _found(path: Path, *, remove: bool) -> list[Leftover]:
    """List what there is, and remove it at once, while it is locked."""
    found: list[Leftover] = []
    try:
        for output, is_named in _outputs(path):
            with ExitStack() as locks:
                left = [
                    *_leftovers(output, locks, is_named=is_named),
                    *_states(output, locks, is_named=is_named),
                ]
                for leftover in left:
                    if leftover.reason is None and remove:
                        _remove(leftover.path)
                    found.append(leftover)
    except OSError as problem:
        place = problem.filename or path
        raise OutputError(f"{place}: cannot be cleaned: {problem.strerror or problem}") from None
    return found


def _outputs(path: Path) -> Iterator[tuple[Path, bool]]:
    """Name the outputs of which there may be something: the one asked for (True), a folder's."""
    own = _NAME.fullmatch(path.name)
    if path.name not in ("", ".."):
        yield path.with_name(own[1]) if own else path, True
    if path.is_dir() and not own:
        found = (_NAME.fullmatch(entry.name) for entry in path.iterdir())
        for name in sorted({match[1] for match in found if match}):
            yield path / name, False


def _leftovers(output: Path, locks: ExitStack, *, is_named: bool) -> Iterator[Leftover]:
    """List what there is of one output, the journal last, and lock it."""
    journal = journal_path(output)
    noted = _noted(output, is_named=is_named)
    grown = noted_paths(output, noted or Contents())
    try:
        if noted is not None:
            _lock(journal, locks)
    except FileNotFoundError:
        return  # its run has just ended
    except TakenError:
        for path in filter(os.path.lexists, (*grown, journal)):
            yield Leftover(path, output, _size(path), reason=_IN_USE)
        return
    share, stay = kept_share(output), False
    bundle = [partial_path(path) for path in bundle_paths(output, is_directory=False).all]
    for path in filter(os.path.lexists, (*grown, *bundle, replaced_path(output))):
        known = noted is not None or (is_named and _is_output(path, output))
        reason = _reason_to_stay(path, output, locks, is_known=known)
        if reason is None or noted is not None or is_named:
            yield Leftover(path, output, _size(path), share, reason)
            share, stay = 0.0, stay or reason is not None
    if noted is not None:
        reason = "the journal of what stays" if stay else None
        yield Leftover(journal, output, _size(journal), share, reason)


def _states(output: Path, locks: ExitStack, *, is_named: bool) -> Iterator[Leftover]:
    """List the folder of states of an output, and lock it."""
    folder = states_path(output)
    if not os.path.lexists(folder):
        return
    reason = None
    if not S_ISDIR(folder.lstat().st_mode):
        reason = "a link, or no folder"
    elif (foreign := foreign_state(folder)) is not None:
        reason = f"holds {shown(foreign)}, which no run wrote"
    elif not (is_named or os.listdir(folder)):
        reason = _UNKNOWN
    else:
        try:
            _lock(folder, locks)
        except FileNotFoundError:
            return  # its run has just ended
        except TakenError:
            reason = _IN_USE
    if is_named or reason in (None, _IN_USE):
        yield Leftover(folder, output, _size(folder), reason=reason)


def _lock(path: Path, locks: ExitStack) -> None:
    """Keep runs away. Raises TakenError if one has it, OSError."""
    is_directory = S_ISDIR(path.lstat().st_mode)
    flags = os.O_RDONLY if is_directory else os.O_RDWR | os.O_NONBLOCK
    locks.callback(os.close, open_locked(path, flags))


def _is_output(path: Path, output: Path) -> bool:
    """Tell whether a run that writes `output` would take what is at `path` for its own."""
    is_directory = S_ISDIR(path.lstat().st_mode)
    return is_directory or _is_file_name(output) or output.suffix in _REPORTS


def _is_file_name(output: Path) -> bool:
    """Tell whether an output of this name is a file."""
    files = (target for target in TARGETS.values() if not target.is_directory)
    return any(target.owns_part(output, output.name) for target in files)


def _noted(output: Path, *, is_named: bool = False) -> Contents | None:
    """Read the journal of an output; None if there is none.

    An empty one is one, too, of a run that was killed at once, if the name is that of an output.
    """
    journal = journal_path(output)
    try:
        status = journal.lstat()
    except OSError:
        return None
    noted = read_journal(journal, fingerprint_only=True)
    is_empty = status.st_size == 0 and (is_named or _is_file_name(output))
    is_one = noted.fingerprint is not None or is_empty
    return noted if S_ISREG(status.st_mode) and is_one else None


def _reason_to_stay(path: Path, output: Path, locks: ExitStack, *, is_known: bool) -> str | None:
    """Say why something with such a name is not to be removed; None if it may be."""
    status = path.lstat()
    if not (S_ISDIR(status.st_mode) or S_ISREG(status.st_mode)):
        return "a link, or no file"
    try:
        _lock(path, locks)
    except TakenError:
        return _IN_USE
    if S_ISREG(status.st_mode):
        return None if is_known or _is_report(path, output) else _UNKNOWN
    foreign = _foreign(path, has_journal=_noted(output) is not None)
    if foreign is not None:
        return f"holds {foreign}, which no conversion wrote"
    if path == replaced_path(output) and not output.is_dir():
        return f"the earlier output; rename it to {output.name}, or delete it"
    # Of an earlier directory, which changed places with the one that is there now.
    return None if is_known or output.is_dir() else _UNKNOWN


def _is_report(path: Path, output: Path) -> bool:
    """Tell whether a growing file, which has no journal, begins as reports do."""
    if output.suffix not in _REPORTS:
        return False
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
    return any(mark in beginning for mark in _REPORT_MARKS)


def _foreign(folder: Path, *, has_journal: bool) -> str | None:
    """Name something in a directory that no conversion writes."""
    target = next(target for target in TARGETS.values() if target.is_directory)
    if not has_journal:
        found = foreign_entry(folder, target)
        return None if found is None else found.name
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_own = target.owns(entry.name) or entry.name in NAMES
        if not is_own or not entry.is_file(follow_symlinks=False):
            return entry.name
    return None


def _size(path: Path) -> int:
    """Add up what a file, or all in a directory, takes on the disk."""
    status = path.lstat()
    if not S_ISDIR(status.st_mode):
        return status.st_blocks * 512
    return sum(_size(Path(entry)) for entry in os.scandir(path))


def _remove(path: Path) -> None:
    if path.suffix == _STATES_SUFFIX:
        remove_states(path)
        path.rmdir()
    elif S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()
