"""The README's links in a release: PyPI shows the page without the files beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/owner/weightcast"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def link_to(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run the script in a folder, return what it said on stderr."""
    command = [sys.executable, str(ROOT / ".ci" / "link_to.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr


def targets(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))


@pytest.mark.parametrize("given", [REPOSITORY, f"{REPOSITORY}/", f"{REPOSITORY}.git"])
def test_every_link_of_the_readme_leads_to_the_tag(given, copy):
    link_to(copy, given)
    project = tomllib.loads((copy / "pyproject.toml").read_text("utf-8"))["project"]
    tag = f"v{project['version']}"
    assert project["urls"]["Repository"] == REPOSITORY
    before, after = targets(ROOT / "README.md"), targets(copy / "README.md")
    assert len(before) == len(after)
    images = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8")))
    assert images
    for old, new in zip(before, after, strict=True):
        if old.startswith(("https:", "#")):
            assert new == old
            continue
        kind = "raw" if old in images else "blob"
        assert new == f"{REPOSITORY}/{kind}/{tag}/{old}"
        assert (ROOT / old.partition("#")[0]).exists()


def test_only_relative_links_change(copy):
    page = "[a](https://b.c) [d](#e) [f](mailto:g@h) `code(x)` [i\nj](k/l.md#m) ![n](o.svg)\n"
    (copy / "README.md").write_text(page, "utf-8")
    link_to(copy, REPOSITORY)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert (copy / "README.md").read_text("utf-8") == (
        "[a](https://b.c) [d](#e) [f](mailto:g@h) `code(x)` "
        f"[i\nj]({REPOSITORY}/blob/v{version}/k/l.md#m) ![n]({REPOSITORY}/raw/v{version}/o.svg)\n"
    )


def test_what_is_linked_is_not_linked_again(copy):
    link_to(copy, REPOSITORY)
    before = [(copy / name).read_text("utf-8") for name in ("README.md", "pyproject.toml")]
    assert link_to(copy, REPOSITORY, status=1).startswith("error: pyproject.toml: it has links")
    assert before == [(copy / name).read_text("utf-8") for name in ("README.md", "pyproject.toml")]


@pytest.mark.parametrize("given", [(), ("",), ("owner/weightcast",), (REPOSITORY, REPOSITORY)])
def test_no_address_is_refused(given, copy):
    assert link_to(copy, *given, status=2).startswith("error: usage: link_to.py https://")
    assert (copy / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
