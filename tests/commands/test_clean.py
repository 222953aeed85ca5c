"""`clean`: what interrupted runs left is listed and removed, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import weightcast
from tests.commands.command_line import growing, names
from weightcast.converters.engine import executor
from weightcast.converters.engine.progress import Meter
from weightcast.converters.files.names import journal_path, partial_path, replaced_path
from weightcast.converters.output import files as output_files


class Stop(Exception):
    pass


def cut_off(tiny: Path, *outputs: Path, **options: Any) -> None:
    """Convert until a third is done, as an interrupted run does."""

    def on_progress(progress: weightcast.Progress) -> None:
        if progress.phase == "convert" and 3 * progress.done_bytes > progress.total_bytes:
            raise Stop

    with pytest.raises(Stop):
        weightcast.convert(
            tiny, *outputs, no_tokenizer=True, jobs=1, on_progress=on_progress, **options
        )


def killed(tiny: Path, arguments: list[str], phase: str) -> None:
    """Run the command line in a fork, and kill it when a phase begins."""
    child = os.fork()
    if not child:
        start = Meter.start

        def killing(meter: Meter, name: Any, *numbers: int) -> Any:
            if name == phase:
                os.kill(os.getpid(), signal.SIGKILL)
            return start(meter, name, *numbers)

        Meter.start = killing  # type: ignore[method-assign]
        weightcast.convert(tiny, *arguments, no_tokenizer=True, bundle=True)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["a-Q4_0.gguf", "a-bf16", "a-int4-g32"])
@pytest.mark.parametrize("named", ["output", "folder", "partial"])
def test_what_is_listed_is_removed(run, tiny: Path, tmp_path: Path, name: str, named: str) -> None:
    output = tmp_path / name
    cut_off(tiny, output)
    before = names(tmp_path)
    assert before == growing(name)
    path = {"output": output, "folder": tmp_path, "partial": partial_path(output)}[named]
    listed = run("clean", "--dry-run", path)
    assert (listed.code, listed.err, names(tmp_path)) == (0, "", before)
    done = run("clean", path)
    assert (done.code, done.err, names(tmp_path)) == (0, "", [])
    lines = done.out.splitlines()
    assert lines[:-1] == listed.out.splitlines()[:-1]
    assert str(partial_path(output)) in lines[0]
    assert f"% of {name})" in lines[0]
    assert lines[-1].startswith("2 leftovers removed, ")
    assert listed.out.splitlines()[-1].startswith("2 leftovers would be removed, ")


def test_complete_outputs_and_other_files_stay(run, tiny: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole-Q8_0.gguf", tmp_path / "whole-bf16"
    weightcast.convert(tiny, *whole, no_tokenizer=True, bundle=True, report=tmp_path / "r.json")
    others = {
        ".rsync.partial": b"of rsync",
        ".movie.mkv.partial": b"a download",
        ".x.gguf.partial": b"GGUF, but no journal tells of it",
        ".notes.journal": b"dear diary",
        ".empty.journal": b"",
        "b.partial": b"not hidden",
        ".data.json.partial": b'{"of": "others"}',
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".mine.partial").mkdir()
    (tmp_path / ".mine.partial" / "notes.txt").touch()
    cut_off(tiny, tmp_path / "c-Q4_0.gguf")
    before = set(names(tmp_path)) - set(growing("c-Q4_0.gguf"))
    done = run("clean", tmp_path, *whole)
    assert (done.code, done.err) == (0, "")
    assert set(names(tmp_path)) == before
    assert weightcast.verify(whole[0]).is_good
    assert weightcast.verify(whole[1]).is_good


def test_parts_of_a_split_output(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    cut_off(tiny, output, split="2MB")
    assert len(names(tmp_path)) > 3
    assert run("clean", "--quiet", output).out == ""
    assert names(tmp_path) == []


@pytest.mark.parametrize("phase", ["convert", "hash"])
@pytest.mark.parametrize("name", ["a-Q4_0.gguf", "a-bf16"])
def test_what_a_killed_run_left(run, tiny: Path, tmp_path: Path, name: str, phase: str) -> None:
    killed(tiny, [str(tmp_path / name)], phase)
    bundle = tmp_path / ".a-Q4_0.README.md.partial"
    if phase == "hash" and name.endswith(".gguf"):
        bundle.write_text("half of a card")
    assert names(tmp_path)
    assert run("clean", tmp_path).code == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["r.json", "r.html", "r.md"])
def test_a_report_that_was_being_written(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of a folder those are removed that begin as reports do, by name even one that is empty."""
    weightcast.convert(
        tiny, tmp_path / "a-Q8_0.gguf", no_tokenizer=True, report=tmp_path / "r.json"
    )
    report, partial = tmp_path / name, partial_path(tmp_path / name)
    if name != "r.json":
        assert run("report", tmp_path / "r.json", report).code == 0
    before = names(tmp_path)
    partial.write_bytes(report.read_bytes()[:1000])
    found = json.loads(run("clean", "--json", tmp_path).out)
    assert [each["path"] for each in found["left"]] == [str(partial)]
    assert names(tmp_path) == before
    partial.touch()
    assert run("clean", tmp_path).out == "nothing to remove\n"
    assert run("clean", report).code == 0
    assert names(tmp_path) == before


