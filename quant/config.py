"""Print where the C header and library lie: python -m weightcast.quant.config."""

from __future__ import annotations

import argparse
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
    "--cflags": (cflags, "-I of the header"),
    "--libs": (libs, "-L, -l and the run path of the shared library"),
    "--static": (static, "the static library, to link instead of --libs"),
    "--pkgconfigdir": (pkgconfigdir, "the folder for PKG_CONFIG_PATH"),
    "--cmakedir": (cmakedir, "the folder for weightcast_DIR"),
}
_UNKNOWN_OPTION: Final = 2  # the exit status of wrong usage


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m weightcast.quant.config",
        description="Print what a compiler needs to use the C library, as pkg-config does.",
        epilog="Without options it prints --cflags and --libs.",
        allow_abbrev=False,
    )
    for option, (give, help_text) in OPTIONS.items():
        parser.add_argument(
            option, dest="wanted", action="append_const", const=give, help=help_text
        )
    given, unknown = parser.parse_known_args()
    if unknown:
        known = ", ".join(OPTIONS)
        print(f"error: unknown option {unknown[0]}; use some of {known}", file=sys.stderr)
        sys.exit(_UNKNOWN_OPTION)
    print(shlex.join([flag for give in given.wanted or (cflags, libs) for flag in give()]))


if __name__ == "__main__":
    main()
