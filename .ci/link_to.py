#!/usr/bin/env python3
"""Make the README's links lead to a repository: PyPI shows it without the files beside it.

Usage: link_to.py URL

Changes README.md and pyproject.toml in the current folder: links become those of the tag of the
version, and the project's page gets one to the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README, PROJECT = Path("README.md"), Path("pyproject.toml")
# ![image](path) or [text](path): not an address, and not a heading of the page itself.
LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!\w+:|#|/)(?P<path>[^)\s]+)\)")


def absolute(page: str, repository: str, tag: str) -> str:
    """Replace relative links: images by the files themselves, others by their pages."""

    def replaced(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}{link['text']}({repository}/{kind}/{tag}/{link['path']})"

    return LINK.sub(replaced, page)


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].startswith("https://"):
        print("error: usage: link_to.py https://HOST/OWNER/REPOSITORY", file=sys.stderr)
        sys.exit(2)
    repository = sys.argv[1].rstrip("/").removesuffix(".git")
    project = PROJECT.read_text("utf-8")
    if "[project.urls]" in project:
        sys.exit(f"error: {PROJECT}: it has links already; take the file of the commit")
    version = re.search(r'(?m)^version = "(.+)"$', project)
    assert version is not None
    README.write_text(absolute(README.read_text("utf-8"), repository, f"v{version[1]}"), "utf-8")
    links = f'\n[project.urls]\nRepository = "{repository}"\n'
    changes = f'Changelog = "{repository}/blob/v{version[1]}/CHANGELOG.md"\n'
    PROJECT.write_text(project + links + changes, "utf-8")


if __name__ == "__main__":
    main()
