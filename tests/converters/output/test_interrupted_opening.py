"""An interrupt while outputs are opened leaves none of them open: the next call has them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import gguf_files
from weightcast.converters.files import posix
from weightcast.converters.output import files, journal


def open_files(folder: Path) -> list[str]:
    """List what this process has open in a folder."""
    links = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            links.append(os.readlink(entry.path))
        except FileNotFoundError:  # the one that lists them
            continue
    return [link for link in links if link.startswith(str(folder))]


pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.mark.parametrize("at", range(1, 5))
def test_files_are_closed_and_the_next_call_has_them(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(5).standard_normal((8, 256)).astype(np.float32)
    source = tmp_path / "model-F32.gguf"
    metadata = {"general.architecture": gguf_files.string("llama")}
    gguf_files.write(source, metadata, {"blk.0.ffn_up.weight": gguf_files.floats(rows)})
    outputs = [tmp_path / "a-Q8_0.gguf", tmp_path / "b-Q4_K_M.gguf"]
    opened = 0

    def open_locked(*arguments: Any) -> int:
        nonlocal opened
        fd = posix.open_locked(*arguments)
        opened += 1
        if opened == at:
            signal.raise_signal(signal.SIGINT)  # it has no owner yet
        return fd

    for module in (files, journal):
        monkeypatch.setattr(module, "open_locked", open_locked)
    with pytest.raises(KeyboardInterrupt):
        weightcast.convert(source, outputs)
    monkeypatch.undo()
    assert opened >= at
    assert not open_files(tmp_path)
    weightcast.convert(source, outputs)
    assert all(output.exists() for output in outputs)
