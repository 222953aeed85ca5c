#!/usr/bin/env python3
"""Find the links of Markdown pages, as files of the repository, and the anchors of headings.

As a program it lists the links to other sites, which no test fetches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

_FENCE: Final = re.compile(r"^ *```.*?^ *```\s*$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()(?!<)([^)\s]+)(?=\))")
_HEADING: Final = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_MARKUP: Final = re.compile(r"\[([^]]*)\]\([^)]*\)|[`*]")
_IS_EXTERNAL: Final = re.compile(r"[a-z]+:")


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a page: where it stands in the text, what it says, and what that means.

    `path` is a file of the repository, or empty for links to other sites.
    """

    start: int
    text: str
    path: str
    anchor: str

    @property
    def is_external(self) -> bool:
        return not self.path


def blanked(text: str) -> str:
    """Blank fenced code, whose brackets are no links, and keep every other place."""
    return _FENCE.sub(lambda found: re.sub(r"\S", " ", found[0]), text)


def links(page: str, text: str) -> Iterator[Link]:
    """List the links of a page, given by its path from the root."""
    for found in _LINK.finditer(blanked(text)):
        target, _, anchor = found[1].partition("#")
        if _IS_EXTERNAL.match(target):
            yield Link(found.start(), found[1], "", anchor)
        else:
            path = os.path.normpath(f"{Path(page).parent}/{target}") if target else page
            yield Link(found.start(), found[1], path, anchor)


def anchors(text: str) -> set[str]:
    """List the anchors that GitHub and the site give to the headings of a page."""
    found: set[str] = set()
    for heading in _HEADING.findall(blanked(text)):
        words = _MARKUP.sub(lambda m: m[1] or "", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(slug)
    return found


def main() -> None:
    """List the links to other sites, each with the pages that have it."""
    found: dict[str, list[str]] = {}
    for file in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        page = str(file.relative_to(ROOT))
        for link in links(page, file.read_text()):
            if link.is_external:
                found.setdefault(link.text, []).append(page)
    for target, pages in sorted(found.items()):
        print(f"{target}  ({', '.join(dict.fromkeys(pages))})")


if __name__ == "__main__":
    main()
