"""Print where the C header and library lie: python -m weightcast.quant.config.

Prints what a compiler needs, as pkg-config does: --cflags, --libs, or both if nothing is asked for.
--static is the static library, to link instead of --libs. --pkgconfigdir and --cmakedir are folders
for PKG_CONFIG_PATH and for weightcast_DIR.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

from weightcast.quant.cpu.library import LIBRARY_NAME, installed


def cflags() -> list[str]:
    """Give flags that let a compiler find weightcast.h."""
    return [f"-I{installed('include/weightcast.h').parent}"]


def libs() -> list[str]:
    """Give flags that link the library and let the program find it where it is."""
    folder = _libdir()
    return [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lweightcast"]


def static() -> list[str]:
    """Give the static library, which needs no other."""
    return [str(_libdir() / "libweightcast.a")]


def pkgconfigdir() -> list[str]:
    """Give the folder of weightcast.pc."""
    return [str(_libdir() / "pkgconfig")]


def cmakedir() -> list[str]:
    """Give the folder of weightcastConfig.cmake."""
    return [str(_libdir() / "cmake" / "weightcast")]


def _libdir() -> Path:
    return installed(LIBRARY_NAME).parent


OPTIONS: Final = {
    "--cflags": cflags,
    "--libs": libs,
    "--static": static,
    "--pkgconfigdir": pkgconfigdir,
    "--cmakedir": cmakedir,
}


def main() -> None:
    wanted = sys.argv[1:] or ["--cflags", "--libs"]
    if unknown := [option for option in wanted if option not in OPTIONS]:
        sys.exit(f"error: unknown option {unknown[0]}; use some of {', '.join(OPTIONS)}")
    print(shlex.join([flag for option in wanted for flag in OPTIONS[option]()]))


if __name__ == "__main__":
    main()
