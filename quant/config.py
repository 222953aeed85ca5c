"""Print where the C header and library lie: python -m weightcast.quant.config.

Prints what a compiler needs, as pkg-config does: --cflags, --libs, or both if neither is given.
"""

from __future__ import annotations

import shlex
import sys

from weightcast.quant.cpu.library import LIBRARY_NAME, installed


def cflags() -> list[str]:
    """Flags that let a compiler find weightcast.h."""
    return [f"-I{installed('include/weightcast.h').parent}"]


def libs() -> list[str]:
    """Flags that link the library and let the program find it where it is."""
    folder = installed(LIBRARY_NAME).parent
    name = LIBRARY_NAME.removeprefix("lib").removesuffix(".so")
    return [f"-L{folder}", f"-Wl,-rpath,{folder}", f"-l{name}"]


def main() -> None:
    wanted = sys.argv[1:] or ["--cflags", "--libs"]
    flags = {"--cflags": cflags, "--libs": libs}
    if unknown := [option for option in wanted if option not in flags]:
        sys.exit(f"unknown option {unknown[0]}: use --cflags, --libs or both")
    print(shlex.join([flag for option in wanted for flag in flags[option]()]))


if __name__ == "__main__":
    main()
