"""The commands `split` and `merge`: what they print and refuse, what an interrupt leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands.command_line import names
from tests.llama_models import write_model
from weightcast.converters.output.files import OutputFiles


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.gguf", "odd_rows")


def interrupt_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT when so many tensors were written."""
    real, done = OutputFiles.write_chunks, []

    def write_chunks(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == count:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(OutputFiles, "write_chunks", write_chunks)


def test_split_and_merge(run, model: Path, tmp_path: Path) -> None:
    planned = run("split", model, tmp_path / "p", "--max-tensors", 8, "-n")
    assert planned.code == 0
    assert "p-00003-of-00003.gguf" in planned.out
    assert names(tmp_path) == []
    done = run("split", model, tmp_path / "p.gguf", "--max-tensors", 8, "--json")
    said = json.loads(done.out)
    assert (done.code, said["dry_run"], said["format"]) == (0, False, "weightcast.split")
    assert said["outputs"][0]["tensors"] == 17
    assert len(said["outputs"][0]["files"]) == 3
    parts = sorted(tmp_path.glob("p-*.gguf"))
    done = run("merge", *parts, tmp_path / "m.gguf", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert run("merge", parts[0], tmp_path / "n.gguf", "-v").code == 0
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "n.gguf").read_bytes()
    for made in (parts[0], tmp_path / "m.gguf"):
        assert run("verify", made, "--source", model, "-q").code == 0
    damaged = bytearray((tmp_path / "m.gguf").read_bytes())
    damaged[-5000] ^= 1
    (tmp_path / "m.gguf").write_bytes(damaged)
    assert run("verify", tmp_path / "m.gguf", "--source", model, "-q").code == 3


@pytest.mark.parametrize("command", ["split", "merge"])
def test_an_interrupted_run_is_gone_on_with(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments: list[Any] = ["split", model, tmp_path / "p", "--max-tensors", 8]
    assert run(*arguments).code == 0
    wanted = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if command == "merge":
        arguments = ["merge", tmp_path / "p-00001-of-00003.gguf", tmp_path / "m.gguf"]
        assert run(*arguments).code == 0
        wanted = {"m.gguf": (tmp_path / "m.gguf").read_bytes()}
    for name in wanted:
        (tmp_path / name).unlink()
    with monkeypatch.context() as patched:
        interrupt_at(9, patched)
        stopped = run(*arguments, "--jobs", 1)
    output = "p.gguf" if command == "split" else "m.gguf"
    assert stopped.code == 130
    assert f"% of {output} is finished and kept; run the same command again" in stopped.err
    assert not set(wanted).intersection(names(tmp_path))
    done = run(*arguments)
    assert (done.code, "going on after " in done.err) == (0, True)
    assert {name: (tmp_path / name).read_bytes() for name in wanted} == wanted
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_parts_of_another_size_start_over(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(9, patched)
        assert run("split", model, tmp_path / "p", "--max-tensors", 8, "--jobs", 1).code == 130
    done = run("split", model, tmp_path / "p", "--max-tensors", 4)
    assert (done.code, "its layout differs; --no-resume starts over" in done.err) == (1, True)
    assert run("split", model, tmp_path / "p", "--max-tensors", 4, "--no-resume").code == 0
    assert names(tmp_path) == [f"p-{n:05}-of-00005.gguf" for n in range(1, 6)]


def test_no_source_is_overwritten(run, model: Path, tmp_path: Path) -> None:
    assert run("split", model, tmp_path / "p", "--max-tensors", 8).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("split", tmp_path / "p-00001-of-00003.gguf", tmp_path / "p", "--max-tensors", 8)
    assert (done.code, "is or holds the source" in done.err) == (1, True)
    (tmp_path / "link.gguf").symlink_to("p-00002-of-00003.gguf")
    done = run("merge", tmp_path / "p-00001-of-00003.gguf", tmp_path / "link.gguf")
    assert done.code != 0
    assert {path: path.read_bytes() for path in before} == before
    missing = tmp_path / "p-00002-of-00003.gguf"
    missing.unlink()
    done = run("merge", tmp_path / "p-00001-of-00003.gguf", tmp_path / "m.gguf")
    assert (done.code, "1 part of 3 is missing" in done.err) == (1, True)
