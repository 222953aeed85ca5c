"""Progress of a conversion on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_S = 15.0


@contextmanager
def progress(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the source bytes that were finished, from any thread."""
    if quiet:
        yield lambda nbytes: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total_bytes, unit="B", unit_scale=True, smoothing=0.1) as bar:
            lock = threading.Lock()

            def update(nbytes: int) -> None:
                # A terminal that went away must not end the conversion.
                with lock, contextlib.suppress(OSError):
                    bar.update(nbytes)

            yield update
    else:
        yield ProgressLines(total_bytes).update


class ProgressLines:
    """Plain lines with an estimate, every 15 seconds."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._done = 0
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def update(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._last < INTERVAL_S:
                return
            self._last = now
            share = self._done / self._total
            left = (now - self._start) * (1 - share) / share
            with contextlib.suppress(OSError):
                text = f"{share:.0%} done, about {left / 60:.0f} min left"
                print(text, file=sys.stderr, flush=True)
