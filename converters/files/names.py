"""Name what lies beside an output that is being written: partial, replaced, journal, states."""

from __future__ import annotations

from pathlib import Path


def partial_path(path: Path) -> Path:
    """Name the file in which an output grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


def replaced_path(path: Path) -> Path:
    """Name an earlier directory for a moment, on file systems that cannot exchange two."""
    return path.with_name(f".{path.name}.replaced")


def journal_path(path: Path) -> Path:
    """Name the journal of an output."""
    return path.with_name(f".{path.name}.journal")


def states_path(path: Path) -> Path:
    """Name the folder in which a run over a text keeps what it knows after a layer."""
    return path.with_name(f".{path.name}.states")
