"""`--report` of convert, compare and verify: JSON, page or summary by the name's ending."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import weightcast
from tests.support import GOLDEN
from weightcast import cli
from weightcast.converters.report import page, pages, read_report
from weightcast.converters.report.markdown import summary
from weightcast.errors import CheckpointError, RequestError

WIDE = GOLDEN / "wide"
ENDINGS = ("r.json", "r.html", "r.HTM", "r.md")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli, "_STOPPING", ())

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["weightcast", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return call


def commands(folder: Path, report: Path) -> list[list[object]]:
    made = folder / "m-Q4_0.gguf"
    return [
        ["convert", WIDE, made, "--no-tokenizer", "--report", report],
        ["compare", WIDE, made, "--report", report],
        ["verify", made, "--source", WIDE, "--report", report],
    ]


@pytest.mark.parametrize("name", ENDINGS)
def test_the_ending_says_the_form(run, tmp_path: Path, name: str) -> None:
    report = tmp_path / name
    for number, command in enumerate(commands(tmp_path, report)):
        assert run(*command, "--quiet") == (0, "")
        other = tmp_path / f"{number}.json"
        command[command.index(report)] = other
        assert run(*command, "--quiet") == (0, "")
        same = read_report(other)
        text = report.read_text()
        if name == "r.json":
            assert text == other.read_text()
        else:
            assert text == (summary([same]) if name == "r.md" else page([same]))
        report.unlink()


def test_limits_are_in_the_report(run, tmp_path: Path) -> None:
    report = tmp_path / "r.md"
    convert, compare = commands(tmp_path, report)[:2]
    for command in ((*convert, "--gate", "after"), compare):
        run(*command, "--quiet", "--fail-over", "sqnr_db=30", "--fail-over", "total:cosine=0.5")
        text = report.read_text()
        assert "- Limit `sqnr_db` at least 30: **failed**, " in text
        assert "- Limit `total:cosine` at least 0.5: passed." in text
        report.unlink()
    report = tmp_path / "r.json"
    run(*commands(tmp_path, report)[0], "--quiet", "--fail-over", "attn_q:sqnr_db=1")
    assert json.loads(report.read_text())["limits"] == [
        {"metric": "sqnr_db", "limit": 1.0, "kind": "attn_q"}
    ]


@pytest.mark.parametrize("name", ["r", "r.txt", "r.json.gz", ".html"])
def test_other_endings_are_refused_before_any_work(run, tmp_path: Path, name: str) -> None:
    weightcast.convert(WIDE, tmp_path / "m-Q4_0.gguf", no_tokenizer=True)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    for command in commands(tmp_path, tmp_path / name):
        code, error = run(*command)
        assert code == 2
        assert error == (
            f"usage error: {tmp_path / name}: the ending says the form of a report; name it "
            "FILE.json for other tools, FILE.html for a page or FILE.md for a summary\n"
        )
    with pytest.raises(RequestError, match="the ending says the form of a report"):
        weightcast.convert(
            WIDE, tmp_path / "n-Q4_0.gguf", no_tokenizer=True, report=tmp_path / name
        )
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("package", ["vl_convert", "jinja2"])
def test_a_missing_extra_is_found_before_any_work(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    weightcast.convert(WIDE, tmp_path / "m-Q4_0.gguf", no_tokenizer=True)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    monkeypatch.setitem(sys.modules, package, None)
    pages.library.cache_clear()
    for command in commands(tmp_path, tmp_path / "r.html"):
        code, error = run(*command)
        assert code == 1
        assert "is not installed: pip install 'weightcast[report]'" in error
    with pytest.raises(CheckpointError, match=r"weightcast\[report\]"):
        weightcast.convert(
            WIDE, tmp_path / "n-Q4_0.gguf", no_tokenizer=True, report=tmp_path / "r.html"
        )
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert run(*commands(tmp_path, tmp_path / "r.md")[1], "--quiet") == (0, "")
