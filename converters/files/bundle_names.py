"""The files of a release bundle: their names, which of them an earlier conversion wrote.

They lie in a directory, or beside a GGUF file under its name without the ending.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.errors import CheckpointError
from weightcast.formats.reading import MAX_JSON_BYTES, read_small

# docs/bundle.md says what a statement of this type holds.
BUILD_TYPE: Final = "urn:weightcast:convert:v1"
STATEMENT: Final = "intoto.json"
TENSORS: Final = "tensors.json"
CARD: Final = "README.md"
SUMS: Final = "SHA256SUMS"
# In the order of writing: the statement tells whether the next two are those that it speaks of, and
# a bundle is complete when the sums are there.
NAMES: Final = (STATEMENT, TENSORS, CARD, SUMS)


@dataclass(frozen=True, slots=True)
class BundlePaths:
    """The paths of one output's bundle: `folder`, and what the files' names start with."""

    folder: Path
    prefix: str = ""

    def path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}{name}"

    @property
    def all(self) -> tuple[Path, ...]:
        return tuple(map(self.path, NAMES))


def bundle_paths(output: Path, is_directory: bool) -> BundlePaths:
    """Name the bundle of a directory, in it, or of a GGUF file, split or not, beside it."""
    if is_directory:
        return BundlePaths(output)
    return BundlePaths(output.parent, output.name.removesuffix(".gguf") + ".")


def written_before(paths: BundlePaths) -> list[Path]:
    """Find the files of an earlier bundle that are still as a conversion wrote them."""
    statement = _content(paths.path(STATEMENT))
    told = None if statement is None else _digests(statement)
    if statement is None or told is None:
        return []
    subjects, byproducts = told
    own = [paths.path(STATEMENT)]
    for name in (TENSORS, CARD):
        content = _content(paths.path(name))
        if content is not None and sha256(content) in byproducts:
            own.append(paths.path(name))
    sums = _content(paths.path(SUMS))
    if sums is not None:
        listed = {line.removeprefix(b"\\")[:64].decode("latin-1") for line in sums.splitlines()}
        needed = subjects | {sha256(statement)}
        if needed <= listed <= needed | byproducts:
            own.append(paths.path(SUMS))
    return own


def foreign_files(paths: BundlePaths) -> list[Path]:
    """Find files under a bundle's names that no conversion wrote, or that were edited since."""
    own = written_before(paths)
    return [path for path in paths.all if os.path.lexists(path) and path not in own]


def sha256(content: bytes) -> str:
    import hashlib  # OpenSSL takes a moment to load

    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return read_small(path, MAX_JSON_BYTES)
    except CheckpointError:
        return None


def _digests(statement: bytes) -> tuple[set[str], set[str]] | None:
    """The digests of subjects and byproducts of a statement; None if it is not one of ours."""
    try:
        value: Any = json.loads(statement)
        predicate = value["predicate"]
        if predicate["buildDefinition"]["buildType"] != BUILD_TYPE:
            return None
        named = value["subject"], predicate["runDetails"]["byproducts"]
        subjects, byproducts = ({entry["digest"]["sha256"] for entry in found} for found in named)
        return subjects, byproducts
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
