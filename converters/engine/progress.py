"""Tell a caller how far a run is: which phase it is in, and how many bytes of it are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from weightcast.errors import RequestError
from weightcast.text import shown

# plan     read headers and lay out what is to be written
# check    compare what an interrupted run kept with its journal
# convert  read weights, write outputs
# flush    bring the outputs to the disk, before they get their names
# hash     read files for their checksums
# compare  measure tensors against each other
# verify   look at the weights of an artifact, beside those of its source if there is one
# run      run layers of models over a text
# score    run their heads, and compare what they predict
Phase = Literal["plan", "check", "convert", "flush", "hash", "compare", "verify", "run", "score"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: its phase, and the bytes of it that are done, of `total_bytes`.

    The phases are plan, check (of what an interrupted run kept), convert, flush (to the disk), hash
    (for checksums), compare, verify, run (of layers over a text) and score (of predictions); a run
    has those that it needs. Bytes are counted in each anew; `total_bytes` is 0 where none are, as
    in plan.
    """

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Do nothing: the callback of callers that do not ask."""


def callback(on_progress: Any) -> OnProgress:
    """Give the callback that a caller gave, or one for those that do not ask.

    Raises RequestError for what cannot be called.
    """
    if on_progress is None:
        return ignore_progress
    if not callable(on_progress):
        given = shown(on_progress)
        raise RequestError(f"on_progress: give a function of a weightcast.Progress, not {given}")
    found: OnProgress = on_progress
    return found


class Cancelled(BaseException):
    """Carry what a callback raised past everything that handles errors, up to `cancellable`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def cancellable() -> Iterator[None]:
    """Let what a progress callback raises end a run, and go on to the caller unchanged."""
    try:
        yield
        return
    except Cancelled as stop:
        error = stop.error
    raise error from error.__cause__


class Meter:
    """Count bytes from any thread, and report them to a callback, one call at a time.

    What the callback raises is raised as `Cancelled` where bytes are reported, and ends the run.
    After that it is not called again, though other threads may still report what they finish.
    """

    def __init__(self, on_progress: OnProgress = ignore_progress) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._now = Progress("plan")
        self._is_cancelled = False

    def start(
        self, phase: Phase, total_bytes: int = 0, done_bytes: int = 0
    ) -> Callable[[int], None]:
        """Begin a phase. Returns what takes the bytes just finished."""
        with self._lock:
            self._tell(Progress(phase, done_bytes, total_bytes))
        return self.add

    def add(self, nbytes: int) -> None:
        """Report more bytes of the phase."""
        with self._lock:
            self._tell(replace(self._now, done_bytes=self._now.done_bytes + nbytes))

    def _tell(self, progress: Progress) -> None:
        self._now = progress
        if self._is_cancelled:
            return
        try:
            self._on_progress(progress)
        except BaseException as error:
            self._is_cancelled = True
            raise Cancelled(error) from error.__cause__
