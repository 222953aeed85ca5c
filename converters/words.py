"""Numbers, lists and names in words."""

from __future__ import annotations

from collections.abc import Sequence


def count(n: int, noun: str) -> str:
    """A number and what is counted: 1 tensor, 2,000 tensors."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4:,} more"


def one_line(text: str) -> str:
    """A text with what cannot be printed, line ends among it, spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def in_code(text: str) -> str:
    """A text for code in Markdown, in tables too: one line, nothing that ends code or a cell."""
    return one_line(text).replace("|", "\\|").replace("`", "'")
