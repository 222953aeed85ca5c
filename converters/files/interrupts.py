"""Take and release resources without being interrupted in between, whatever ends a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType


@contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP call a handler; those that are ignored stay so."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                # Blocking them would not do: another thread would take them.
                handlers[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


def ignore_signals() -> AbstractContextManager[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP during a short last step that must be complete."""
    return _handling(lambda signum, frame: None)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back during a step after which something has an owner."""
    came: list[int] = []
    with _handling(lambda signum, frame: came.append(signum)):
        yield
    if came:
        signal.raise_signal(came[0])


class ReleaseStack(ExitStack):
    """Release resources when the context ends, the last one first, with signals ignored.

    All are released even if some of that fails. The first error is the one that is raised: that of
    the context's body, if there is one, for it tells what happened.
    """

    def add(self, release: Callable[[], None]) -> None:
        """Call `release` when the context ends."""

        def leave(_: object, error: BaseException | None, trace: TracebackType | None) -> None:
            try:
                release()
            except Exception:
                if error is None:
                    raise

        self.push(leave)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        with ignore_signals():
            return super().__exit__(kind, error, trace)
