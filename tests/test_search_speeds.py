"""benchmarks/search_speeds.py: what it measures, and how ratios are taken."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import search_speeds


def test_ratios_are_of_the_same_round() -> None:
    speeds = {"ggml": [1.0, 2, 4], "effort 1": [3.0, 4, 20]}
    line = search_speeds.line_of("Q4_K", speeds)
    assert line["ratio"] == {"effort 1": 3}
    assert line["ratio_range"] == {"effort 1": [2, 5]}
    assert line["mweights_per_s"] == {"ggml": 2, "effort 1": 4}


def test_types_are_measured(tmp_path: Path) -> None:
    """Those that need importance with it only, and with it those that ggml makes without."""
    output = tmp_path / "r.json"
    options = ["--types", "Q8_0,IQ2_XS", "--columns", "16", "--rounds", "2", "--output", output]
    result = CliRunner().invoke(search_speeds.main, list(map(str, options)), catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(output.read_text())
    assert [line["type"] for line in report["plain"]] == ["Q8_0"]
    assert [line["type"] for line in report["weighed"]] == ["Q8_0", "IQ2_XS"]
    rows = output.with_suffix(".md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows if row.startswith("| Q8_0")] == ["| Q8_0"] * 2
    efforts = report["weighed"][1]["mweights_per_s"]
    assert list(efforts) == ["ggml", *search_speeds.SEARCHES]


def test_other_blocks_than_ggmls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_speeds, "quantize_matrix", lambda *_: None)
    with pytest.raises(click.ClickException, match="Q4_0 by ggml's rule differs from ggml"):
        search_speeds.speeds_of("Q4_0", False, 1, 16)
