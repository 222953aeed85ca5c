"""Read the fenced blocks of Markdown pages, and the comments that say how they are checked.

A comment on the line before a block says what is special about it:

    <!-- not run: needs a GPU -->    the reason must be one of NOT_RUN in test_documented.py
    <!-- exits with 3 -->            the code of its last command
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_FENCE: Final = re.compile(
    r"(?:^[ ]*<!--[ ](?P<comment>not[ ]run:[ ][^\n]+?|exits[ ]with[ ]\d+)[ ]-->[ ]*\n(?:[ ]*\n)?)?"
    r"^(?P<indent>[ ]*)(?P<ticks>`{3,})(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)"
    r"^(?P=indent)(?P=ticks)[ ]*$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block: its language, its text without indentation, the line it starts on."""

    language: str
    text: str
    line: int
    not_run: str | None = None
    exit_code: int = 0


def fences(text: str) -> Iterator[Fence]:
    """List the fenced blocks of a page."""
    for found in _FENCE.finditer(text):
        indent = len(found["indent"])
        body = "".join(line[indent:] or "\n" for line in found["text"].splitlines(keepends=True))
        comment = found["comment"] or ""
        yield Fence(
            found["language"].strip(),
            body,
            text.count("\n", 0, found.start("ticks")) + 1,
            comment.removeprefix("not run: ") if comment.startswith("not run: ") else None,
            int(comment.split()[-1]) if comment.startswith("exits with ") else 0,
        )


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block and the output that the page shows, if it shows any."""

    text: str
    output: tuple[str, ...]


def commands(console: str) -> Iterator[Command]:
    """List the commands of a console block: lines after `$ `, each with the lines that follow."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, *output = part.rstrip("\n").split("\n")
        while command.endswith("\\") and output:
            command = f"{command}\n{output.pop(0)}"
        yield Command(command, tuple(output))


def is_output(shown: tuple[str, ...], said: str) -> bool:
    """Tell whether a page shows what a command said; `...` stands for any text or lines."""
    pattern = r"\n".join(map(_line_pattern, shown))
    trimmed = "\n".join(line.rstrip() for line in said.rstrip("\n").split("\n"))
    return re.fullmatch(pattern, trimmed) is not None


def _line_pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:.*\n)*?.*"
    return re.escape(line.rstrip()).replace(r"\.\.\.", ".*?")
