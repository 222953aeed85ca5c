"""Checksums: SHA256SUMS beside or in an artifact, and the list of tensors of a release bundle."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from weightcast.converters.engine import FileToHash, hash_files
from weightcast.converters.verify.result import Problem, plain, refusal
from weightcast.errors import CheckpointError
from weightcast.formats.array import StoredArray
from weightcast.formats.directory import MAX_NAME_BYTES, beside, entries
from weightcast.formats.reading import read_json_object, read_small
from weightcast.formats.split import SPLIT_NAME
from weightcast.text import some

SUMS: Final = "SHA256SUMS"
TENSORS: Final = "tensors.json"
# Of sources; of artifacts see `find_sums`.
_SUMS_NAME: Final = re.compile(r"sha256sums?(\.txt)?|.*\.sha256(sums?)?", re.IGNORECASE)
_LINE: Final = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_LOADED: Final = re.compile(
    r"[^.].*\.(safetensors|json|py|model|jinja|bin|pt|pth|ckpt|gguf|pkl|msgpack|h5|onnx)"
    r"|(merges|vocab)\.txt"
)
_ESCAPES: Final = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_CHUNK_BYTES: Final = 1 << 20
# Forty thousand lines; of names that no file beside them has so many are told.
_MAX_SUMS_BYTES: Final = 1 << 22
_MAX_BAD_LINES: Final = 100
_REMEDY: Final = "copy the file again from where the checksums are from"


@dataclass
class Checksums:
    """Checksums that were found: the files that have them, by name, and those read for them.

    `useless` are files of checksums in the directory that name none of its files.
    """

    files: tuple[Path, ...] = ()
    digests: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    useless: list[Path] = field(default_factory=list)


def find_sums(artifact: Path, files: Iterable[Path]) -> Checksums:
    """Read the checksums of an artifact: in a directory, or beside a GGUF file under its name.

    A plain SHA256SUMS beside a file counts if it names one of `files`.
    """
    files = list(files)
    sums = Checksums()
    if artifact.is_dir():
        candidates = [artifact / SUMS]
    else:
        match = SPLIT_NAME.fullmatch(artifact.name)
        names = [artifact.name, artifact.stem]
        if match is not None:
            names += [f"{match[1]}.gguf", match[1]]
        candidates = [artifact.with_name(f"{name}.{SUMS}") for name in names]
        candidates.append(artifact.with_name(SUMS))
    for path in candidates:
        if not path.is_file():
            continue
        digests = _read(path, sums.problems)
        if path.name == SUMS and not artifact.is_dir():
            digests = {file: sha for file, sha in digests.items() if file in files}
            if not digests:
                continue
        sums.files = (*sums.files, path)
        sums.digests.update(digests)
    return sums


def read_sums_of(directory: Path) -> Checksums:
    """Read the checksums of files in a directory: from a SHA256SUMS in it, or beside it.

    Sums may name files with their folder, as `sha256sum ckpt-0/*` does, which may have been
    elsewhere. Those beside the directory may be of anything, and count if they name its files.
    """
    sums = Checksums()
    guesses: dict[Path, str] = {}
    names = {entry.name for entry in entries(directory)}
    for path in beside(directory, 2):
        if not _SUMS_NAME.fullmatch(path.name) or not path.is_file():
            continue
        problems: list[Problem] = []
        found, guessed = _named(list(_lines(path, problems)), path, directory, names)
        if found or guessed or path.parent == directory:
            sums.problems += problems
        if found or guessed:
            sums.files = (*sums.files, path)
        elif path.parent == directory and not problems:
            sums.useless.append(path)
        for place, digest in found.items():
            if sums.digests.setdefault(place, digest) != digest:
                what = f"its SHA-256 in {path} is another than in the sums before"
                sums.problems.append(Problem(str(place), what, remedy="remove the wrong sums"))
        guesses = guessed | guesses
    sums.digests = guesses | sums.digests
    return sums


def _named(
    lines: Iterable[tuple[str, str]], path: Path, directory: Path, names: Collection[str]
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Find the files of a directory that lines name, and those that they seem to name.

    Made where the files lay before, sums name them under folders that are not there: the last of
    these is then the directory's. A name with several digests is of several directories.
    """
    found: dict[Path, str] = {}
    guessed: dict[Path, set[str]] = defaultdict(set)
    for said, digest in lines:
        name = said.removeprefix("*")
        place = Path(os.path.normpath(path.parent / name))
        if place.parent == directory and (place.name in names or "\\" not in name):
            if place != path:
                found[place] = digest
            continue
        *folders, last = re.split(r"[/\\]", name)
        is_of_directory = not folders or folders[-1] in (".", directory.name)
        is_near = path.parent in (directory, directory.parent)
        if last in names and is_of_directory and is_near and not os.path.lexists(place):
            guessed[directory / last].add(digest)
    return found, {place: all_.pop() for place, all_ in guessed.items() if len(all_) == 1}


