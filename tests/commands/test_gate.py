"""--fail-over and --gate: what is beyond a limit gets no name, and is not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weightcast
from tests.commands.command_line import growing, names
from weightcast.converters.engine import executor

LIMIT = ["--fail-over", "attn_q:sqnr_db=60"]


@pytest.mark.parametrize("name", ["a-Q4_0.gguf", "a-int4-g32"])
def test_a_closed_gate_names_nothing(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output, report = tmp_path / name, tmp_path / "r.json"
    weightcast.convert(tiny, output, no_tokenizer=True, bundle=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = ["convert", "--no-tokenizer", "--bundle", tiny, output, *LIMIT]
    done = run(*arguments, "--report", report)
    assert (done.code, done.out) == (3, "")
    lines = done.err.splitlines()
    assert all(line.startswith(f"beyond a limit: {output}: ") for line in lines[:-1])
    assert lines[-1] == (
        f"error: {output}: not named, as {len(lines) - 1} values are beyond a limit ({output}: "
        f"what is there is an earlier output); the work is kept in .{name}.partial: run again with "
        f"other limits or --gate after, or remove it with weightcast clean {output}"
    )
    assert {path: path.read_bytes() for path in before} == before
    assert set(growing(name)) <= set(names(tmp_path))
    assert json.loads(report.read_text())["outputs"][0]["path"] == str(output)
    # Another limit reads no weights again.
    with monkeypatch.context() as patched:
        patched.setattr(executor, "read_slab", lambda *_: pytest.fail("read again"))
        done = run(*arguments[:-1], "attn_q:sqnr_db=1")
    assert done.code == 0
    assert f"going on after 100% of {name}" in done.err
    assert not set(growing(name)) & set(names(tmp_path))
    assert weightcast.verify(output, tiny).is_good


def test_the_gate_may_come_after(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    done = run("convert", "--no-tokenizer", tiny, output, *LIMIT, "--gate", "after")
    assert done.code == 3
    assert "done in" in done.out
    assert "error: " not in done.err
    assert names(tmp_path) == [output.name]


@pytest.mark.parametrize("gate", ["before-naming", "after"])
def test_json_has_what_is_beyond(run, tiny: Path, tmp_path: Path, gate: str) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    done = run("convert", "--json", "--no-tokenizer", tiny, output, *LIMIT, "--gate", gate)
    assert done.code == 3
    found: dict[str, Any] = json.loads(done.out)
    if gate == "after":
        assert found["format"] == "weightcast.convert"
    else:
        found = found["error"]
        assert (found["kind"], found["exit_code"]) == ("LimitError", 3)
    first = found["violations"][0]
    assert (first["output"], first["name"]) == (str(output), "blk.0.attn_q.weight")
    assert (first["metric"], first["limit"]) == ("sqnr_db", 60)
    assert 10 < first["value"] < 30


def test_several_outputs_have_one_gate(run, tiny: Path, tmp_path: Path) -> None:
    """None of them is named if one is worse than it may be."""
    good, bad = tmp_path / "a-F32.gguf", tmp_path / "a-Q4_0.gguf"
    done = run("convert", "--no-tokenizer", tiny, good, bad, *LIMIT)
    assert done.code == 3
    assert f"error: {good}, {bad}: not named" in done.err
    assert names(tmp_path) == growing(good.name, bad.name)


def test_a_gate_that_is_open(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q8_0.gguf"
    done = run("convert", "--json", "--no-tokenizer", tiny, output, "--fail-over", "sqnr_db=20")
    assert (done.code, done.err, names(tmp_path)) == (0, "", [output.name])
    assert json.loads(done.out)["violations"] == []


def test_many_violations_are_a_few_lines(run, tiny: Path, tmp_path: Path) -> None:
    arguments = ["convert", "--no-tokenizer", tiny, tmp_path / "a-Q2_K.gguf"]
    done = run(*arguments, "--fail-over", "relative_rms=0", "--fail-over", "sqnr_db=300")
    lines = done.err.splitlines()
    assert len(lines) == 12
    assert lines[10].startswith("beyond a limit: and ")
    assert lines[10].endswith(" more; --report and --json have all of them")


def test_compare_has_the_same_exit_code(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_0.gguf"
    weightcast.convert(tiny, output, no_tokenizer=True)
    done = run("compare", "--json", tiny, output, *LIMIT)
    found = json.loads(done.out)
    assert (done.code, found["format"], found["problem"]) == (3, "weightcast.compare", None)
    assert found["violations"][0]["metric"] == "sqnr_db"
    assert run("compare", "--quiet", tiny, output, "--fail-over", "sqnr_db=1").code == 0
