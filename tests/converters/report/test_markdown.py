"""The Markdown summary of error reports: as it should look, and safe against names in them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.converters.report import error_reports
from tests.support import DATA
from weightcast import cli
from weightcast.converters.report import markdown, pages
from weightcast.converters.report.schema import read_report
from weightcast.text import size_text

HOSTILE = "a|b`</code><img src=x onerror=alert(1)>\n# @all [x](http://example.org)"
SUMMARY = (DATA / "report.md").read_text()


def small(type_name: str, sqnr: float | None, *, weighed: bool = False) -> error_reports.Json:
    one = error_reports.tensor("blk.0.attn_q.weight", "attn_q", 0, type_name, (1, 256))
    one["metrics"] = error_reports.metrics(256, sqnr, weighed=weighed)
    return one


def compared() -> error_reports.Json:
    value = small("Q4_K", 20.0, weighed=True)
    value.update(name="blk.0.attn_v.weight", kind="attn_v")
    tensors = [small("Q6_K", 40.0, weighed=True), value]
    lossy = error_reports.output("out/small-Q4_K_M.gguf", "Q4_K_M", tensors, "a.imatrix")
    lossy["recipe"]["rules"] = [
        error_reports.rule(r"blk\.[0-7]\..*_q", "Q6_K", "recipe.toml: rule 1")
    ]
    lossless = error_reports.output("out/small-Q8_0.gguf", "Q8_0", [small("Q8_0", None)])
    return error_reports.report([lossless, lossy])


def saved(folder: Path, value: error_reports.Json, name: str = "report.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


def summary(folder: Path, *values: error_reports.Json) -> str:
    return markdown.summary([read_report(saved(folder, value)) for value in values])


def test_summary(tmp_path: Path) -> None:
    assert summary(tmp_path, compared()) == SUMMARY


def test_names_are_no_markdown(tmp_path: Path) -> None:
    value = compared()
    output = value["outputs"][1]
    output["path"] = output["type"] = output["imatrix"] = output["kinds"][0]["kind"] = HOSTILE
    output["tensors"][1]["name"] = output["recipe"]["base"] = value["source"]["path"] = HOSTILE
    output["recipe"]["rules"] = [error_reports.rule(HOSTILE, HOSTILE, HOSTILE)]
    text = summary(tmp_path, value)
    tags = set(re.findall(r"</?[a-z][^>]*>", text))
    assert tags == {"<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"}
    assert not any(odd in text for odd in ("@all", "](", "://", "a|b", "\n#  "))
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert {line.count(" | ") for line in rows} == {5, 8}  # every row as wide as its head


def test_reports_of_different_things_say_so(tmp_path: Path) -> None:
    other = compared()
    other["baseline"], other["source"]["path"] = "bf16", "elsewhere"
    other["outputs"][1]["tensors"][0]["metrics"].update(relative_rms=None, sqnr_db=None)
    text = summary(tmp_path, compared(), other)
    assert "> **The reports have different baselines, so their errors differ in meaning.**" in text
    assert "> **The reports name different sources.**" in text
    assert "> **Some errors are not finite: NaN or infinity in an output or its source.**" in text
    assert "| `blk.0.attn_q.weight`, not finite |" in text
    labels = re.findall(r"<summary><code>(.*)</code>", text)
    assert len(set(labels)) == 4  # told apart although their names are the same


def test_limits_with_what_is_beyond_them(tmp_path: Path) -> None:
    value = error_reports.report([error_reports.grok1_output("Q4_K_M", 4, 2)])
    value["limits"] = [
        {"metric": "sqnr_db", "limit": 22.0, "kind": None},
        {"metric": "relative_rms", "limit": 0.5, "kind": "attn_v"},
        {"metric": "bits_per_weight", "limit": 4.0, "kind": "total"},
    ]
    tensors = value["outputs"][0]["tensors"]
    beyond = sorted(
        (each["metrics"]["sqnr_db"], each["name"])
        for each in tensors
        if each["metrics"]["sqnr_db"] is not None and each["metrics"]["sqnr_db"] < 22
    )
    assert len(beyond) > 11
    lines = summary(tmp_path, value).split("\n")
    first = lines.index(f"- Limit `sqnr_db` at least 22: **failed**, {len(beyond)} values beyond:")
    assert lines[first + 1 : first + 15] == [
        *(f"  - `{name}`: {sqnr:.6g}" for sqnr, name in beyond[:10]),
        f"  - and {len(beyond) - 10} more",
        "- Limit `attn_v:relative_rms` at most 0.5: passed.",
        "- Limit `total:bits_per_weight` at most 4: **failed**, 1 value beyond:",
        f"  - `total`: {value['outputs'][0]['bits_per_weight']:.6g}",
    ]
    # With several outputs each is named; kinds that no tensor has are no failure.
    value["outputs"].append(error_reports.grok1_output("Q2_K", 1, 2))
    value["limits"] = [
        {"metric": "sqnr_db", "limit": 12.0, "kind": "total"},
        {"metric": "sqnr_db", "limit": 12.0, "kind": HOSTILE},
    ]
    text = summary(tmp_path, value)
    total = value["outputs"][1]["total"]["sqnr_db"]
    assert f"  - `total` in `out/grok-1-Q2_K.gguf`: {total:.6g}\n" in text
    assert "<img" not in text
    assert text.count("passed.") == 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli, "_STOPPING", ())

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weightcast", "report", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_command(run, tmp_path: Path) -> None:
    path, out = saved(tmp_path, compared()), tmp_path / "summary.md"
    assert run(path, "-") == (0, SUMMARY, "")
    code, told, _ = run(path, path, out)
    assert (code, told) == (0, f"wrote {out} ({size_text(out.stat().st_size)}, 4 outputs)\n")
    assert out.read_text().count("<details>") == 4
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.json", "summary.md"]


def test_bad_requests_change_nothing(run, tmp_path: Path) -> None:
    path, out = saved(tmp_path, compared()), tmp_path / "summary.md"
    other = saved(tmp_path, {"outputs": []}, "other.json")
    link = tmp_path / "report.md"
    link.hardlink_to(path)
    (tmp_path / "folder.md").mkdir()
    out.write_text("before")
    before = {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    for arguments, code, problem in [
        ((path, tmp_path / "a.json"), 2, "name it OUT.html for a page or OUT.md for a summary"),
        ((path, link), 2, f"usage error: {link}: is one of the reports"),
        ((path, other, out), 1, f"error: {other}: not an error report"),
        ((tmp_path / "none.json", out), 1, "none.json: no such file"),
        ((path, tmp_path / "none" / "a.md"), 1, "a.md: cannot be written: No such file"),
        ((path, tmp_path / "folder.md"), 1, "folder.md: is a directory"),
        ((path,), 2, "name what to write after "),
    ]:
        found, told, error = run(*arguments)
        assert (found, told) == (code, "")
        assert problem in error
        assert "Traceback" not in error
    assert {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before


@pytest.mark.parametrize("package", ["vl_convert", "jinja2"])
def test_pages_need_the_extra(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    pages.library.cache_clear()
    path, out = saved(tmp_path, compared()), tmp_path / "page.html"
    code, _, error = run(path, out)
    assert (code, out.exists()) == (1, False)
    assert "is not installed: pip install 'weightcast[report]'" in error
    assert run(path, tmp_path / "page.md")[0] == 0
