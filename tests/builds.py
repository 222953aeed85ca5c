"""What takes long to build is built once, for all processes that run tests and for later runs.

It lies in build/tests, named by a digest of what it is built from, and `make clean` removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "tests"


def digest(files: Iterable[Path], *ingredients: object) -> str:
    """Name a build by its sources and what else it depends on, such as flags."""
    found = hashlib.sha256(repr(ingredients).encode())
    for file in files:
        found.update(f"{file.name}:{file.stat().st_size}:".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def built_once(kind: str, name: str, build: Callable[[Path], Path], *, keep: int = 3) -> Path:
    """Give what `build` makes in an empty folder, a file or the folder: kind/name in FOLDER.

    The first process that asks builds it while the others wait. Only the newest builds of a kind
    are kept.
    """
    folder = FOLDER / kind
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / name
    if made.exists():
        return made
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made
        before = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
        for old in before[: len(before) - keep + 1]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=".", ignore_cleanup_errors=True
        ) as work:
            build(Path(work)).rename(made)
    return made
