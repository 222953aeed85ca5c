"""`compare`: lines, JSON, exit codes and reports."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

import weightcast
from tests import gguf_files
from tests.commands.command_line import names
from weightcast.converters.compare import measure
from weightcast.converters.sources import open_graph


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    weightcast.convert(tiny, folder / "a-F32.gguf", folder / "a-Q4_0.gguf", no_tokenizer=True)
    return folder


def test_compare(run, tiny: Path, converted: Path, tmp_path: Path) -> None:
    done = run("compare", tiny, converted / "a-Q4_0.gguf", "--report", tmp_path / "r.json")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].endswith(f"ckpt-0: grok-1, {open_graph(tiny).parameters:,} parameters")
    assert lines[1].startswith(f"{converted / 'a-Q4_0.gguf'}: Q4_0, ")
    kinds = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "no error" in kinds["attn_norm"]
    assert " dB " in kinds["ffn_down_exps"]
    assert " dB " in kinds["total"]
    assert "worst tensors:" in lines
    assert names(tmp_path) == ["r.json"]
    total = json.loads((tmp_path / "r.json").read_text())["outputs"][0]["total"]
    assert f"{total['sqnr_db']:.2f} dB" in kinds["total"]
    assert f"{total['sqnr_db']:.2f} dB" in run("report", tmp_path / "r.json", "-").out


def test_compare_line_by_line(run, tiny: Path, converted: Path) -> None:
    done = run("compare", "--all", tiny, converted / "a-Q4_0.gguf")
    named = [line.split()[0] for line in done.out.splitlines() if line.startswith("  ")]
    assert set(gguf_files.read(converted / "a-Q4_0.gguf").tensors) <= set(named)


def test_compare_as_json_or_not_at_all(run, tiny: Path, converted: Path) -> None:
    done = run("compare", "--json", "--jobs", 1, tiny, converted / "a-F32.gguf")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["outputs"][0]["total"]["error_squares"] == 0
    assert (found["only_in_a"], found["only_in_b"], found["reshaped"]) == ([], [], [])
    assert json.loads(run("compare", "--json", tiny, converted / "a-F32.gguf").out) == found
    quiet = run("compare", "--quiet", tiny, converted / "a-Q4_0.gguf")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_compare_what_lacks_a_tensor(run, tiny: Path, converted: Path, tmp_path: Path) -> None:
    """The rest is measured and told; the exit code says that it is not all."""
    whole = gguf_files.read(converted / "a-Q4_0.gguf")
    del whole.tensors["blk.1.attn_q.weight"]
    part = gguf_files.write(tmp_path / "b.gguf", whole.metadata, whole.tensors)
    for form in ([], ["--json"], ["--quiet"]):
        done = run("compare", *form, "--report", tmp_path / "r.json", tiny, part)
        assert done.code == 3
        assert done.err.startswith(f"problem: {part} is not another form of ")
        assert done.err.count("\n") == 1
        measured = json.loads((tmp_path / "r.json").read_text())["outputs"][0]["tensors"]
        assert [tensor["name"] for tensor in measured] == list(whole.tensors)
    assert "ONLY IN" in run("compare", tiny, part).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{tiny}"], 2, "missing argument 'B'"),
        (["{tiny}", "{a}", "--baseline", "f16"], 2, "'f16' is not one of 'stored', 'bf16'"),
        (["{tiny}", "{a}", "--jobs", "0"], 2, "0 is not in the range"),
        (["{tiny}", "{tmp}/a.gguf"], 1, "error: {tmp}/a.gguf: no such file or directory"),
        (["{tmp}", "{a}"], 1, "error: {tmp}: an empty directory; its"),
        (["{tiny}", "{a}", "--spec", "{tmp}/s.json"], 1, "error: {tmp}/s.json: no such file"),
        (["{tiny}", "{a}", "--report", "{tmp}/x/r.json"], 1, "error: {tmp}/x: no such directory"),
        (["{tiny}", "{a}", "--report", "{tmp}"], 1, "error: {tmp}: is a directory"),
        (["{tiny}", "{a}", "--report", "{a}"], 1, "error: {a}: is or lies in what is read or wr"),
        (["{tiny}", "{a}", "--imatrix", "{tmp}/i"], 1, "error: {tmp}/i: no such file"),
        (["{tiny}", "{a}", "--fail-over", "relative_rms=-1"], 2, "relative_rms is at least 0;"),
        (["{tiny}", "{a}", "--fail-over", "weighted.sqnr_db=1"], 2, "nothing is weighed"),
    ],
)
def test_compare_bad_input(
    arguments: list[str], code: int, said: str, run, tiny: Path, converted: Path, tmp_path: Path
) -> None:
    places = {"tiny": tiny, "a": converted / "a-Q4_0.gguf", "tmp": tmp_path}
    before = places["a"].read_bytes()
    done = run("compare", *(argument.format(**places) for argument in arguments))
    assert done.code == code
    assert said.format(**places) in done.err
    assert done.out == ""
    assert places["a"].read_bytes() == before


def test_compare_with_a_report_that_cannot_be_written(
    run, tiny: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.json").write_text("earlier")

    def fail(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    done = run("compare", tiny, converted / "a-F32.gguf", "--report", tmp_path / "r.json")
    assert done.code == 1
    assert "r.json: the disk is full; free some space and try again" in done.err
    assert names(tmp_path) == ["r.json"]
    assert (tmp_path / "r.json").read_text() == "earlier"


def test_compare_interrupted(
    run, tiny: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    monkeypatch.setattr(measure, "measure_rows", stop)
    done = run("compare", tiny, converted / "a-F32.gguf")
    assert done.code == 130
    assert done.out == ""
