"""Sources that are none: what a path holds instead of a checkpoint, and what to do about it.

Files are told by formats/foreign; here are directories, configurations, names of releases, and
paths that lead to nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from weightcast.converters.families import FAMILIES
from weightcast.converters.graph import Download
from weightcast.formats.directory import is_trace
from weightcast.formats.foreign.addresses import Known, address, hub_name, spelled
from weightcast.formats.foreign.downloads import is_unfinished
from weightcast.formats.foreign.files import STANDARD_INPUT, filled, look_at, not_a_file
from weightcast.formats.foreign.finding import Finding
from weightcast.formats.foreign.missing import missing, neighbour
from weightcast.formats.foreign.tables import DIRECTORIES, ORBAX, SOURCE_NAMES, TARRED, WANTED
from weightcast.formats.jax.shards import is_shard_name
from weightcast.formats.split import SPLIT_NAME, split_name
from weightcast.text import count, some

# Entries of a directory that are looked at, and folders in it.
_MAX_ENTRIES: Final = 10_000
_MAX_FOLDERS: Final = 200
_WEIGHTS: Final = re.compile(r".*\.(safetensors|gguf)|pytorch_model.*\.bin")
_ARCHIVE: Final = re.compile(rf"{TARRED.pattern}|.*\.(tar|zip|7z|rar)", re.IGNORECASE)
_TAGGED: Final = re.compile(r"[a-z0-9][\w.-]*:[\w.-]+")


def why_no_source(path: Path) -> str:
    """Say in a line what a path is and what to do, of which nothing is read. Raises OSError."""
    if path.is_dir():
        return f"{path}: {no_checkpoint(path)}"
    if not path.is_file():
        return f"{spelled(path)}: {absent(path)}"
    if is_shard_name(path.name):
        return f"{path}: one shard of a checkpoint; give its directory: {path.parent}"
    known = look_at(path) or Finding("not a checkpoint", WANTED["checkpoint"].remedy)
    return f"{path}: {known}"


def absent(path: Path) -> Finding:
    """Say why a path leads to nothing, and how to get what was meant."""
    if "\0" in str(path):
        return missing(path)
    known = _known()
    return (
        (not_a_file(path) if path.exists() or str(path) in STANDARD_INPUT else None)
        or address(str(path), known)
        or (None if _is_near(path) else hub_name(path, known) or _of_ollama(path))
        or missing(path, SOURCE_NAMES)
    )


def _of_ollama(path: Path) -> Finding | None:
    if not _TAGGED.fullmatch(str(path)):
        return None
    command = shlex.join(["ollama", "show", "--modelfile", str(path)])
    how = f"if it is a model of ollama, `{command}` names its file"
    return Finding("no such file or directory", how)


def _is_near(path: Path) -> bool:
    """Tell whether a path begins with something that is here, or nearly."""
    return path.is_absolute() or neighbour(Path(*path.parts[:1])) is not None


def _known() -> Known:
    """List how to download the releases that are read here."""
    releases = (f.download for f in FAMILIES.values() if f.download is not None)
    return {
        d.repository.lower(): _download_all(d, d.repository.rpartition("/")[2]) for d in releases
    }


def _download_all(release: Download, folder: str) -> str:
    """Say how to download the shards of a release and its tokenizer into a folder."""
    tokenizer = release.tokenizer_command(folder)
    return f"download it first ({release.shards_command(folder)}), and its tokenizer ({tokenizer})"


def no_checkpoint(path: Path) -> Finding:
    """Say what a directory is that holds no checkpoint. Raises OSError if it cannot be listed."""
    names = _names_in(path)
    if not names:
        return Finding("an empty directory", _nothing_there(path))
    return (
        _marked(path, names)
        or _code_of_a_release(path, names)
        or _gguf_files(path, names)
        or _in_folders(path, names)
        or _incomplete(path, names)
        or Finding(
            "holds neither shards (tensor00000_000), safetensors nor .bin files",
            "give a ckpt-0 directory, a .gguf file, or a directory with safetensors",
        )
    )


def _nothing_there(path: Path) -> str:
    """Say what to do about an empty directory: how to download a release that it is named like."""
    for family in FAMILIES.values():
        release = family.download
        if release is None:
            continue
        resolved = Path(os.path.abspath(path))
        if resolved.name == release.folder:
            return _download_all(release, os.path.dirname(path) or ".")
        if family.name in resolved.name.lower():
            return _download_all(release, str(path))
    return "its download has not started, or went elsewhere"


def foreign_directory(path: Path) -> Finding | None:
    """Say what a directory is, by names in it that no checkpoint has; None if it has none.

    Raises OSError.
    """
    return _marked(path, _names_in(path))


def _names_in(path: Path) -> list[str]:
    """List a directory, of a large one a part. Raises OSError."""
    with os.scandir(path) as listing:
        names = sorted(entry.name for entry in islice(listing, _MAX_ENTRIES))
    return [name for name in names if not is_trace(name)]


def _marked(path: Path, names: Sequence[str]) -> Finding | None:
    for marker in DIRECTORIES:
        found = [_first(names, pattern) for pattern in marker.names]
        if all(found):
            remedy = filled(path, marker.entry.remedy, str(found[0]))
            return Finding(marker.entry.what, remedy)
    return None


def _first(names: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    return next(filter(pattern.fullmatch, names), None)


def _code_of_a_release(path: Path, names: Collection[str]) -> Finding | None:
    for family in FAMILIES.values():
        release = family.download
        if release is not None and set(release.code) <= set(names):
            command = release.shards_command(path / "checkpoints")  # the clone has the tokenizer
            what = f"the code of {family.title} without its weights"
            return Finding(what, f"download them first ({command})")
    return None


def _gguf_files(path: Path, names: Iterable[str]) -> Finding | None:
    found = [name for name in names if name.lower().endswith(".gguf")]
    split = [match for name in found if (match := SPLIT_NAME.fullmatch(name))]
    firsts = [name for name in found if not (m := SPLIT_NAME.fullmatch(name)) or int(m[2]) == 1]
    if not found:
        return None
    if len(firsts) == 1:
        return Finding("a directory with a GGUF file", f"did you mean {path / firsts[0]}?")
    if not firsts:
        return Finding(
            f"a directory with {count(len(split), 'part')} of a split GGUF file, without the first",
            f"download {split_name(split[0][1], 0, int(split[0][3]))} too",
        )
    return Finding(
        f"a directory with {count(len(firsts), 'GGUF file')}",
        f"name one: {some([str(path / name) for name in firsts])}",
    )


def _in_folders(path: Path, names: Iterable[str]) -> Finding | None:
    """Look for checkpoints in the folders of a directory."""
    found, orbax = [], None
    for name in islice((n for n in names if not n.startswith(".")), _MAX_FOLDERS):
        folder = path / name
        try:
            inside = _names_in(folder) if folder.is_dir() else []
        except OSError:
            continue
        is_cache = name.startswith("models--") and "snapshots" in inside
        if is_cache or any(_WEIGHTS.fullmatch(each) or is_shard_name(each) for each in inside):
            found.append(folder)
            continue
        marked = _marked(folder, inside)
        if marked is not None and marked.what == ORBAX.what:
            orbax = marked
    if len(found) == 1:
        return Finding("holds no checkpoint itself", f"did you mean {found[0]}?")
    if found:
        return Finding("holds several models", f"name one: {some(list(map(str, found)))}")
    return orbax


def _incomplete(path: Path, names: Sequence[str]) -> Finding | None:
    """Recognize what is on its way to be a checkpoint: archives, torrents, parts of a download."""
    torch = [name for name in names if name.endswith((".pt", ".pth"))]
    if torch:
        paths = some([str(path / name) for name in torch])
        return Finding("a directory with files of PyTorch", f"name one: {paths}")
    archive = _first(names, _ARCHIVE)
    if archive is not None:
        return Finding(f"a directory with an archive ({archive})", "unpack that first")
    torrent = _first(names, re.compile(r".*\.torrent"))
    if torrent is not None:
        file = shlex.quote(str(path / torrent))
        return Finding(
            "a directory with a torrent", f"download it first (aria2c --seed-time=0 {file})"
        )
    unfinished = [name for name in names if is_unfinished(name)]
    if unfinished:
        what = f"a directory with an unfinished download ({some(unfinished)})"
        return Finding(what, "let it finish, or start it again")
    if "config.json" in names:
        return Finding("a config.json without weights", "download the model's weights too")
    if {"tokenizer.model", "tokenizer.json"} & set(names):
        return Finding("a tokenizer without weights", "download the model's weights too")
    return None
