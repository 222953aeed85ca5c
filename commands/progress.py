"""Show progress on stderr: as a bar on a terminal, else as a line now and then."""

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
    """Yield a function that takes the number of bytes just finished, from any thread."""
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
    """Print plain lines with an estimate, every 15 seconds.

    The first bytes only start the clock: an interrupted run may have finished them.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._done = 0
        self._earlier: int | None = None
        self._start = self._last = 0.0
        self._lock = threading.Lock()

    def update(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if self._earlier is None:
                self._earlier = self._done
                self._start = self._last = now
            made = self._done - self._earlier
            if now - self._last < INTERVAL_S or made == 0:
                return
            self._last = now
            left = (now - self._start) * (self._total - self._done) / made
            with contextlib.suppress(OSError):
                text = f"{self._done / self._total:.0%} done, about {left / 60:.0f} min left"
                print(text, file=sys.stderr, flush=True)
