"""benchmarks/gpu.py runs, and refuses to time wrong rows; its figures are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu as benchmark
from tests.cuda.stand_in import StandIn


def run(*args: object) -> str:
    command = ["--columns", "128", "--repeat", "2", *map(str, args)]
    done = CliRunner().invoke(benchmark.main, command)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_kernels_are_timed(kernels: StandIn | None, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    shown = run("--types", "Q8_0 lossless,Q8_0,Q4_K", "--no-pipeline", "--output", output)
    report = json.loads(output.read_text())
    assert list(report["kernels"]) == ["Q8_0 lossless", "Q8_0", "Q4_K"]
    assert set(report["kernels"]["Q8_0 lossless"]) == {"I8", "cpu_gweights_s"}
    assert len(report["kernels"]["Q4_K"]["BF16"]["ms"]) == 2
    assert output.with_suffix(".md").read_text() in shown
    assert shown.count("\n| Q") == 3


def test_importance_is_given(kernels: StandIn | None) -> None:
    assert "| IQ2_XXS |" in run("--types", "IQ2_XXS,Q4_0", "--importance", "--no-pipeline")


def test_wrong_rows_are_not_timed(kernels: StandIn | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "quantize_matrix", lambda matrix, kind, rows, _: rows.fill(1))
    done = CliRunner().invoke(benchmark.main, ["--columns", "128", "--types", "Q4_0"])
    assert done.exit_code == 1
    assert "Q4_0 from I8 differs" in done.output


def test_conversions_are_timed() -> None:
    found = benchmark.pipeline(["Q8_0", "Q4_K_M"], ["cpu"], 1, tiny=True)
    assert set(found["seconds"]) == {"Q8_0 cpu", "Q4_K_M cpu", "cp"}
    assert all(len(took) == 1 and took[0] > 0 for took in found["seconds"].values())
    assert np.isfinite(found["source_bytes"])
