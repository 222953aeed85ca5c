"""Paths as callers in Python give them."""

from __future__ import annotations

import os
from pathlib import Path

from weightcast.errors import RequestError
from weightcast.text import shown


def as_path(given: object, name: str) -> Path:
    """Read the path that an argument is. Raises RequestError if it is none, or empty.

    Path makes the current directory of an empty text, which nobody means by it.
    """
    if not isinstance(given, str | os.PathLike):
        raise RequestError(f"{name}: give a path as text or a Path, not {shown(given)}")
    text = os.fspath(given)
    if not isinstance(text, str):
        raise RequestError(f"{name}: give a path as text or a Path, not {shown(given)}")
    if not text:
        raise RequestError(f"{name}: an empty path; name a file or directory")
    return Path(text)


def as_optional_path(given: object, name: str) -> Path | None:
    """Read the path that an argument is, unless it is None."""
    return None if given is None else as_path(given, name)
