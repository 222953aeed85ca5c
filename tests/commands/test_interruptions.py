"""Ctrl-C in every phase of `convert`: what it says is what is on the disk."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands.command_line import growing, names
from weightcast.converters import convert as conversion
from weightcast.converters.engine import executor
from weightcast.converters.engine.progress import Meter
from weightcast.converters.files.names import journal_path, partial_path
from weightcast.converters.output import files as output_files

NOTHING = "interrupted: nothing incomplete was left behind; run the same command again\n"


def interrupt_in(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT when a phase begins; planning is one before there is a meter."""
    if phase == "plan":
        real = conversion.lay_out_all

        def lay_out_all(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            return real(*arguments)

        monkeypatch.setattr(conversion, "lay_out_all", lay_out_all)
        return
    start = Meter.start

    def interrupting(meter: Meter, name: Any, *numbers: int) -> Any:
        told = start(meter, name, *numbers)
        if name == phase:
            signal.raise_signal(signal.SIGINT)
        return told

    monkeypatch.setattr(Meter, "start", interrupting)


def cut_off(run, tiny: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Interrupt a conversion in the middle. Returns what it says to be kept."""
    real, done = executor.read_slab, []

    def read_slab(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == 20:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(executor, "read_slab", read_slab)
        said = run("convert", "--no-tokenizer", "--jobs", 1, tiny, output)
    assert said.code == 130
    kept = said.err.split("interrupted: ")[1].split(" is finished")[0]
    assert kept.endswith(f"% of {output.name}")
    return kept


@pytest.mark.parametrize("phase", ["plan", "convert", "flush", "hash"])
def test_a_first_run(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    output = tmp_path / "a-Q8_0.gguf"
    interrupt_in(phase, monkeypatch)
    done = run("convert", "--no-tokenizer", "--bundle", tiny, output)
    assert (done.code, done.out) == (130, "")
    if phase in ("plan", "convert"):  # nothing is converted when that begins
        assert done.err.endswith(NOTHING)
        assert names(tmp_path) == []
    else:
        kept = f"100% of {output.name} is finished and kept"
        assert done.err.endswith(f"interrupted: {kept}; run the same command again to go on\n")
        assert names(tmp_path) == growing(output.name)


@pytest.mark.parametrize("phase", ["plan", "check", "convert", "flush"])
def test_a_run_that_goes_on(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """What an earlier run finished is there, whatever this one did before it was interrupted."""
    output = tmp_path / "a-Q8_0.gguf"
    kept = cut_off(run, tiny, output, monkeypatch)
    with monkeypatch.context() as patched:
        interrupt_in(phase, patched)
        done = run("convert", "--no-tokenizer", tiny, output)
    kept = "100% of a-Q8_0.gguf" if phase == "flush" else kept
    assert done.code == 130
    said = f"interrupted: {kept} is finished and kept; run the same command again to go on\n"
    assert done.err.endswith(said)
    assert names(tmp_path) == growing(output.name)
    done = run("convert", "--no-tokenizer", tiny, output)
    assert (done.code, done.err) == (0, f"going on after {kept}, which is checked first\n")
    assert names(tmp_path) == [output.name]


def test_no_resume_keeps_what_was_finished_until_it_begins(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a-Q8_0.gguf"
    kept = cut_off(run, tiny, output, monkeypatch)
    for phase, left in (("plan", growing(output.name)), ("convert", [])):
        with monkeypatch.context() as patched:
            interrupt_in(phase, patched)
            done = run("convert", "--no-resume", "--no-tokenizer", tiny, output)
        assert (done.code, names(tmp_path)) == (130, left)
        if left:
            assert (
                f"{kept} is finished and kept; run the same command again without --no-res"
                in done.err
            )
        else:
            assert done.err.endswith(NOTHING)


def test_what_a_killed_run_left_is_not_called_nothing(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a-Q8_0.gguf"
    partial_path(output).write_bytes(bytes(100))
    journal_path(output).touch()
    interrupt_in("plan", monkeypatch)
    done = run("convert", "--no-tokenizer", tiny, output)
    again = "run the same command again, or remove it with weightcast clean"
    assert done.err.endswith(f"interrupted: nothing is finished of {output.name}; {again}\n")
    assert names(tmp_path) == growing(output.name)


def test_naming_is_not_interrupted(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "a-Q8_0.gguf", tmp_path / "a-F16.gguf"
    real = output_files._replace

    def replace(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(output_files, "_replace", replace)
    done = run("convert", "--no-tokenizer", tiny, *outputs)
    assert (done.code, done.err) == (0, "")
    assert names(tmp_path) == ["a-F16.gguf", "a-Q8_0.gguf"]


def test_json_says_it_too(run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in("plan", monkeypatch)
    done = run("convert", "--json", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf")
    assert done.code == 130
    assert '"format": "weightcast.error"' in done.out
    assert '"exit_code": 130' in done.out
