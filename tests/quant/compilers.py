"""Runs gcc and g++, which developing weightcast needs; a missing one is a failure, not a skip."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "sanitize"
KERNELS = Path(__file__).parents[2] / "quant" / "kernels"
ABI = KERNELS / "abi"
# What is compiled for each instruction set, and what a library has beside.
ISA_SOURCES = ("cpu", "cpu_least_error")
COMMON_SOURCES = ("dispatch", "self_test", "types")
STRICT = ("-Wall", "-Wextra", "-Werror", f"-I{KERNELS}")


def run(*command: object, env: dict[str, str] | None = None) -> str:
    """Run a program, return what it printed; fail with what it said on stderr."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{done.args} exited {done.returncode}:\n{done.stderr}"
    return done.stdout


def run_all(commands: list[tuple[object, ...]]) -> None:
    """Run programs two at a time."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda command: run(*command), commands):
            pass
