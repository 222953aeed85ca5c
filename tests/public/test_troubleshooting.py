"""The page of messages has what the code prints, and all messages of the tested mistakes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
# What prints messages; click's are put as ours are (`cli.py`).
PACKAGE = (
    *("cli.py", "errors.py", "text.py"),
    *("commands", "converters", "evaluation", "formats", "quant"),
)
CLICK = ("core.py", "exceptions.py", "types.py")
MISTAKES = (
    ROOT / "tests" / "commands" / "mistakes.txt",
    ROOT / "tests" / "converters" / "sources" / "no_sources.txt",
)
LEAST = 12  # characters of a heading that must be in one string
_GAP = "\0"  # what differs in a message
_HINT = re.compile(r" \(see weightcast\b[^)]* --help\)$")


def texts(tree: ast.Module) -> Iterator[str]:
    """List the strings of a module but its docstrings, with a gap for each value in one."""
    inner = {id(part) for node in ast.walk(tree) for part in parts_of(node)}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner | docs:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else _GAP for v in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{[^}]*\}", _GAP, node.value)  # for str.format


def parts_of(node: ast.AST) -> list[ast.expr]:
    """Give the literal pieces of an f-string, which are no strings of their own."""
    is_joined = isinstance(node, ast.JoinedStr)
    return [v for v in node.values if isinstance(v, ast.Constant)] if is_joined else []


@cache
def printed() -> tuple[str, ...]:
    """List all strings of the package's code, and click's, in lower case."""
    files = [ROOT / name for name in PACKAGE if name.endswith(".py")]
    files += [file for name in PACKAGE for file in sorted((ROOT / name).glob("**/*.py"))]
    files += [Path(click.__file__).parent / name for name in CLICK]
    found = (text for file in files for text in texts(ast.parse(file.read_text())))
    return tuple(text.lower() for text in found if len(text) >= LEAST)


def headings() -> list[str]:
    return re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)


def pieces(heading: str) -> list[str]:
    """List what a heading says between what differs, without the punctuation beside that."""
    found = (piece.strip(" :;,.()'") for piece in heading.split("..."))
    return [piece.lower() for piece in found if piece]


def is_of_code(heading: str, strings: tuple[str, ...]) -> bool:
    """Tell whether one string has all pieces of a heading, in order."""
    wanted = pieces(heading)
    if sum(map(len, wanted)) < LEAST:
        return False
    pattern = re.compile(".*".join(map(re.escape, wanted)), re.DOTALL)
    return any(pattern.search(text) for text in strings)


def matches(heading: str, message: str) -> bool:
    """Tell whether a message is the one of a heading, whose `...` stands for anything."""
    pattern = ".*".join(map(re.escape, heading.split("...")))
    return re.fullmatch(pattern, message) is not None


def messages(transcript: Path) -> list[str]:
    """List the messages of a transcript, without what says how bad they are."""
    found = re.findall(r"^(?:usage error|error|problem): (.+)$", transcript.read_text(), re.M)
    return list(dict.fromkeys(_HINT.sub("", message) for message in found))


def test_headings_are_messages_of_the_code() -> None:
    assert len(headings()) == len(set(headings())) > 40
    assert [h for h in headings() if not is_of_code(h, printed())] == []


@pytest.mark.parametrize("transcript", MISTAKES, ids=lambda path: path.stem)
def test_every_mistake_is_on_the_page(transcript: Path) -> None:
    found = messages(transcript)
    assert len(found) > 50
    assert [m for m in found if not any(matches(h, m) for h in headings())] == []


def test_pieces_of_several_strings_are_no_message() -> None:
    code = '"""A docstring of some length."""\nx = f"{a}: not a shard; move {b} out"\ny = "of here"'
    strings = tuple(texts(ast.parse(code)))
    assert strings == (f"{_GAP}: not a shard; move {_GAP} out", "of here")
    assert is_of_code("...: not a shard; move ... out", strings)
    assert not is_of_code("...: not a shard; move ... of here", strings)
    assert not is_of_code("... out ... not a shard", strings)
    assert not is_of_code("...: a shard", strings)  # too little to tell
    assert not is_of_code("A docstring of some length", strings)
    assert matches("...: not a ...; move it out", "a/b: not a shard; move it out")
    assert not matches("not a shard", "a/b: not a shard; move it out")
