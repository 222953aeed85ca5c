"""Links of pages lead to files and headings that exist; generated parts are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools.links import ROOT, anchors, links

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")],
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links(name_of(page), page.read_text()):
        target = ROOT / link.path
        if link.is_external:
            continue
        if not target.is_file() or (link.anchor and link.anchor not in anchors(target.read_text())):
            dead.append(link.text)
    assert not dead


def test_dead_links_are_noticed() -> None:
    text = "[a](b.md#c) [d](https://e.f) ![g](../h.png)\n```\n[i](j.md)\n```\n[k](#l)"
    found = [(link.path, link.anchor) for link in links("docs/p.md", text)]
    assert found == [("docs/b.md", "c"), ("", ""), ("h.png", ""), ("docs/p.md", "l")]
    assert anchors("# The `a b`\n## C: [d](e), f!\n") == {"the-a-b", "c-d-f"}


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in ROOT.glob("docs/**/*.md")]
    assert [str(page) for page in pages if f": {page}\n" not in config] == []


def test_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs/tools/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
