"""Paths that lead to nothing: what was most likely meant."""

from __future__ import annotations

import errno
import glob
import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from weightcast.formats.directory import MAX_NAME_BYTES
from weightcast.formats.foreign.addresses import address
from weightcast.formats.foreign.finding import Finding
from weightcast.formats.split import PART_NAME
from weightcast.text import closest, some

NOTHING: Final = "no such file or directory"
# Of a folder; comparing a name with more takes too long.
_MAX_NEIGHBOURS: Final = 4000
_LIKENESS: Final = 0.75
_ANNEX: Final = "annex/objects/"


def missing(path: Path, wanted: re.Pattern[str] | None = None) -> Finding:
    """Say why a path leads to nothing, and what else was meant.

    Where nothing has a name like it, files that are called as `wanted` are listed.
    """
    text = str(path)
    found = address(text, {})
    if found is not None:
        return found
    try:
        os.lstat(path)
    except ValueError:
        return Finding("a name with a zero byte, which no file can have")
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return closed(path) or Finding(f"cannot be looked at: {problem.strerror}")
    else:
        return _dangling(path)
    return _guessed(path, text, wanted)


def closed(path: Path) -> Finding | None:
    """Say that a path, or a folder on the way to it, is closed to this user; None if it is not."""
    absolute = path.absolute()
    for place in (*reversed(absolute.parents), absolute):
        mode = os.R_OK | (os.X_OK if os.path.isdir(place) else 0)
        wanted = mode if place == absolute else os.X_OK
        if not os.access(place, wanted, effective_ids=os.access in os.supports_effective_ids):
            shown = path if place == absolute else place
            how = f"let its owner open it (chmod a+rX {shlex.quote(str(shown))})"
            return Finding("cannot be read: permission denied", how)
    return None


def _dangling(path: Path) -> Finding:
    """Describe a link that leads nowhere, or round in a circle."""
    try:
        target = os.readlink(path)
        path.stat()
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return Finding("a link that leads back to itself", "name the file itself")
        if problem.errno == errno.EACCES:
            return closed(path) or Finding(f"cannot be looked at: {problem.strerror}")
    if _ANNEX in target:
        return Finding("a file of git-annex that is not here", "run `git annex get` on it")
    if "blobs" in Path(target).parts:
        return Finding(
            "a link of a hub's cache to a file that is not there",
            f"download it again{_from_the_hub(path)}",
        )
    return Finding(f"a link to {target}, which is not there", "download the file, or mend the link")


def _from_the_hub(path: Path) -> str:
    """Give the command that downloads what a path in a hub's cache is of."""
    held = next((part for part in path.absolute().parts if part.startswith("models--")), None)
    if held is None:
        return ""
    return f" (hf download {shlex.quote(held.removeprefix('models--').replace('--', '/'))})"


def _guessed(path: Path, text: str, wanted: re.Pattern[str] | None) -> Finding:
    """Guess what else was meant: another spelling, a pattern, a neighbour."""
    spelling = next(filter(os.path.exists, _spellings(text)), None)
    if spelling is not None:
        return Finding(NOTHING, f"did you mean {spelling}?")
    in_full = os.path.expandvars(os.path.expanduser(text))
    if in_full != text:
        return Finding("~ and variables are not expanded here", f"write it in full: {in_full}")
    if glob.has_magic(text):
        return _pattern(path, text, wanted)
    holder = next((p for p in path.parents if p.exists()), None)
    if holder is not None and not holder.is_dir():
        return Finding(f"{NOTHING}: {holder} is a file, not a directory", f"name {holder}")
    close = neighbour(path)
    if close is not None:
        return Finding(NOTHING, f"did you mean {close}?")
    if holder is None or holder == path.parent:
        return Finding(NOTHING, _listed(path.parent, wanted))
    absent = holder / path.relative_to(holder).parts[0]
    return Finding(f"{NOTHING}: there is no folder {absent}")


def _spellings(text: str) -> Iterator[str]:
    """List other spellings of a path: what shells, other systems and copying make of it."""
    yield os.path.expandvars(os.path.expanduser(text))
    yield text.strip().strip("\"'`").strip()
    yield text.replace("\\ ", " ")
    yield text.replace("\\", "/")
    yield text.rstrip(".,;:")
    if "/" in text:
        yield f"/{text}"


def _pattern(path: Path, text: str, wanted: re.Pattern[str] | None) -> Finding:
    """Describe a pattern that no shell has expanded; one of folders is not expanded here either."""
    if glob.has_magic(str(path.parent)):
        return Finding("a pattern, not a path", "name the file or directory itself")
    matches = sorted(islice(glob.iglob(text), _MAX_NEIGHBOURS))
    if not matches:
        return Finding("nothing matches this pattern", _listed(path.parent, wanted))
    if len(matches) == 1:
        return Finding("a pattern, not a path", f"did you mean {matches[0]}?")
    first = PART_NAME.fullmatch(matches[0])
    if first and int(first[2]) == 1 and {PART_NAME.sub(r"\1", m) for m in matches} == {first[1]}:
        return Finding("a pattern, not a path", f"name the first file only: {matches[0]}")
    return Finding("a pattern, not a path", f"name one: {some(matches)}")


def neighbour(path: Path) -> Path | None:
    """Find an existing path that differs from one by how its parts are written; None if none."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if (found / part).exists():
            found /= part
            continue
        close = _closest(found, part)
        if close is None:
            return None
        found /= close
    return found


def _closest(folder: Path, name: str) -> str | None:
    """Choose the name in a folder that one was most likely meant as."""
    try:
        with os.scandir(folder) as listing:
            names = [entry.name for entry in islice(listing, _MAX_NEIGHBOURS)]
    except OSError:
        return None
    lower = {other.lower(): other for other in sorted(names)}
    if name.lower() in lower:
        return lower[name.lower()]
    longer = [n for n in lower if n.startswith(name.lower()) and n[len(name)] in ".-_"]
    if len(longer) == 1:
        return lower[longer[0]]
    return closest(name[:MAX_NAME_BYTES], lower.values(), _LIKENESS)


def _listed(folder: Path, wanted: re.Pattern[str] | None) -> str:
    """Name what a folder holds that is called as wanted."""
    if wanted is None:
        return ""
    try:
        with os.scandir(folder) as listing:
            names = sorted(entry.name for entry in islice(listing, _MAX_NEIGHBOURS))
    except OSError:
        return ""
    found = [name for name in names if wanted.fullmatch(name)]
    where = "this folder" if folder == Path() else str(folder)
    return f"{where} has {some(found)}" if found else ""
