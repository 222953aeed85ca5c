"""What laying out a file gives, in any format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """One file to be written: its header and where each tensor's data starts in the file."""

    header: bytes
    offsets: dict[str, int]
    size: int
