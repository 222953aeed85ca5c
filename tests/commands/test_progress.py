"""Lines of progress where there is no terminal."""

from __future__ import annotations

import pytest

from weightcast.commands import progress


def test_progress_lines_name_the_share_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([5.0, 10.0, 25.0, 26.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.ProgressLines(100)
    for nbytes in (0, 5, 5, 5):
        lines.update(nbytes)
    assert capsys.readouterr().err == "10% done, about 3 min left\n"


def test_progress_does_not_count_what_an_interrupted_run_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time left follows from what is made now; nothing made yet is no division by zero."""
    clock = iter([100.0, 120.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.ProgressLines(100)
    for nbytes in (50, 0, 10):
        lines.update(nbytes)
    assert capsys.readouterr().err == "60% done, about 2 min left\n"
