"""llama.cpp for a benchmark: its source out of a package on PyPI, and programs built of that."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import click

PACKAGE = "llama-cpp-python==0.3.36"  # vendor/llama.cpp is commit 0c1e5709
CONVERTER = "convert_hf_to_gguf.py"
PROGRAMS = "build/bin"
QUANTIZE = f"{PROGRAMS}/llama-quantize"
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",  # with -march=native, which is ggml's default
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
}


def llama_cpp(folder: Path, *programs: str) -> Path:
    """Give a folder with llama.cpp's source, and programs in build/bin: made if missing.

    Without names it is llama-quantize that is built.
    """
    if not (folder / CONVERTER).is_file():
        click.echo(f"getting {PACKAGE} ...")
        _download(folder)
    missing = [
        name for name in programs or ("llama-quantize",) if not (folder / PROGRAMS / name).is_file()
    ]
    if missing:
        click.echo(f"building {', '.join(missing)} ...")
        build = folder / "build"
        options = [f"-D{key}={value}" for key, value in _OPTIONS.items()]
        subprocess.run(["cmake", "-S", folder, "-B", build, *options], check=True)
        subprocess.run(["cmake", "--build", build, "--target", *missing, "-j2"], check=True)
    return folder


def _download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-binary", "llama-cpp-python", "--dest", folder, PACKAGE], check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, name = member.name.partition("/vendor/llama.cpp/")
            if found and (member.isfile() or member.isdir()):
                member.name = name
                tar.extract(member, folder, filter="data")
    archive.unlink()
