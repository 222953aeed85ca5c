"""The library at each instruction set of this processor, all in one process.

WEIGHTCAST_ISA is read once per loaded library, and a copy of the file is another library.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import weightcast.quant
from weightcast.quant.cpu import library

LOAD = library.load  # fixtures replace the name by another library
# What the processor must have, as /proc/cpuinfo spells it; best first.
NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx2": {"avx2"},
    "sse2": {"sse2"},
    "neon": {"asimd"},
    "scalar": set(),
}


def is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


@cache
def available() -> tuple[str, ...]:
    """Name the instruction sets that this processor can run, best first."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):  # x86, aarch64
            flags = set(line.split())
            break
    return tuple(isa for isa, needs in NEEDS.items() if needs <= flags)


@contextmanager
def using(loaded: ctypes.CDLL) -> Iterator[None]:
    """Make the Python API use a library, as the fixture `libraries` gives them."""
    with mock.patch.object(library, "load", return_value=loaded):
        yield


def load_copy(isa: str | None, folder: Path) -> ctypes.CDLL:
    """Load a fresh copy of the library, made in `folder`, that has WEIGHTCAST_ISA set to `isa`."""
    copied = folder / library.LIBRARY_NAME
    copied.parent.mkdir(parents=True)
    shutil.copy(LOAD()._name, copied)
    with (
        mock.patch.object(weightcast.quant, "__path__", [str(folder)]),
        mock.patch.dict("os.environ") as environ,
    ):
        environ.pop("WEIGHTCAST_ISA", None)
        if isa is not None:
            environ["WEIGHTCAST_ISA"] = isa
        copy: ctypes.CDLL = LOAD.__wrapped__()
        copy.weightcast_isa()  # the first use reads the environment
    return copy
