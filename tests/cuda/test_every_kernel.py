"""Every kernel in one program; with a device, compute-sanitizer looks on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import every_kernel
from tests.cuda.stand_in import StandIn


def test_every_kernel(kernels: StandIn | None, capsys: pytest.CaptureFixture[str]) -> None:
    every_kernel.main()
    assert capsys.readouterr().out == "every kernel makes the CPU's bytes\n"


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, "tests.cuda.every_kernel"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not work on this machine")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
