"""benchmarks/gpu.py runs, and refuses to time wrong rows; its figures are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu as benchmark
from benchmarks import gpu_work
from tests.cuda.stand_in import StandIn
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.groups import Groups, empty_groups
from weightcast.quant.types import GroupType


def run(*args: object) -> str:
    command = ["--columns", "128", "--repeat", "2", *map(str, args)]
    done = CliRunner().invoke(benchmark.main, command)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_kernels_are_timed(kernels: StandIn | None, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    rows = ["Q8_0 lossless", "Q8_0", "Q4_K", "int4-g128-asym"]
    shown = run("--types", ",".join(rows), "--no-pipeline", "--output", output)
    report = json.loads(output.read_text())
    assert list(report["kernels"]) == rows
    assert set(report["kernels"]["Q8_0 lossless"]) == {"I8", "cpu_gweights_s"}
    for row in ("Q4_K", "int4-g128-asym"):
        assert len(report["kernels"][row]["BF16"]["ms"]) == 2
    assert output.with_suffix(".md").read_text() in shown
    assert shown.count("\n| Q") == 3


def test_importance_is_given(kernels: StandIn | None) -> None:
    assert "| IQ2_XXS |" in run("--types", "IQ2_XXS,Q4_0", "--importance", "--no-pipeline")
    assert "| int4-channel |" in run("--types", "int4-channel", "--importance", "--no-pipeline")


def test_wrong_rows_are_not_timed(kernels: StandIn | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_groups(matrix: Matrix, group_type: GroupType, _: object) -> Groups:
        return empty_groups(group_type, matrix.n_out, matrix.n_in)

    monkeypatch.setattr(gpu_work, "quantize_matrix", lambda matrix, kind, rows, _: rows.fill(1))
    monkeypatch.setattr(gpu_work, "quantize_groups", wrong_groups)
    for row in ("Q4_0", "int4-g128"):
        done = CliRunner().invoke(benchmark.main, ["--columns", "128", "--types", row])
        assert done.exit_code == 1
        assert f"{row} from I8 differs" in done.output


def test_conversions_are_timed() -> None:
    found = benchmark.pipeline(["Q8_0", "Q4_K_M"], ["cpu"], 1, tiny=True)
    assert set(found["seconds"]) == {"Q8_0 cpu", "Q4_K_M cpu", "cp"}
    assert all(len(took) == 1 and took[0] > 0 for took in found["seconds"].values())
    assert np.isfinite(found["source_bytes"])
