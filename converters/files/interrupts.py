"""The end of a run: what must be given back however it ends, and not be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


@contextmanager
def signals_held() -> Iterator[None]:
    """Ignore signals during a last step that takes a moment and must be complete."""
    held = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                # Blocking them would not do: another thread would take them.
                held[number] = signal.signal(number, lambda signum, frame: None)
    try:
        yield
    finally:
        for number, before in held.items():
            signal.signal(number, before)


class Held:
    """A context that gives back what was added to it, the last first.

    All of it is given back even if some of that fails. The first failure is raised, unless another
    error is on its way already: that is the one that tells what happened.
    """

    def __init__(self) -> None:
        self._releases: list[Callable[[], None]] = []

    def add(self, release: Callable[[], None]) -> None:
        self._releases.append(release)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        problems: list[Exception] = []
        with signals_held():
            while self._releases:
                try:
                    self._releases.pop()()
                except Exception as problem:
                    problems.append(problem)
        if problems and error is None:
            raise problems[0]
