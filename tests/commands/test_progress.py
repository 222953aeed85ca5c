"""Progress on a terminal of any width, and in logs."""

from __future__ import annotations

import io
import os

import pytest

from weightcast import Progress
from weightcast.commands import progress
from weightcast.commands.progress import LogLines, Rate, TerminalLine, fitted


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


def test_a_line_each_ten_percent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines()
    for done in range(0, 2001, 10):
        lines(Progress("convert", done * 10**6, 2 * 10**9))
        clock.now += 0.25
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 10
    assert said[0] == "converting: 10% of 2.0 GB, 40.0 MB/s, 45 s left"
    assert said[-1] == "converting: 100% of 2.0 GB, 40.0 MB/s, 0.0 s left"


def test_a_moment_needs_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is there one for each ten percent of a few seconds."""
    lines = LogLines()
    for done in range(101):
        lines(Progress("convert", done, 100))
        clock.now += 0.015
    assert capsys.readouterr().err == ""
    for done in range(101):
        lines(Progress("hash", done, 100))
        clock.now += 0.0625
    said = [line.split(" of")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["hashing: 32%", "hashing: 64%", "hashing: 96%"]


def test_what_was_kept_makes_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on has done nothing of it in the last seconds."""
    lines = LogLines()
    lines(Progress("convert", 50 * 10**6, 100 * 10**6))
    clock.now += 10
    lines(Progress("convert", 60 * 10**6, 100 * 10**6))
    assert capsys.readouterr().err == "converting: 60% of 100 MB, 1.0 MB/s, 40 s left\n"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(0.0, 0)
    for second in range(1, 101):
        rate.add(second, 1000 * second)
    for second in range(101, 121):
        rate.add(second, 100_000 + 10 * (second - 100))
    assert rate.bytes_per_second(120) == pytest.approx(10)
    rate.add(140.0, 100_200)  # nothing for twenty seconds
    assert rate.bytes_per_second(140) == 0


TEXTS = "450 MB of 1.0 GB  12.0 MB/s  46 s left"
WIDE = f"convert   45%  {'━' * 18}{'─' * 22}  {TEXTS}"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (200, WIDE),
        (len(WIDE), WIDE),
        (79, f"convert   45%  {'━' * 10}{'─' * 14}  {TEXTS}"),
        (60, f"convert   45%  {TEXTS}"),
        (39, "convert   45%  12.0 MB/s  46 s left"),
        (30, "convert   45%  46 s left"),
        (20, "convert   45%"),
        (10, "convert   "),
    ],
)
def test_a_line_fits(width: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_bar_characters", lambda: ("━", "─"))
    now = Progress("convert", 450 * 10**6, 10**9)
    found = fitted("convert   45%", now, 12e6, width)
    assert found == line
    assert len(found) <= width


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal of 60 columns; pytest has another one where fixtures are made."""
    made = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", made)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((60, 24)))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    return made


def frames(terminal: Terminal) -> list[str]:
    return terminal.getvalue().split("\r\x1b[K")[1:]


def test_a_terminal_shows_something_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress.progress(quiet=False) as shown:
        assert frames(terminal) == ["\x1b[36mreading headers\x1b[0m"]
        clock.now += 5
        shown(Progress("convert", 0, 1000))
        shown.tell("note: something")
        clock.now += 5
        shown(Progress("convert", 500, 1000))
        shown(Progress("convert", 600, 1000))  # too soon for another line
        clock.now += 5
        shown(Progress("flush", 0, 1000))
    assert frames(terminal)[1:] == [
        "\x1b[36mconverting\x1b[0m    0%  ..........................  0 B of 1.0 kB",
        "\x1b[36mnote\x1b[0m: something\n",
        "\x1b[36mconverting\x1b[0m    0%  ..........................  0 B of 1.0 kB",
        "\x1b[36mconverting\x1b[0m   50%  500 B of 1.0 kB  100 B/s  5.0 s left",
        "\x1b[36mflushing to the disk\x1b[0m",
        "",  # it is gone at the end
    ]


def test_no_color(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with TerminalLine():
        pass
    assert frames(terminal) == ["reading headers", ""]


def test_a_terminal_without_abilities_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress.progress(quiet=False) as shown:
        assert isinstance(shown, LogLines)


def test_quiet_shows_nothing_but_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress.progress(quiet=True) as shown:
        shown(Progress("convert", 1, 2))
        shown.tell("going on")
    assert terminal.getvalue() == "going on\n"
