"""Release resources at the end of a run, whatever ends it, without being interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP during a short last step that must be complete."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                # Blocking them would not do: another thread would take them.
                handlers[number] = signal.signal(number, lambda signum, frame: None)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


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
