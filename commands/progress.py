"""Show progress on stderr: a line that changes on a terminal, elsewhere one each ten percent.

On a terminal there is something to see from the first moment on, and it is gone when the work is
done. Elsewhere, as in logs, a run that takes a moment says nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import click

from weightcast.commands.printing import ERASE_LINE, on_terminal, tell, wants_color
from weightcast.text import duration, size_text

if TYPE_CHECKING:  # inspect needs none of what comes with it
    from weightcast.converters.engine.progress import Phase, Progress

_LABELS: Final[dict[Phase, str]] = {
    "plan": "reading headers",
    "check": "checking kept work",
    "convert": "converting",
    "flush": "flushing to the disk",
    "hash": "hashing",
    "compare": "comparing",
    "verify": "verifying",
    "run": "running layers",
    "score": "scoring predictions",
}
# Rates are those of so many seconds.
_WINDOW_S: Final = 10.0
# A run that takes less has no lines in logs, and these are not closer to each other.
_QUIET_S: Final = 2.0
_DRAW_S: Final = 0.1
_TICK_S: Final = 0.5
_BAR_WIDTHS: Final = (10, 40)


class Display(Protocol):
    """A place where progress is shown; calling it shows where a run is, from any thread."""

    def __call__(self, progress: Progress) -> None:
        """Show where a run is."""

    def tell(self, *lines: str) -> None:
        """Print notes to stderr, beside what is shown."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Display]:
    """Show progress until the context ends, unless it is to be quiet."""
    if quiet:
        yield _Silent()
    elif on_terminal():
        with TerminalLine() as line:
            yield line
    else:
        yield LogLines()


class _Silent:
    def __call__(self, progress: Progress) -> None:
        """Show nothing."""

    def tell(self, *lines: str) -> None:
        tell(*lines)


class Rate:
    """The bytes per second of the last seconds of a phase."""

    def __init__(self, now: float, done_bytes: int) -> None:
        self._points = deque([(now, done_bytes)])

    def add(self, now: float, done_bytes: int) -> None:
        """Take note of how many bytes are done by now."""
        points = self._points
        if len(points) > 1 and now - points[-2][0] < _DRAW_S:
            points.pop()
        points.append((now, done_bytes))
        while len(points) > 2 and now - points[1][0] >= _WINDOW_S:
            points.popleft()

    def bytes_per_second(self, now: float) -> float:
        (start, before), (_, done) = self._points[0], self._points[-1]
        return (done - before) / (now - start) if now > start else 0.0


class LogLines:
    """Print a line each ten percent of a phase, and none of one that lasts a moment."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._tenths = 0
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now, total = time.monotonic(), progress.total_bytes
        tenths = 10 * progress.done_bytes // total if total else 0
        if progress.phase != self._phase:
            self._phase, self._tenths, self._last = progress.phase, tenths, now
            self._rate = Rate(now, progress.done_bytes)
            return
        self._rate.add(now, progress.done_bytes)
        if tenths == self._tenths or now - self._last < _QUIET_S:
            return
        self._tenths, self._last = tenths, now
        rate = self._rate.bytes_per_second(now)
        said = [f"{_percent(progress)} of {size_text(total)}", *_rate_texts(progress, rate)]
        with contextlib.suppress(OSError):  # nobody reads it any more
            tell(f"{_LABELS[progress.phase]}: {', '.join(said)}")

    def tell(self, *lines: str) -> None:
        tell(*lines)


class TerminalLine:
    """Draw a line that changes; a context that erases it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._drawn = self._start = time.monotonic()
        self._progress: Progress | None = None
        self._rate = Rate(self._start, 0)
        self._is_over = threading.Event()
        self._ticks = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> TerminalLine:
        self._draw()
        with contextlib.suppress(RuntimeError):  # no more threads: the time does not go on
            self._ticks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        with self._lock:
            self._write(ERASE_LINE)

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        with self._lock:
            is_new = self._progress is None or progress.phase != self._progress.phase
            self._progress = progress
            if is_new:
                self._start, self._rate = now, Rate(now, progress.done_bytes)
            if is_new or now - self._drawn >= _DRAW_S:
                self._draw()

    def tell(self, *lines: str) -> None:
        with self._lock:
            self._write(ERASE_LINE)
            tell(*lines)
            self._draw()

    def _tick(self) -> None:
        """Let time go on where no bytes do."""
        while not self._is_over.wait(_TICK_S):
            with self._lock:
                if time.monotonic() - self._drawn >= _TICK_S and not self._is_over.is_set():
                    self._draw()

    def _draw(self) -> None:
        self._drawn = now = time.monotonic()
        text = self._text(now)
        if wants_color(sys.stderr) and text.startswith(self._label):
            text = click.style(self._label, fg="cyan") + text.removeprefix(self._label)
        self._write(ERASE_LINE + text)

    @property
    def _label(self) -> str:
        return _LABELS["plan" if self._progress is None else self._progress.phase]

    def _text(self, now: float) -> str:
        """Compose the line: less where it is narrow, a bar where there is room."""
        width, progress = _width() - 1, self._progress  # a full line would wrap
        if progress is None or not progress.total_bytes or progress.phase == "flush":
            seconds = now - self._start
            waited = f", {duration(seconds)}" if seconds >= 1 else ""
            return f"{self._label}{waited}"[:width]
        self._rate.add(now, progress.done_bytes)
        rate = self._rate.bytes_per_second(now)
        return fitted(f"{self._label}  {_percent(progress):>4}", progress, rate, width)

    def _write(self, text: str) -> None:
        # A terminal that went away must not end the work.
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def fitted(left: str, progress: Progress, rate: float, width: int) -> str:
    """Go on with what there is room for: the time left, the rate, the bytes, a bar."""
    texts = _rate_texts(progress, rate)
    done = f"{size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}"
    right = ""
    for parts in (texts[-1:], texts, [done, *texts]):
        wider = "".join(f"  {part}" for part in parts)
        if len(left) + len(wider) <= width:
            right = wider
    room = min(width - len(left) - len(right) - 2, _BAR_WIDTHS[1])
    if room < _BAR_WIDTHS[0]:
        return (left + right)[:width]
    from tqdm import tqdm  # a moment to import, which inspect need not wait for

    return tqdm.format_meter(
        min(progress.done_bytes, progress.total_bytes),
        progress.total_bytes,
        elapsed=0,
        ascii=not _has_blocks(),
        bar_format=f"{left}  {{bar:{room}}}{right}",
    )


def _percent(progress: Progress) -> str:
    """The share that is done; only all of it is 100 %."""
    return f"{100 * progress.done_bytes // progress.total_bytes}%"


def _rate_texts(progress: Progress, rate: float) -> list[str]:
    """The rate and the time left, where something was done in the last seconds."""
    if rate <= 0:
        return []
    left = max(progress.total_bytes - progress.done_bytes, 0) / rate
    return [f"{size_text(rate)}/s", f"{duration(left)} left"]


def _width() -> int:
    """The columns of the terminal, which may have changed since the last line."""
    with contextlib.suppress(OSError, ValueError):
        if columns := os.get_terminal_size(sys.stderr.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def _has_blocks() -> bool:
    """Tell whether the terminal has the characters of a smooth bar."""
    try:
        "█▏".encode(sys.stderr.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
