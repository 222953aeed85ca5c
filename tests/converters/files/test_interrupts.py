"""Signals that are held back count afterwards."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from weightcast.converters.files import defer_signals, ignore_signals

pytestmark = pytest.mark.usefixtures("interruptible")


def interrupted(after: Callable[[], None]) -> None:
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        after()


def fail() -> None:
    raise ValueError("step")


def test_a_step_ends_before_an_interrupt_counts() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: done.append("step"))
    assert done == ["step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_step_is_what_is_told() -> None:
    with pytest.raises(ValueError, match="step"):
        interrupted(fail)


def test_a_last_step_is_not_interrupted() -> None:
    with ignore_signals():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
