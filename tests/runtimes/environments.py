"""Environments with other versions of some packages; the rest is that of the development one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from datetime import date
from pathlib import Path

from tests.builds import built_once, digest

_SHARED = "zz-shared.pth"  # after the environment's own packages, which come first


def environment(*requirements: str) -> Path:
    """Give the interpreter of an environment with these packages, made once.

    One with an open requirement is made anew each day. What the development environment has in a
    version that is good enough, torch above all, is shared. Raises CalledProcessError.
    """
    is_pinned = all("==" in requirement for requirement in requirements)
    day = "" if is_pinned else date.today().isoformat()

    def build(folder: Path) -> Path:
        packages = Path(sysconfig.get_path("purelib"))
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        tail = packages.relative_to(sys.prefix)
        (folder / tail / _SHARED).write_text(f"{packages}\n")
        pip = [folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--upgrade", *requirements], check=True)
        return folder

    name = digest([], sys.version, requirements, day)
    return built_once("environments", name, build, keep=8) / "bin" / "python"
