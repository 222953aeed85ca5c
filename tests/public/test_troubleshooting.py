"""The page of messages has messages that the code prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGE = ("cli.py", "errors.py", "text.py", "commands", "converters", "formats", "quant")
_GAP = "\0"  # what differs in a message


def texts(tree: ast.Module) -> Iterator[str]:
    """List the strings of a module, with a gap for each value in an f-string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else _GAP for v in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def printed() -> str:
    """Join all strings of the package's code."""
    files = [ROOT / name for name in PACKAGE if name.endswith(".py")]
    files += [file for name in PACKAGE for file in sorted((ROOT / name).glob("**/*.py"))]
    return "\n".join(text for file in files for text in texts(ast.parse(file.read_text())))


def pieces(heading: str) -> list[str]:
    """List the words of a heading between what differs, and between its parts."""
    return [piece.strip(" :,.)") for piece in re.split(r"\.\.\.|;|\(", heading)]


def test_headings_are_messages_of_the_code() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
    assert len(headings) > 40
    assert len(headings) == len(set(headings))
    code = printed()
    stale = [h for h in headings if max(pieces(h), key=len) not in code]
    assert not stale
