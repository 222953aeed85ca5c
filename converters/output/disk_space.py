"""Refuse outputs that do not fit where they are to go, before the first byte is written."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.files import partial_path
from weightcast.converters.output.files import grown_paths
from weightcast.converters.targets.target import Output
from weightcast.errors import OutputError


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes that outputs need on one file system, and what is free there."""

    folder: Path
    needed: int
    free: int


def disk_space(outputs: Sequence[Output]) -> list[DiskSpace]:
    """Sum up what is needed on each file system; what a killed run left there counts as free."""
    needed: dict[int, int] = defaultdict(int)
    stale: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for output in outputs:
        parent = output.request.path.parent
        device = parent.stat().st_dev
        needed[device] += output.size
        stale[device] += _stale_bytes(output)
        folders.setdefault(device, parent)
    return [
        DiskSpace(folder, needed[device], shutil.disk_usage(folder).free + stale[device])
        for device, folder in folders.items()
    ]


def check_free_space(outputs: Sequence[Output]) -> None:
    """Raise OutputError if a file system cannot hold what is planned on it."""
    for space in disk_space(outputs):
        if space.needed > space.free:
            raise OutputError(
                f"{space.folder}: {space.needed:,} bytes are needed, but {space.free:,} are free; "
                "free some space or write elsewhere"
            )


def _stale_bytes(output: Output) -> int:
    """Bytes that a killed conversion of the same output left on the disk; they will be reused."""
    paths = grown_paths(output)
    if output.request.target.is_directory:
        folder = partial_path(output.request.path)
        paths = list(folder.iterdir()) if folder.is_dir() else []
    return sum(path.lstat().st_blocks * 512 for path in paths if path.is_file())