def test_what_a_run_is_writing_stays(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    real, told = executor.read_slab, []

    def read_slab(*arguments: Any) -> Any:
        if not told:
            told.append(None)
            for path in (tmp_path, output):
                told.append(run("clean", path))
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    weightcast.convert(tiny, output, no_tokenizer=True)
    assert names(tmp_path) == [output.name]
    for done in told[1:]:
        assert done.code == 0
        assert f"note: {partial_path(output)}: stays: in use by a run\n" in done.out
        assert done.out.endswith("nothing to remove\n")


def test_a_locked_report_stays(run, tmp_path: Path) -> None:
    partial = tmp_path / ".r.json.partial"
    partial.write_text('{"format": "weightcast-report"')
    with partial.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("clean", tmp_path).out == "nothing to remove\n"
        assert "in use by a run" in run("clean", tmp_path / "r.json").out
    assert run("clean", tmp_path).out.splitlines()[-1].startswith("1 leftover removed")


def test_no_link_is_followed(run, tiny: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "model.safetensors").write_bytes(b"mine")
    output = tmp_path / "a-bf16"
    partial_path(output).symlink_to(precious)
    file = tmp_path / "b-Q8_0.gguf"
    partial_path(file).symlink_to(precious / "model.safetensors")
    journal_path(file).symlink_to(precious / "model.safetensors")
    for path in (output, file):
        done = run("clean", path)
        assert f"note: {partial_path(path)}: stays: a link, or no file\n" in done.out
    assert run("clean", tmp_path).out == "nothing to remove\n"
    # Within a directory of ours, too.
    cut_off(tiny, tmp_path / "c-bf16")
    (tmp_path / ".c-bf16.partial" / "tokenizer.json").symlink_to(precious / "model.safetensors")
    done = run("clean", tmp_path / "c-bf16")
    assert "stays: holds tokenizer.json, which no conversion wrote" in done.out
    assert (precious / "model.safetensors").read_bytes() == b"mine"
    assert ".c-bf16.journal" in names(tmp_path)


def test_a_directory_with_something_else_stays(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-bf16"
    cut_off(tiny, output)
    mine = partial_path(output) / "thesis.tex"
    mine.write_text("years of work")
    for path in (output, tmp_path):
        done = run("clean", path)
        assert done.code == 0
        assert "stays: holds thesis.tex, which no conversion wrote" in done.out
        assert mine.exists()


def test_an_earlier_output_that_was_put_aside(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes if there is a new one, and is all that there is if there is none."""
    output = tmp_path / "a-bf16"
    weightcast.convert(tiny, output, no_tokenizer=True)
    output.rename(replaced_path(output))
    for path in (output, tmp_path):
        done = run("clean", path)
        if path == output:
            assert f"the earlier output; rename it to {output.name}, or delete it" in done.out
        assert names(tmp_path) == [".a-bf16.replaced"]
    monkeypatch.setattr(output_files, "exchange", lambda a, b: False)
    other = tmp_path / "other-bf16"
    weightcast.convert(tiny, other, no_tokenizer=True)
    other.rename(output)
    assert run("clean", tmp_path).code == 0
    assert names(tmp_path) == ["a-bf16"]


def test_paths_of_which_there_is_nothing(run, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    done = run("clean", tmp_path / "absent-Q8_0.gguf")
    assert done.code == 1
    said = (
        "there is nothing of that name, and no run left anything of it; name an output or a folder"
    )
    assert done.err == f"error: {tmp_path}/absent-Q8_0.gguf: {said}\n"
    done = run("clean", tmp_path)
    assert (done.code, done.out) == (0, "nothing to remove\n")
    monkeypatch.chdir(tmp_path)
    cut_off(tiny, tmp_path / "a-Q4_0.gguf")
    done = run("clean", "--json", ".", "a-Q4_0.gguf", "..")
    found = json.loads(done.out)
    assert [Path(each["path"]).name for each in found["left"]] == growing("a-Q4_0.gguf")[::-1]
    assert {each["kept_because"] for each in found["left"]} == {None}
    assert 0.2 < found["left"][0]["finished"] < 1
    assert names(tmp_path) == []
