"""Progress callbacks: phases, totals, one call at a time, and runs that they cancel."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weightcast
from weightcast import Progress
from weightcast.converters.engine.progress import Cancelled, Meter, cancellable
from weightcast.converters.files.names import journal_path, partial_path

CONVERT_PHASES = ["plan", "convert", "flush", "hash"]


class Stop(Exception):
    """What a caller raises to cancel a run."""


def stop_in(phase: str, error: BaseException, share: float = 0.0) -> Callable[[Progress], None]:
    """Make a callback that raises in a phase when such a share of it is done."""

    def on_progress(progress: Progress) -> None:
        if progress.phase == phase and progress.done_bytes >= share * progress.total_bytes:
            raise error

    return on_progress


def test_bytes_are_added_up_from_all_threads() -> None:
    told: list[Progress] = []
    busy = threading.Lock()

    def on_progress(progress: Progress) -> None:
        assert busy.acquire(blocking=False)  # one call at a time
        told.append(progress)
        busy.release()

    meter = Meter(on_progress)
    add = meter.start("convert", 4000, 1000)
    threads = [threading.Thread(target=lambda: [add(1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [Progress("convert", done, 4000) for done in range(1000, 3001)]
    meter.start("flush")
    assert told[-1] == Progress("flush", 0, 0)


def test_a_callback_that_raised_is_not_called_again() -> None:
    calls: list[Progress] = []
    error = Stop("enough")

    def on_progress(progress: Progress) -> None:
        calls.append(progress)
        raise error

    meter = Meter(on_progress)
    with pytest.raises(Stop) as caught, cancellable():
        meter.start("plan")
    assert caught.value is error
    meter.add(1)  # of another thread, which had not heard of it
    assert calls == [Progress("plan", 0, 0)]


def test_nothing_that_handles_errors_handles_it() -> None:
    def call() -> None:
        try:
            Meter(stop_in("plan", OSError(errno.ENOMEM, "from the callback"))).start("plan")
        except Exception:
            pytest.fail("handled")

    with pytest.raises(Cancelled):
        call()


@pytest.mark.parametrize("phase", CONVERT_PHASES)
@pytest.mark.parametrize(
    "error", [Stop("enough"), OSError(errno.ENOMEM, "mine"), weightcast.LayoutError("mine")]
)
def test_a_conversion_that_is_cancelled(
    phase: str, error: Exception, tiny: Path, tmp_path: Path
) -> None:
    """It ends with what the callback raised, no thread works on, and finished work is kept."""
    output = tmp_path / "a-Q4_0.gguf"
    output.write_bytes(b"an earlier one")
    threads, text = threading.active_count(), str(error)
    with pytest.raises(type(error)) as caught:
        weightcast.convert(
            tiny,
            output,
            no_tokenizer=True,
            bundle=True,
            jobs=2,
            on_progress=stop_in(phase, error, share=0.5),
        )
    assert caught.value is error
    assert (str(error), error.__cause__) == (text, None)
    assert threading.active_count() == threads
    assert output.read_bytes() == b"an earlier one"
    assert partial_path(output).exists() == (phase != "plan")
    told: list[Progress] = []
    weightcast.convert(tiny, output, no_tokenizer=True, bundle=True, on_progress=told.append)
    phases = [*dict.fromkeys(each.phase for each in told)]
    kept = [] if phase == "plan" else ["check"]
    assert phases == ["plan", *kept, "convert", "flush", "hash"]
    assert not journal_path(output).exists()


def test_cancelling_the_check_of_kept_work_keeps_it(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    for phase in ("convert", "check"):
        with pytest.raises(Stop):
            weightcast.convert(
                tiny, output, no_tokenizer=True, on_progress=stop_in(phase, Stop(), share=0.5)
            )
        assert partial_path(output).exists()
    told: list[Progress] = []
    weightcast.convert(tiny, output, no_tokenizer=True, on_progress=told.append)
    checked = [each for each in told if each.phase == "check"]
    assert checked[-1].done_bytes == checked[-1].total_bytes > 0


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "a-Q8_0.gguf"
    weightcast.convert(tiny, output, no_tokenizer=True, bundle=True)
    return output


@pytest.mark.parametrize(
    ("function", "phases"),
    [
        (weightcast.compare, ["plan", "compare"]),
        (weightcast.verify, ["plan", "hash", "verify"]),
    ],
)
def test_the_phases_of_other_runs(
    function: Callable[..., Any], phases: list[str], tiny: Path, made: Path
) -> None:
    both = (tiny, made) if function is weightcast.compare else (made, tiny)
    told: list[Progress] = []
    function(*both, jobs=2, on_progress=told.append)
    last = {each.phase: each for each in told}
    assert [*last] == phases
    assert all(each.done_bytes == each.total_bytes for each in last.values())
    assert all(last[phase].total_bytes > 0 for phase in phases[1:])
    for phase in phases:
        error = Stop(phase)
        with pytest.raises(Stop) as caught:
            function(*both, jobs=2, on_progress=stop_in(phase, error, share=0.3))
        assert caught.value is error


def test_verifying_a_source_counts_its_bytes(tiny: Path) -> None:
    told: list[Progress] = []
    weightcast.verify(tiny, on_progress=told.append)
    size = sum(file.stat().st_size for file in (tiny / "ckpt-0").iterdir())
    assert told[-1] == Progress("verify", size, size)
