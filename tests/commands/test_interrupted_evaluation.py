"""Runs over a text that end too soon: what is kept, said, gone on with, and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.commands.command_line import names
from tests.evaluation.running import EXAMPLE
from weightcast.evaluation import layers
from weightcast.evaluation.saved import SavedStates

TEXT = EXAMPLE / "held-out.txt"
SHORT = ("-c", 32, "--chunks", 2)
LAYERS = weightcast.open(EXAMPLE).spec.num_layers
COMMANDS = {
    "imatrix.gguf": ("imatrix", EXAMPLE, TEXT, *SHORT, "-o"),
    "report.json": ("evaluate", EXAMPLE, "--text", TEXT, *SHORT, "--report"),
    "base.kld": ("evaluate", EXAMPLE, "--text", TEXT, *SHORT, "--save-base"),
    "costs.json": (
        *("sensitivity", EXAMPLE, TEXT, *SHORT, "--types", "Q8_0", "--probe", "Q8_0"),
        "-o",
    ),
}
of_each = pytest.mark.parametrize("name", COMMANDS)


def stop_after(layer: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    save = SavedStates.save

    def saving(self: SavedStates, done: int, arrays: object) -> None:
        save(self, done, arrays)
        if done == layer:
            signal.raise_signal(number)

    monkeypatch.setattr(SavedStates, "save", saving)


def told(err: str) -> list[str]:
    """Leave out the progress that a slow machine shows."""
    return [line for line in err.splitlines() if not line.startswith(("running ", "scoring "))]


@of_each
def test_an_interrupted_run_goes_on(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output, states = tmp_path / name, f".{name}.states"
    assert run(*COMMANDS[name], output).code == 0
    expected = output.read_bytes()
    output.unlink()
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        done = run(*COMMANDS[name], output)
    said = f"1 layer of {name} is finished and kept; run the same command again to go on"
    assert (done.code, done.err) == (130, f"interrupted: {said}\n")
    assert names(tmp_path) == [states]
    done = run(*COMMANDS[name], output)
    assert (done.code, told(done.err)) == (0, [f"going on after 1 layer of {name}"])
    assert output.read_bytes() == expected
    assert names(tmp_path) == [name]


@of_each
def test_other_options_start_over_if_they_are_told_to(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / name
    with monkeypatch.context() as patched:
        stop_after(LAYERS, patched)
        done = run(*COMMANDS[name], output)
    assert f"{LAYERS} layers of {name} are finished and kept" in done.err
    other = (*COMMANDS[name], output, "--chunks", 3)
    done = run(*other)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert f"{output}: an interrupted run with other inputs or options left its states" in done.err
    assert done.err.endswith("--no-resume starts over\n")
    assert names(tmp_path) == [f".{name}.states"]
    done = run(*other, "--no-resume")
    assert (done.code, told(done.err)) == (0, [])
    assert names(tmp_path) == [name]


def test_an_interrupt_before_the_first_layer_leaves_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "run_layer", lambda *_: signal.raise_signal(signal.SIGINT))
    done = run(*COMMANDS["report.json"], tmp_path / "report.json")
    said = "no layer of report.json is finished; run the same command again"
    assert (done.code, done.err) == (130, f"interrupted: {said}\n")
    done = run("evaluate", EXAMPLE, "--text", TEXT, *SHORT)
    said = "nothing is kept without an output; run the same command again"
    assert (done.code, done.err) == (130, f"interrupted: {said}\n")
    assert names(tmp_path) == []


def test_states_are_listed_and_removed(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, states = tmp_path / "imatrix.gguf", tmp_path / ".imatrix.gguf.states"

    def interrupt() -> None:
        with monkeypatch.context() as patched:
            stop_after(1, patched)
            run(*COMMANDS["imatrix.gguf"], output)

    for path in (output, tmp_path, states):
        interrupt()
        listed = run("clean", "--dry-run", path)
        assert listed.code == 0
        assert str(states) in listed.out.splitlines()[0]
        assert names(tmp_path) == [states.name]
        done = run("clean", path)
        assert (done.code, done.err, names(tmp_path)) == (0, "", [])
        assert done.out.splitlines()[-1].startswith("1 leftover removed, ")


def test_clean_removes_no_states_of_others(run, tmp_path: Path) -> None:
    output, states = tmp_path / "a.gguf", tmp_path / ".a.gguf.states"
    saved = SavedStates(output, {})
    states.mkdir()
    saved.save(1, {"x": np.zeros(3)})
    (states / "notes.txt").write_text("mine")
    others = tmp_path / ".of-others.states"
    others.mkdir()
    (tmp_path / ".linked.states").symlink_to(states)
    (tmp_path / ".a-file.states").write_text("mine")
    before = names(tmp_path)
    assert run("clean", tmp_path).out == "nothing to remove\n"
    done = run("clean", output)
    assert done.out.splitlines() == [
        f"note: {states}: stays: holds 'notes.txt', which no run wrote",
        "nothing to remove",
    ]
    done = run("clean", tmp_path / "linked")
    assert "stays: a link, or no folder" in done.out
    assert names(tmp_path) == before
    assert sorted(os.listdir(states)) == ["layer-1.npz", "notes.txt"]
    (states / "notes.txt").unlink()
    with saved.locked():
        done = run("clean", tmp_path)
        assert f"note: {states}: stays: in use by a run" in done.out
    assert sorted(os.listdir(states)) == ["layer-1.npz"]


def test_two_runs_of_one_output(run, tmp_path: Path) -> None:
    for name, arguments in COMMANDS.items():
        with SavedStates(tmp_path / name, {}).locked():
            done = run(*arguments, tmp_path / name)
        said = f"{tmp_path / name}: another run is making this output; wait for it, or name another"
        assert (done.code, done.err) == (1, f"error: {said} one\n")
    assert names(tmp_path) == []


def test_a_source_that_changes_meanwhile_is_no_source(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "grok-F32.gguf", tmp_path / "imatrix.gguf"
    weightcast.convert(EXAMPLE, source, types="F32", no_tokenizer=True)
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.arange(64))
    run_layer = layers.run_layer

    def changing(act: Callable[[], object]) -> Callable[..., object]:
        def running(network: object, number: int, *rest: object) -> object:
            found = run_layer(network, number, *rest)
            if number == 1:
                act()
            return found

        return running

    # A disk that was gone may come back; of a file that was changed nothing can be kept.
    for act, said, is_kept in (
        (lambda: os.utime(source), "was changed since it was opened", False),
        (source.unlink, "cannot be read", True),
    ):
        monkeypatch.setattr(layers, "run_layer", changing(act))
        done = run("imatrix", source, tokens, "-c", 32, "-o", output)
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert f"{source}: {said}" in done.err
        assert (".imatrix.gguf.states" in names(tmp_path)) == is_kept
        monkeypatch.setattr(layers, "run_layer", run_layer)


def command(arguments: tuple[object, ...], output: Path) -> list[str]:
    return [sys.executable, "-m", "weightcast", *map(str, (*arguments, output))]


@pytest.mark.exhaustive
def test_signals_at_any_moment(tmp_path: Path) -> None:
    """Whatever is left, the next run ends with the very output, and nothing else."""
    arguments = ("imatrix", EXAMPLE, TEXT, "-c", 128, "--chunks", 12, "-o")
    whole = tmp_path / "whole.gguf"
    began = time.monotonic()
    subprocess.run(command(arguments, whole), check=True, capture_output=True)
    took = time.monotonic() - began
    output = tmp_path / "imatrix.gguf"
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    for share, number in zip((0.7, 0.8, 0.9), stops, strict=True):
        process = subprocess.Popen(command(arguments, output), stderr=subprocess.PIPE)
        time.sleep(share * took)
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode in (0, 130, -number)
        assert b"Traceback" not in said
    done = subprocess.run(command(arguments, output), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["imatrix.gguf", "whole.gguf"]
