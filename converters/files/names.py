"""Name the files beside an output that is being written: partial, replaced, journal."""

from __future__ import annotations

from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where an output grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


def replaced_path(path: Path) -> Path:
    """Where an earlier directory lies for a moment, on file systems that cannot exchange two."""
    return path.with_name(f".{path.name}.replaced")


def journal_path(path: Path) -> Path:
    """Where the journal of an output lies."""
    return path.with_name(f".{path.name}.journal")
