#!/usr/bin/env python3
"""Check an installed weightcast: the commands, a conversion, the C library.

Run it with the Python that weightcast is installed in. It needs no other file of the checkout.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import weightcast
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.quant import config

PROGRAM = """
#include <stdio.h>
#include <weightcast.h>
int main(void) {
  return puts(weightcast_isa()) < 0 || weightcast_self_test(weightcast_type_from_name("Q4_K"));
}
"""


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        sys.exit(f"{done.args} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def check_conversion(folder: Path) -> None:
    """Convert, verify, and read back within the error of the type."""
    source, made = write_checkpoint(folder / "tiny", tiny_spec()), folder / "tiny-Q8_0.gguf"
    command = Path(sysconfig.get_path("scripts"), "weightcast")
    run(command, "convert", source, made, "--no-tokenizer", "--quiet")
    run(command, "verify", made, "--source", source, "--quiet")
    x = np.sin(np.arange(4096, dtype=np.float32)).reshape(4, 1024)
    back = weightcast.dequantize(weightcast.quantize(x, "Q8_0"), "Q8_0")
    assert np.abs(back - x).max() < 0.01, np.abs(back - x).max()


def check_c_library(folder: Path) -> None:
    """Link a C program with the shared library and with the static one, if there is a compiler."""
    if shutil.which("cc") is None:
        print("no C compiler: the C library is not linked")
        return
    source = folder / "program.c"
    source.write_text(PROGRAM)
    for libraries in (config.libs(), config.static()):
        run("cc", "-std=c99", *config.cflags(), source, "-o", folder / "program", *libraries)
        print("C program on", run(folder / "program"))


def main() -> None:
    print("weightcast", version("weightcast"), "on Python", sys.version.split()[0])
    with tempfile.TemporaryDirectory() as folder:
        check_conversion(Path(folder))
        check_c_library(Path(folder))


if __name__ == "__main__":
    main()
