"""The command on a real terminal: something at once, lines that fit, nothing left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from weightcast.start import main; main()"]


def on_terminal(columns: int, *arguments: object) -> tuple[int, str]:
    """Run the command on a terminal of so many columns: its exit code and all that it wrote."""
    child, terminal = pty.fork()
    if not child:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {"TERM": "xterm", "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        os.execve(COMMAND[0], [*COMMAND, *map(str, arguments)], environment)
    written = b""
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            chunk = b""
        if not chunk:
            break
        written += chunk
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), written.decode()


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_lines_fit_and_go_away(tiny: Path, tmp_path: Path, columns: int) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    code, written = on_terminal(columns, "convert", "--no-tokenizer", "--bundle", tiny, output)
    assert code == 0
    first, *frames, result = written.split("\r\x1b[K")
    assert first == "starting"
    plain = [frame.replace("\x1b[36m", "").replace("\x1b[0m", "") for frame in frames]
    assert all(len(frame) < columns and "\n" not in frame for frame in plain)
    phases = ["reading headers", "converting", "flushing to the disk", "hashing"]
    seen = [phase for phase in phases if any(f.startswith(phase[: columns - 1]) for f in plain)]
    assert seen == phases
    assert result.startswith(f"{output}: ")
    assert result.endswith("\r\n")


def test_an_error_stands_alone(tmp_path: Path) -> None:
    code, written = on_terminal(80, "inspect", tmp_path / "absent")
    assert code == 1
    assert written.split("\r\x1b[K")[-1].startswith("\x1b[31m\x1b[1merror\x1b[0m: ")


def test_quiet_is_quiet(tiny: Path, tmp_path: Path) -> None:
    code, written = on_terminal(
        80, "convert", "--quiet", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf"
    )
    assert (code, written) == (0, "")
