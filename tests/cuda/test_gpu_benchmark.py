"""benchmarks/gpu*.py run, and refuse to time wrong rows; their figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu as benchmark
from benchmarks import gpu_proofs, gpu_session, gpu_variants, gpu_work
from tests.cuda.stand_in import StandIn
from weightcast.errors import DeviceError
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.groups import Groups, empty_groups
from weightcast.quant.types import GroupType

SESSION = Path(benchmark.__file__).with_name("gpu_session.sh")


def run(*args: object) -> str:
    command = ["--columns", "128", "--repeat", "2", *map(str, args)]
    done = CliRunner().invoke(benchmark.main, command)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_kernels_are_timed(kernels: StandIn | None, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    rows = ["Q8_0 lossless", "Q8_0", "Q4_K", "int4-g128-asym"]
    shown = run("--types", ",".join(rows), "--output", output)
    report = json.loads(output.read_text())
    assert list(report["kernels"]) == rows
    assert set(report["kernels"]["Q8_0 lossless"]) == {"I8", "cpu_gweights_s"}
    for row in ("Q4_K", "int4-g128-asym"):
        assert len(report["kernels"][row]["BF16"]["ms"]) == 2
    assert shown.count("\n| Q") == 3


def test_importance_is_given(kernels: StandIn | None) -> None:
    assert "| IQ2_XXS |" in run("--types", "IQ2_XXS,Q4_0", "--importance")
    assert "| int4-channel |" in run("--types", "int4-channel", "--importance")


def test_wrong_rows_are_not_timed(kernels: StandIn | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_groups(matrix: Matrix, group_type: GroupType, _: object) -> Groups:
        return empty_groups(group_type, matrix.n_out, matrix.n_in)

    monkeypatch.setattr(gpu_work, "quantize_matrix", lambda matrix, kind, rows, *_: rows.fill(1))
    monkeypatch.setattr(gpu_work, "quantize_groups", wrong_groups)
    for row in ("Q4_0", "int4-g128"):
        done = CliRunner().invoke(benchmark.main, ["--columns", "128", "--types", row])
        assert done.exit_code == 1
        assert f"{row} from I8 differs" in done.output


def test_variants_are_timed(kernels: StandIn | None, tmp_path: Path) -> None:
    output = tmp_path / "variants.json"
    small = ["--columns", "128", "--repeat", "1", "--types", "Q3_K", "--output", str(output)]
    done = CliRunner().invoke(gpu_variants.main, small)
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(output.read_text())
    macros = [(one["macro"], one["value"]) for one in report["variants"]]
    ways = [("WC_DESCENT_WAYS", "1"), ("WC_DESCENT_WAYS", "2")]
    assert macros == ways + [("WC_RESIDENT_BLOCKS", n) for n in ("", "0", "2", "3", "4", "5")]
    assert "| Q3_K | WC_DESCENT_WAYS=2 |" in done.output


def test_kernels_that_fail_are_told(
    kernels: StandIn | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "proofs.json"

    def fail(*_: object) -> None:
        raise DeviceError("makes other bytes")

    monkeypatch.setattr(gpu_proofs.cuda_kernels, "dequantizer", fail)
    options = ["--types", "Q4_0", "--sources", "F32", "--output", str(output)]
    done = CliRunner().invoke(gpu_proofs.main, options)
    assert done.exit_code == 1
    report = json.loads(output.read_text())
    assert report["found"].pop("dequantize_Q4_0") == "makes other bytes"
    assert set(report["found"]) == {
        "quantize_Q4_0_from_F32",
        "quantize_weighed_Q4_0_from_F32",
        "search_Q4_0_from_F32",
        "measure_Q4_0_from_F32",
        "make_groups_from_F32",
        "make_weighed_groups_from_F32",
    }
    assert set(report["found"].values()) == {"proven"}


def test_a_session_on_the_stand_in(kernel_cache: Path, tmp_path: Path) -> None:
    """One command proves, times and converts; its figures are not looked at."""
    done = run_session(tmp_path, kernel_cache)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-session.json").read_text())
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(
        ("proofs", "gpu", "searches", "variants", "pipeline"), "done"
    )
    assert set(found["proofs"]["result"]["found"].values()) == {"proven"}
    assert list(found["gpu"]["result"]["kernels"]) == ["Q8_0 lossless", "Q8_0", "int4-g128"]
    assert found["searches"]["result"]["effort"] == 2
    assert set(found["pipeline"]["result"]["seconds"]) == {
        *("Q8_0 cuda", "Q8_0 cpu", "Q4_K_M cuda", "Q4_K_M cpu", "cp")
    }
    table = (tmp_path / "gpu-session.md").read_text()
    assert table in done.stdout
    for row in ("| int4-g128 |", "| NVFP4 | WC_RESIDENT_BLOCKS=0 |", "| Q4_K_M cuda |"):
        assert row in table
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gpu-session.json",
        "gpu-session.md",
    ]


def run_session(output: Path, kernel_cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(output),
        "WEIGHTCAST_CACHE": str(kernel_cache),
    }
    command = [str(SESSION), "--stand-in"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_part_that_fails_does_not_stop_a_session(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text('{"kernels": 3}')
    command = [sys.executable, "-c"]
    slow = gpu_session.Part("slow", 1, [*command, "import time; time.sleep(60)"], str)
    wrong = gpu_session.Part("wrong", 60, [*command, "print('said'); raise SystemExit(3)"])
    missing = gpu_session.Part("missing", 60, [str(tmp_path / "none")])
    found = {part.name: gpu_session.run(part, tmp_path, part.limit_s) for part in (slow, wrong)}
    found["missing"] = gpu_session.run(missing, tmp_path, 60)
    assert found["slow"]["status"] == "stopped after 1 s"
    assert found["slow"]["result"] == {"kernels": 3}
    assert (found["wrong"]["status"], found["wrong"]["said"]) == ("failed (3)", "said\n")
    assert found["missing"]["status"].startswith("not run: ")
    table = gpu_session.markdown(found, [slow, wrong, missing])
    assert "| slow | stopped after 1 s | 1 |" in table
    assert "{'kernels': 3}" in table
    assert "said" in table


def test_a_session_fits_eight_minutes(tmp_path: Path) -> None:
    *parts, last = gpu_session.parts(tmp_path, dry=False)
    assert sum(part.limit_s for part in parts) < gpu_session.LIMIT_S < 8 * 60
    assert last.name == "compute-sanitizer memcheck"
