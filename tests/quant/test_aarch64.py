"""The kernels cross-compiled for aarch64 give the bytes of x86, under an emulator.

Needs Debian's g++-aarch64-linux-gnu and qemu-user, which .ci/run installs; skipped without them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.quant import compilers
from weightcast.quant import config

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", *compilers.STRICT)
DRIVER = compilers.SOURCES / "sanitize.cpp"


# Another compiler and an emulator: for what this machine's own compiler cannot tell.
@pytest.mark.exhaustive
@pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {' and '.join(MISSING)}: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_same_bytes_as_x86(tmp_path: Path) -> None:
    gxx = (COMPILER, *FLAGS, "-c")
    objects = {name: tmp_path / f"{name}.o" for name in ("cpu", *compilers.COMMON_SOURCES)}
    define = {"cpu": ("-DWC_ISA=scalar",)}
    compilers.run_all(
        [
            *(
                (*gxx, *define.get(name, ()), compilers.ABI / f"{name}.cpp", "-o", path)
                for name, path in objects.items()
            ),
            (*gxx, DRIVER, "-o", tmp_path / "driver.o"),
            ("g++", *FLAGS, DRIVER, *config.libs(), "-o", tmp_path / "here"),
        ]
    )
    there = tmp_path / "there"
    compilers.run(COMPILER, "-static", tmp_path / "driver.o", *objects.values(), "-o", there)
    expected = compilers.run(tmp_path / "here", "brief", env=dict(os.environ)).splitlines()
    said = compilers.run(EMULATOR, there, "brief").splitlines()
    assert said[0] == "scalar"
    assert len(said) > 20
    assert said[1:] == expected[1:]
