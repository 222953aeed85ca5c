"""Recognize a file by a few KiB of it: what it is, where a reader wanted something else."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from weightcast.formats.foreign import tables
from weightcast.formats.foreign.downloads import CUT, is_cut_piece, unfinished
from weightcast.formats.foreign.finding import Finding
from weightcast.formats.foreign.missing import missing
from weightcast.formats.foreign.stand_ins import HEAD_BYTES, few_words, stand_in
from weightcast.formats.foreign.tables import Entry, Wanted
from weightcast.text import option

_KEY: Final = re.compile(rb'"([A-Za-z_]{1,40})"\s*:(?:\s*"(weightcast[-.a-z]{1,40})")?')
_TORRENT: Final = re.compile(rb"d\d{1,2}:[a-z][a-z -]+\d")
_FIELD: Final = re.compile(r"\{(\w+)\}")
_MAX_NAMES: Final = 1000
# Files that people write themselves, so that they are not downloads gone wrong.
_WRITTEN: Final = ("recipe", "sensitivities")
_SPECIAL: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
STANDARD_INPUT: Final = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


@dataclass(frozen=True, slots=True)
class _Sample:
    """The beginning of a file, and how long the file is."""

    path: Path
    size: int
    head: bytes


def look_at(path: Path, wanted: str = "checkpoint") -> Finding | None:
    """Say what a path is, if it is not what a reader wants (a key of WANTED); None if unknown.

    Reads a few KiB of a regular file, and nothing of any other.
    """
    found = not_a_file(path)
    if found is not None:
        return found
    try:
        with path.open("rb") as file:
            sample = _Sample(path, os.fstat(file.fileno()).st_size, file.read(HEAD_BYTES))
    except OSError as problem:
        return Finding(f"cannot be read: {problem.strerror}")
    want = tables.WANTED[wanted]
    if not sample.size:
        return Finding(
            "an empty file", "its download has not started, or was lost: download it again"
        )
    return (
        unfinished(path)
        or _cut_piece(path)
        or stand_in(sample.head)
        or _entry(sample, want)
        or _zeros(sample)
        or (None if wanted in _WRITTEN else few_words(sample.head, sample.size))
    )


def not_a_file(path: Path, wanted: str | None = None) -> Finding | None:
    """Say why a path is no regular file: absent, a directory, a pipe, a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISREG(mode):
        return None
    if str(path) in STANDARD_INPUT and not stat.S_ISDIR(mode):
        return Finding(
            "standard input, which is read once and in order",
            "name a file: weights are read from where they lie",
        )
    if not mode:
        return missing(path)
    if stat.S_ISDIR(mode):
        usual = tables.WANTED[wanted].usual if wanted is not None else ""
        meant = f"did you mean {path / usual}?" if usual and (path / usual).is_file() else ""
        return Finding("a directory, not a file", meant or "name a file in it")
    special = next((words for is_it, words in _SPECIAL if is_it(mode)), "a special file")
    return Finding(f"{special}, not a regular file", "name a file on a disk")


def _json_entry(keys: Collection[str]) -> Entry | None:
    """Tell by some of its keys what a JSON object is; None if nothing known."""
    there = set(keys)
    return next((entry for needed, entry in tables.JSON_KEYS if needed <= there), None)


def answer(path: Path) -> Finding | None:
    """Recognize a file that can be parsed, but is a server's answer and not the file."""
    with path.open("rb") as file:
        return stand_in(file.read(HEAD_BYTES))


def _told(path: Path, entry: Entry, wanted: Wanted) -> Finding:
    """Put an entry of the tables into words, for a reader that wanted something else."""
    if not wanted.is_model:
        return Finding(f"{entry.what}, not {wanted.what}", filled(path, wanted.remedy))
    return Finding(entry.what, filled(path, entry.remedy or wanted.remedy))


def filled(path: Path, remedy: str, file: str = "") -> str:
    """Fill a path, quoted for a shell, and names of options into a remedy; `file` lies in it."""
    folder = path if path.is_dir() else path.parent
    words = {
        "path": str(path),
        "stem": path.stem,
        "file": str(path / file),
        "folder": str(folder),
        "joined": Path(os.path.abspath(folder)).stem,
    }
    return _FIELD.sub(
        lambda match: shlex.quote(words[match[1]]) if match[1] in words else option(match[1]),
        remedy,
    )


