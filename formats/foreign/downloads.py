"""Downloads that are not finished, by the names that programs give them until they are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from weightcast.formats.foreign.finding import Finding

# Endings, and who writes them.
_PROGRAMS: Final = {
    ".incomplete": "hf download",
    ".aria2": "aria2c",
    ".crdownload": "Chrome",
    ".opdownload": "Opera",
    ".download": "Safari",
    ".part": "a browser",
    ".parts": "",
    ".partial": "a browser",
    ".filepart": "WinSCP",
    ".tmp": "",
    ".temp": "",
    "._____temp": "ModelScope",
    ".!qb": "qBittorrent",
    ".!ut": "uTorrent",
    ".bc!": "BitComet",
    ".xltd": "Thunder",
    ".td": "Thunder",
    ".gstmp": "gsutil",
    ".lock": "hf download",
}
_UNFINISHED: Final = re.compile(
    rf"(?P<file>.*?)(?P<ending>{'|'.join(map(re.escape, _PROGRAMS))})|~uTorrentPartFile_.*"
    r"|sha256-[0-9a-f]{64}-partial(-\d+)?",
    re.IGNORECASE,
)
_CONTROL: Final = ".aria2"
_LET_IT_FINISH: Final = "let it finish, or download the file again"


def is_unfinished(name: str) -> bool:
    """Tell whether a file has a name that it has only until its download is finished."""
    return _UNFINISHED.fullmatch(name) is not None


def arriving(path: Path) -> str:
    """Name the unfinished download of a file that is not there, as far as one lies in its folder.

    "" if none does.
    """
    try:
        beside = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    own = (name for name in beside if name.startswith(path.name) and is_unfinished(name))
    return next(own, "")


def unfinished(path: Path) -> Finding | None:
    """Recognize a download that is not finished, by the file's name or by what lies beside it.

    A file that aria2c is not done with has its full size and its own name.
    """
    if path.with_name(path.name + _CONTROL).is_file():
        return Finding(
            f"an unfinished download: {path.name}{_CONTROL} lies beside it",
            "let aria2c finish (the same command with -c), or delete that file if it is stale",
        )
    match = _UNFINISHED.fullmatch(path.name)
    if match is None:
        return None
    program = _PROGRAMS[match["ending"].lower()] if match["ending"] else ""
    return Finding(f"an unfinished download{f' by {program}' if program else ''}", _LET_IT_FINISH)
