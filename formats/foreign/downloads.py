"""Downloads that are not finished, by the names that programs give them until they are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from weightcast.formats.foreign.finding import Finding

# Endings, and who writes them; "" is anybody, for files of any kind.
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
    ".lock": "",
}
_UNFINISHED: Final = re.compile(
    rf"(?P<file>.*?)(?P<ending>{'|'.join(map(re.escape, _PROGRAMS))})|~uTorrentPartFile_.*"
    r"|sha256-[0-9a-f]{64}-partial(-\d+)?",
    re.IGNORECASE,
)
# Pieces that people cut large files into, from before llama.cpp could.
CUT: Final = re.compile(
    r"(?P<whole>.*\.(gguf|safetensors))(-split-[a-z]|\.part\d+of\d+|\.part-?[a-z]{1,2}|\.\d{3})",
    re.IGNORECASE,
)
# The names that outputs have until they are complete.
_OWN: Final = re.compile(r"\..+\.(partial|journal)")
_CONTROL: Final = ".aria2"
_LET_IT_FINISH: Final = "let it finish, or download the file again"


def is_unfinished(name: str) -> bool:
    """Tell whether a file has a name that it has only until its download is finished."""
    return _UNFINISHED.fullmatch(name) is not None


def is_cut_piece(path: Path) -> bool:
    """Tell whether a file is a piece that was cut by hand: by its name, and others beside it."""
    match = CUT.fullmatch(path.name)
    if match is None:
        return False
    whole = match["whole"]
    beside = (CUT.fullmatch(name) for name in os.listdir(path.parent))
    return len([other for other in beside if other is not None and other["whole"] == whole]) > 1


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


def surely_unfinished(path: Path) -> Finding | None:
    """Recognize a download that is not finished, whatever the file's bytes look like.

    Its size says nothing: many programs reserve all of it first.
    """
    match = _UNFINISHED.fullmatch(path.name)
    is_anybodys = match is not None and not _PROGRAMS.get((match["ending"] or "").lower(), "?")
    return None if is_anybodys else unfinished(path)


def unfinished(path: Path) -> Finding | None:
    """Recognize a download that is not finished, by the file's name or by what lies beside it.

    A file that aria2c is not done with has its full size and its own name.
    """
    if path.with_name(path.name + _CONTROL).is_file():
        return Finding(
            f"an unfinished download: {path.name}{_CONTROL} lies beside it",
            "let aria2c finish (the same command with -c), or delete that file if it is stale",
        )
    if _OWN.fullmatch(path.name):
        return Finding(
            "what an interrupted conversion left", "run the same command again: it goes on from it"
        )
    match = _UNFINISHED.fullmatch(path.name)
    if match is None:
        return None
    program = _PROGRAMS[match["ending"].lower()] if match["ending"] else ""
    return Finding(f"an unfinished download{f' by {program}' if program else ''}", _LET_IT_FINISH)
