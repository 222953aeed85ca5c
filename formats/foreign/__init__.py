"""Recognize what is read by no reader, and say what to do instead.

A reader asks when bytes are not what they should be: what it knows better itself, it says itself.
Little of this is imported for a file that is read: tables and regular expressions take a while.
"""

from __future__ import annotations

import stat
from pathlib import Path

from weightcast.errors import FormatError, MissingTensorError
from weightcast.formats.foreign.finding import Finding

__all__ = ["Finding", "refuse_foreign", "require_file"]


def require_file(path: Path, wanted: str | None = None) -> None:
    """Raise MissingTensorError unless a path is a regular file; nothing else is ever opened.

    `wanted` is what it was to be, a key of WANTED.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
    except (OSError, ValueError):
        pass
    from weightcast.formats.foreign.addresses import spelled
    from weightcast.formats.foreign.files import not_a_file

    found = not_a_file(path, wanted)
    raise MissingTensorError(f"{spelled(path)}: {found or 'vanished'}")


def refuse_foreign(path: Path, wanted: str) -> None:
    """Raise FormatError if a file that a reader could not read is recognized as another one.

    `wanted` is what it was to be, a key of WANTED.
    """
    from weightcast.formats.foreign.files import look_at

    found = look_at(path, wanted)
    if found is not None:
        raise FormatError(path, None, str(found)) from None
