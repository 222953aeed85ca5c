"""Streams that cannot be written change no result and no exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from weightcast.start import main; main()"]
GATE = ("--fail-over", "sqnr_db=90")


def code_of(*arguments: object, out: str = "/dev/null", err: str = "/dev/null") -> int:
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        words = [*COMMAND, *map(str, arguments)]
        return subprocess.run(words, stdout=stdout, stderr=stderr, check=False).returncode


@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_closed_gate_is_exit_3_whatever_can_be_said(
    tiny: Path, tmp_path: Path, stream: str
) -> None:
    command = ("convert", "--no-tokenizer", tiny, tmp_path / "a-Q4_0.gguf", *GATE)
    assert code_of(*command, **{stream: "/dev/full"}) == 3
    assert code_of(*command, "--gate", "after", **{stream: "/dev/full"}) == 3


def test_problems_are_exit_3_whatever_can_be_said(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a-F16.gguf"
    assert code_of("convert", "--no-tokenizer", "-q", tiny, path) == 0
    path.write_bytes(path.read_bytes()[:-1000])
    assert code_of("verify", path, out="/dev/full", err="/dev/full") == 3


def test_a_result_that_cannot_be_printed_is_a_failure(tiny: Path, tmp_path: Path) -> None:
    path, err = tmp_path / "a-F16.gguf", tmp_path / "err"
    command = ("convert", "--no-tokenizer", tiny, path)
    assert code_of(*command, out="/dev/full", err=str(err)) == 1
    assert path.exists()
    assert err.read_text() == (
        "error: the result cannot be printed: No space left on device (the work itself is done)\n"
    )
