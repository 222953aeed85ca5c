#!/usr/bin/env python3
"""Check that the library in a wheel runs on any Linux: it needs libc alone, old glibc or musl.

Usage: check_library.py WHEEL
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NEWEST_GLIBC = (2, 17)  # manylinux2014
# What glibc and musl both have. The rest of what the library needs, it brings along.
ALLOWED = {
    *("free", "getenv", "malloc", "memcmp", "memcpy", "memmove", "memset", "sched_yield", "strcmp"),
    "__cxa_finalize",
}


def needed(library: Path) -> list[str]:
    """List the libraries that a library names."""
    said = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True)
    return re.findall(r"NEEDED.*\[(.+)\]", said.stdout)


def imported(library: Path) -> list[tuple[str, str]]:
    """List the symbols, with versions, that a library takes from others; weak ones may lack."""
    command = ["nm", "-D", "--undefined-only", library]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"(?m)^ +U (\w+)(?:@(\S+))?$", said)


def problems(library: Path) -> list[str]:
    """Say what keeps a library from running on some distribution."""
    found = [f"it needs {name}" for name in needed(library) if not name.startswith("libc.")]
    for symbol, version in imported(library):
        if symbol not in ALLOWED:
            found.append(f"it takes {symbol} from libc")
        numbers = tuple(int(n) for n in re.findall(r"\d+", version))
        if version.startswith("GLIBC_") and numbers > NEWEST_GLIBC:
            found.append(f"it takes {symbol} from glibc {version}")
    return found


def main() -> None:
    wheel = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [
            name for name in archive.namelist() if re.search(r"/libweightcast\.so\.\d+$", name)
        ]
        if len(names) != 1:
            sys.exit(f"error: {wheel}: {len(names)} libraries, expected 1")
        if found := problems(Path(archive.extract(names[0], folder))):
            sys.exit(f"error: {wheel}: {names[0]}: {'; '.join(found)}")
    print(f"{names[0]} needs libc alone, glibc {'.'.join(map(str, NEWEST_GLIBC))} or musl")


if __name__ == "__main__":
    main()