def _read(path: Path, problems: list[Problem]) -> dict[Path, str]:
    """Read the sums of files beside them; other lines are problems."""
    digests: dict[Path, str] = {}
    most = len(problems) + _MAX_BAD_LINES
    for name, digest in _lines(path, problems):
        if len(problems) >= most:
            problems.append(Problem(f"{path}, from {plain(name)} on", "was not looked at"))
            break
        if Path(name).name != name.removeprefix("./") or name in ("", ".", ".."):
            problems.append(Problem(str(path), f"{plain(name)}: is in another folder"))
            continue
        if len(name.encode(errors="surrogateescape")) > MAX_NAME_BYTES or "\0" in name:
            problems.append(Problem(str(path), f"{plain(name)}: is no name that a file can have"))
            continue
        digests[path.parent / name] = digest
    return digests


def _lines(path: Path, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Read names and digests as sha256sum writes them; a problem tells of other lines."""
    try:
        raw = read_small(path, _MAX_SUMS_BYTES)
    except CheckpointError as problem:
        problems.append(refusal(problem))
        return
    bad: list[str] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is not None:
            name = match[3].decode(errors="surrogateescape")
            if match[1]:
                name = re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], name)
            yield name, match[2].decode().lower()
        elif line.strip() and not line.startswith(b"#"):
            bad.append(str(number))
    if bad:
        what = f"{'is no line' if len(bad) == 1 else 'are no lines'} of sha256sum"
        remedy = "write 64 hexadecimal digits, two spaces, and the file's name"
        lines = f"line{'s' if len(bad) > 1 else ''} {some(bad)}"
        problems.append(Problem(f"{path}, {lines}", what, remedy=remedy))


def is_loaded(name: str) -> bool:
    """Tell whether loaders read files of a name: weights, configurations, code, tokenizers.

    Licences, pictures, cards and signatures, which hubs and their users add, change no model.
    """
    return _LOADED.fullmatch(name) is not None


def check_sums(
    sums: Checksums,
    files: Iterable[Path],
    tensors: Mapping[str, StoredArray],
    *,
    jobs: int,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> list[Problem]:
    """Hash all files that have checksums; say which differ, are missing, or have none.

    Where a list of tensors lies beside, the tensors that differ are named.
    """
    problems = list(sums.problems)
    there = [path for path in sums.digests if path.is_file()]
    for path in sums.digests:
        if path not in there:
            where = sums.files[-1].name
            problems.append(Problem(str(path), f"missing, but {where} names it", remedy=_REMEDY))
    wanted = [FileToHash(path, check=lambda status: None) for path in there]
    found = hash_files(wanted, jobs, on_progress)
    listed = _listed_tensors(sums)
    for path, hashed in zip(there, found, strict=True):
        if hashed.sha256 == sums.digests[path]:
            continue
        what = "its SHA-256 is another than SHA256SUMS says"
        problems.append(Problem(str(path), what, remedy=_REMEDY, mistake="checksum"))
        problems += _damaged_tensors(path, tensors, listed)
    for path in files:
        if sums.digests and path not in sums.digests:
            what = f"has no checksum in {sums.files[-1].name}"
            problems.append(Problem(str(path), what, remedy="remove it, or add it there"))
    return problems


def _listed_tensors(sums: Checksums) -> dict[tuple[str, str], str]:
    """Digests of tensors by file and name, from the lists of release bundles beside the sums."""
    listed = {}
    for path in sums.digests:
        if path.name != TENSORS and not path.name.endswith(f".{TENSORS}"):
            continue
        try:
            said: Any = read_json_object(path).get("tensors")
        except CheckpointError:
            continue  # its own checksum tells
        for entry in said if isinstance(said, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("sha256"), str):
                listed[str(entry.get("file")), str(entry.get("name"))] = entry["sha256"]
    return listed


def _damaged_tensors(
    path: Path, tensors: Mapping[str, StoredArray], listed: Mapping[tuple[str, str], str]
) -> Iterable[Problem]:
    for name, array in tensors.items():
        wanted = listed.get((path.name, name))
        if array.path == path and wanted is not None and _region(array) != wanted:
            what = "its SHA-256 is another than the list of tensors says"
            yield Problem(str(path), what, plain(name), _REMEDY, "checksum")


def _region(array: StoredArray) -> str:
    sha = hashlib.sha256()
    with array.path.open("rb") as file:
        file.seek(array.offset)
        left = array.nbytes
        while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
            sha.update(chunk)
            left -= len(chunk)
    return sha.hexdigest()