def _cut_piece(path: Path) -> Finding | None:
    match = CUT.fullmatch(path.name) if is_cut_piece(path) else None
    if match is None:
        return None
    whole = shlex.quote(str(path.with_name(match["whole"])))
    join = f"join all of them first (cat {whole}?* > {whole})"
    return Finding("a piece of a file that was cut by hand", join)


def _entry(sample: _Sample, want: Wanted) -> Finding | None:
    """Look a file up in the tables: pieces and archives first, which say what to do themselves."""
    path, head = sample.path, sample.head
    archive = _marked(head, tables.ARCHIVES, want)
    if archive is not None:
        inside = _zipped(head) if archive.kind == "zip" else None
        if inside is not None:
            return _told(path, inside, want)
        is_tar = tables.TARRED.fullmatch(path.name) is not None
        entry = tables.TAR if is_tar and archive.kind != "zip" else archive
        return Finding(entry.what, filled(path, entry.remedy))
    found = _marked(head, tables.FORMATS, want) or _detected(sample, want)
    return None if found is None else _told(path, found, want)


def _marked(head: bytes, marks: tuple[tables.Mark, ...], want: Wanted) -> Entry | None:
    found = (mark.entry for mark in marks if head.startswith(mark.pattern, mark.offset))
    return next((entry for entry in found if entry.kind not in want.kinds), None)


def _zipped(head: bytes) -> Entry | None:
    length = int.from_bytes(head[26:28], "little")
    return _zip_entry(head[30 : 30 + length])


def archive_of_others(path: Path, names: Iterable[str]) -> Finding | None:
    """Say what a zip archive is by the names in it, if it is not torch.save's; None if unknown."""
    found = (_zip_entry(name.encode(errors="replace")) for name in islice(names, _MAX_NAMES))
    other = next((entry for entry in found if entry not in (None, tables.TORCH)), None)
    return None if other is None else _told(path, other, tables.WANTED["torch"])


def _zip_entry(first: bytes) -> Entry | None:
    """Tell what a zip archive is by the name of its first file; None if of nobody known."""
    return next((entry for pattern, entry in tables.ZIPPED if pattern.fullmatch(first)), None)


def _detected(sample: _Sample, want: Wanted) -> Entry | None:
    """Recognize what has no mark at a fixed place, then what only names tell."""
    head, size = sample.head, sample.size
    length = int.from_bytes(head[:8], "little")
    found = None
    if head[8:9] == b"{" and 2 <= length <= size - 8:
        found = tables.SAFETENSORS
    elif _TORRENT.match(head):
        found = tables.TORRENT
    elif _begins_with_a_piece(head):
        found = tables.SENTENCEPIECE
    elif head[8:12] in (b"blk.", b"outp", b"toke") and head[4:8].endswith(b"\0\0\0"):
        found = tables.OLD_IMATRIX
    elif head.lstrip().startswith(b"{") and not want.is_any_json:
        found = _json_entry(_keys(head))
    elif head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        found = tables.PICKLE
    if found is None and want.is_model:
        named = sample.path.name
        found = next((entry for pattern, entry in tables.NAMES if pattern.fullmatch(named)), None)
    return None if found is None or found.kind in want.kinds else found


def _begins_with_a_piece(head: bytes) -> bool:
    """Tell whether the first message of a protocol buffer is a piece of text and its score."""
    if len(head) < 5 or head[0] != 0x0A or head[2] != 0x0A:
        return False
    score = 4 + head[3]
    return head[3] + 7 <= head[1] + 2 and head[score : score + 1] == b"\x15"


def _keys(head: bytes) -> set[str]:
    """List the keys in the beginning of a JSON text, and its format if it is one of ours."""
    keys = set()
    for match in _KEY.finditer(head):
        keys.add(match[1].decode())
        if match[2]:
            keys.add(f"{match[1].decode()}={match[2].decode()}")
    return keys


def _zeros(sample: _Sample) -> Finding | None:
    if sample.head.strip(b"\0"):
        return None
    return Finding("zeros where it should begin", "its download is not complete: go on with it")
