"""The NEON and the scalar kernels, cross-compiled for aarch64, make x86's bytes under an emulator.

Needs Debian's g++-aarch64-linux-gnu and qemu-user, which .ci/run installs; skipped without them.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
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
    gxx = (COMPILER, *FLAGS, "-DWEIGHTCAST_NEON=1", "-c")
    kernels = {"scalar": (), "neon": ("-DWC_VECTORS_128",)}  # as CMakeLists.txt compiles them
    parts = {f"{isa}-{name}": (isa, name) for isa in kernels for name in compilers.ISA_SOURCES}
    objects = {name: tmp_path / f"{name}.o" for name in (*parts, *compilers.COMMON_SOURCES)}
    compilers.run_all(
        [
            *(
                (
                    *gxx,
                    f"-DWC_ISA={isa}",
                    *kernels[isa],
                    compilers.ABI / f"{name}.cpp",
                    "-o",
                    objects[part],
                )
                for part, (isa, name) in parts.items()
            ),
            *(
                (*gxx, compilers.ABI / f"{name}.cpp", "-o", objects[name])
                for name in compilers.COMMON_SOURCES
            ),
            (*gxx, DRIVER, "-o", tmp_path / "driver.o"),
            ("g++", *FLAGS, DRIVER, *config.libs(), "-o", tmp_path / "here"),
        ]
    )
    there = tmp_path / "there"
    compilers.run(COMPILER, "-static", tmp_path / "driver.o", *objects.values(), "-o", there)

    def said(isa: str) -> list[str]:
        env = {**os.environ, "WEIGHTCAST_ISA": isa}
        return compilers.run(EMULATOR, there, "brief", env=env).splitlines()

    expected = compilers.run(tmp_path / "here", "brief").splitlines()
    assert len(expected) > 20
    with ThreadPoolExecutor(2) as pool:
        for isa, lines in zip(kernels, pool.map(said, kernels), strict=True):
            assert lines == [isa, *expected[1:]]
