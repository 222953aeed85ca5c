"""Fixtures for tests of commands: a command line to run, a GGUF file of no known model."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import gguf_files
from tests.commands.command_line import Done
from weightcast import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["weightcast", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def any_gguf(tmp_path: Path) -> Path:
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    metadata = {
        "general.architecture": gguf_files.string("my-arch"),
        "my-arch.block_count": gguf_files.u32(3),
        "tokenizer.ggml.tokens": gguf_files.strings(*"abcdefghijklmnopqrstuvwxyz"),
        "general.name": gguf_files.string(b"\xff\n\x1b[31m"),
    }
    tensors = {"blk.0.a.weight": gguf_files.floats(x), "blk.1.a.weight": gguf_files.floats(x)}
    return gguf_files.write(tmp_path / "any.gguf", metadata, tensors)
