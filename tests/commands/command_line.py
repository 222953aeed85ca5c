"""Helpers for tests of commands: what a command left, and checkpoints to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support import GOLDEN


class Done:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def growing(*outputs: str) -> list[str]:
    """The names of what an interrupted run keeps of outputs."""
    return sorted(f".{name}.{what}" for name in outputs for what in ("journal", "partial"))


def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(GOLDEN / "wide", folder, ignore=lambda *_: ["logits_fp32.npz"])
    return folder
