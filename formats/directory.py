"""List what lies in a directory, but for what desktops and file servers put there by themselves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Of macOS (in other systems' folders), Windows, desktops of Linux, NFS, FUSE, and storage devices.
_TRACES: Final = re.compile(
    r"\._.*|\.DS_Store|\.AppleDouble|__MACOSX|\.Spotlight-V100|\.Trashes|\.fseventsd|Icon\r"
    r"|(eh)?Thumbs.*\.db|desktop\.ini|.*:Zone\.Identifier|System Volume Information|\$RECYCLE\.BIN"
    r"|\.directory|\.Trash-\d+|\.~lock\..*#|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+"
    r"|@eaDir|#recycle|#snapshot|lost\+found",
    re.IGNORECASE,
)
# Of Linux; looking for a longer one is an error, not a file that is missing.
MAX_NAME_BYTES: Final = 255


def is_trace(name: str) -> bool:
    """Tell whether nobody put a file of this name where it is."""
    return _TRACES.fullmatch(name) is not None


def entries(directory: Path) -> Iterator[Path]:
    """List files and folders in the order of their names, without traces."""
    return (entry for entry in sorted(directory.iterdir()) if not is_trace(entry.name))


def beside(directory: Path, levels: int) -> Iterator[Path]:
    """List what lies in a directory and in so many above it, if they can be listed."""
    for folder in (directory, *directory.parents[:levels]):
        with contextlib.suppress(PermissionError):
            yield from entries(folder)


def files_ending(directory: Path, ending: str) -> list[Path]:
    """List files of a kind, such as ".gguf"; hidden ones are not for readers."""
    return [
        entry
        for entry in entries(directory)
        if entry.name.endswith(ending) and not entry.name.startswith(".")
    ]
