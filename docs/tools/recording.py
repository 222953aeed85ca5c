#!/usr/bin/env python3
"""Record real commands in a terminal, as an animated SVG that needs nothing but itself.

Each command is typed and run in a pseudo-terminal; what the terminal shows becomes a frame whenever
it changes. Frames share their lines, so that the file stays small. `make recording` runs

    .venv/bin/python docs/tools/recording.py examples/tiny-grok docs/recording.svg
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fcntl import ioctl
from html import escape
from itertools import groupby
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Final

import pyte

ROOT: Final = Path(__file__).parents[2]
PROMPT: Final = "She was persuaded that"
COMMANDS: Final = (
    "weightcast inspect tiny-grok",
    "weightcast convert tiny-grok tiny-grok-Q8_0.gguf tiny-grok-Q4_K_M.gguf --report loss.md",
    "weightcast verify tiny-grok-Q4_K_M.gguf --source tiny-grok",
    f"python complete.py tiny-grok-Q4_K_M.gguf '{PROMPT}' 40   # in llama.cpp",
)

COLUMNS, LINES = 108, 32
CELL_WIDTH, LINE_HEIGHT, MARGIN = 7.2, 16, 12  # of a 12-pixel font
TYPING_SECONDS, LONGEST_SECONDS, READING_SECONDS, LAST_SECONDS = 0.05, 0.6, 2.2, 6.0
SAMPLE_SECONDS: Final = 0.12
MAX_BYTES: Final = 200_000
_FOREGROUND, _BACKGROUND = "#d8dee9", "#242933"
_COLOURS: Final = {
    "black": "#4c566a",
    "red": "#d57780",
    "green": "#a3be8c",
    "brown": "#ebcb8b",
    "blue": "#81a1c1",
    "magenta": "#b48ead",
    "cyan": "#88c0d0",
    "white": "#e5e9f0",
}
Line = tuple[tuple[int, str, str], ...]  # runs: column, colour, text


@dataclass(slots=True)
class Film:
    """What a terminal showed, and for how long."""

    screen: pyte.Screen = field(default_factory=lambda: pyte.Screen(COLUMNS, LINES))
    frames: list[tuple[tuple[Line, ...], float]] = field(default_factory=list)

    def write(self, text: str) -> None:
        pyte.Stream(self.screen).feed(text)

    def hold(self, seconds: float) -> None:
        """Show the screen for some time; the same screen as before is shown for longer."""
        shown = tuple(self._line(row) for row in range(LINES))
        if self.frames and self.frames[-1][0] == shown:
            seconds += self.frames.pop()[1]
        self.frames.append((shown, seconds))

    def _line(self, row: int) -> Line:
        cells = [self.screen.buffer[row][column] for column in range(COLUMNS)]
        runs, column = [], 0
        for colour, same in groupby(cells, key=lambda cell: _COLOURS.get(cell.fg, _FOREGROUND)):
            text = "".join(cell.data for cell in same)
            if text.strip():
                runs.append((column, colour, text.rstrip()))
            column += len(text)
        return tuple(runs)


def record(film: Film, command: str, folder: Path) -> None:
    """Type a command, run it, and show what it prints while it does."""
    film.write("\x1b[32m$\x1b[0m ")
    for start in range(0, len(command), 6):
        film.write(command[start : start + 6])
        film.hold(6 * TYPING_SECONDS)
    film.hold(LONGEST_SECONDS)
    film.write("\r\n")
    status = _run(film, command, folder)
    if status:
        sys.exit(f"{command}: exit code {status}\n" + "\n".join(film.screen.display))
    film.write("\r\n")
    film.hold(READING_SECONDS)


def _run(film: Film, command: str, folder: Path) -> int:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": paths, "TERM": "xterm-256color"}
        os.execvpe("bash", ["bash", "-c", command], environment)
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    last = time.monotonic()
    for text in _output(terminal):
        film.write(text)
        elapsed = time.monotonic() - last
        if elapsed >= SAMPLE_SECONDS:
            film.hold(min(elapsed, LONGEST_SECONDS))
            last = time.monotonic()
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _output(terminal: int) -> Iterator[str]:
    while True:
        try:
            select.select([terminal], [], [])
            data = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other end was closed
            return
        if not data:
            return
        yield data.decode(errors="replace")


def svg(film: Film) -> str:
    """Draw the frames below each other, and move them past a window in steps."""
    lines = dict.fromkeys(line for frame, _ in film.frames for line in frame if line)
    ids = {line: f"l{number}" for number, line in enumerate(lines)}
    total = sum(seconds for _, seconds in film.frames)
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, LINES * LINE_HEIGHT + 2 * MARGIN
    steps, at = [], 0.0
    for number, (_, seconds) in enumerate(film.frames):
        steps.append(f"{100 * at / total:.3f}%{{transform:translateY({-number * height}px)}}")
        at += seconds
    end = f"translateY({-(len(film.frames) - 1) * height}px)"
    drawn = "".join(_frame(frame, n * height, ids) for n, (frame, _) in enumerate(film.frames))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="A terminal session with weightcast">\n<style>'
        f"text{{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}}"
        f"#film{{animation:film {total:.2f}s steps(1,end) infinite}}"
        f"@keyframes film{{{''.join(steps)}}}"
        f"@media(prefers-reduced-motion:reduce){{#film{{animation:none;transform:{end}}}}}"
        f"</style>\n<defs>{''.join(_draw(line, ids[line]) for line in lines)}</defs>\n"
        f'<rect width="100%" height="100%" rx="6" fill="{_BACKGROUND}"/>\n'
        f'<g id="film">{drawn}</g>\n</svg>\n'
    )


def _draw(line: Line, name: str) -> str:
    runs = "".join(
        f'<text x="{column * CELL_WIDTH:g}" fill="{colour}" textLength="'
        f'{len(text) * CELL_WIDTH:g}">{escape(text)}</text>'
        for column, colour, text in line
    )
    return f'<g id="{name}">{runs}</g>'


def _frame(frame: tuple[Line, ...], top: float, ids: dict[Line, str]) -> str:
    base = top + MARGIN + LINE_HEIGHT - 4  # of the first line's letters
    return "".join(
        f'<use href="#{ids[line]}" x="{MARGIN}" y="{base + row * LINE_HEIGHT:g}"/>'
        for row, line in enumerate(frame)
        if line
    )


def main() -> None:
    """Record the commands over a checkpoint, and write the film."""
    checkpoint, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    film = Film()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tiny-grok").symlink_to(checkpoint)
        shutil.copy(ROOT / "examples" / "complete.py", folder)
        for command in COMMANDS:
            record(film, command, Path(folder))
    film.hold(LAST_SECONDS)
    text = svg(film)
    if len(text) > MAX_BYTES:
        sys.exit(f"{target}: {len(text):,} bytes; at most {MAX_BYTES:,} are for a README")
    target.write_text(text)


if __name__ == "__main__":
    main()
