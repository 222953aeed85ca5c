"""Files that stand in for others: pointers of version control, web pages, answers of servers.

Downloads and clones leave them under the name of the file that was wanted.
Sources: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md;
https://git-annex.branchable.com/internals/pointer_file/ and key_format; pointer_file.rs of git-xet.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Final

from weightcast.errors import visible
from weightcast.formats.foreign.finding import Finding
from weightcast.text import count, shown

# Pointers, pages and answers say what they are in less.
HEAD_BYTES: Final = 4096
_AGAIN: Final = "download the file again"
_LFS: Final = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/")
_LFS_SIZE: Final = re.compile(rb"\nsize (\d{1,20})\r?\n")
_ANNEX: Final = re.compile(rb"/annex/objects/[A-Z0-9_]+(?:-s(\d{1,20}))?-")
_XET: Final = re.compile(rb"# xet version \d")
_XET_SIZE: Final = re.compile(rb"\nfilesize ?= ?(\d{1,20})\r?\n")
_PAGE: Final = (b"<!doctype", b"<html", b"<head", b"<body")
_TITLE: Final = re.compile(rb"<title[^>]*>([^<]{1,200})", re.IGNORECASE)
_BUCKET: Final = re.compile(rb"<(?:Error|error)>.{0,400}?<Code>([A-Za-z]{1,60})</Code>", re.DOTALL)
# Keys that a server's answer in JSON begins with, and those that hold its words.
_ANSWER: Final = re.compile(
    rb'\{\s*"(?:errors?|message|detail|code|status(?:_?code)?|success)"\s*:', re.IGNORECASE
)
_ANSWER_WORDS: Final = re.compile(
    rb'"(?:error|message|detail|msg)"\s*:\s*"([^"]{1,300})"', re.IGNORECASE
)


def _to_bytes(size: bytes | None) -> str:
    return "" if size is None else f" to {count(int(size), 'byte')}"


def _lfs(head: bytes) -> Finding | None:
    if not _LFS.match(head):
        return None
    told = _LFS_SIZE.search(head)
    return Finding(
        f"a pointer of Git LFS{_to_bytes(told and told[1])}, not the file",
        "run `git lfs pull` in its folder, or download the file",
    )


def _annex(head: bytes) -> Finding | None:
    told = _ANNEX.match(head)
    if told is None:
        return None
    return Finding(
        f"a pointer of git-annex{_to_bytes(told[1])}, not the file", "run `git annex get` on it"
    )


def _xet(head: bytes) -> Finding | None:
    if not _XET.match(head):
        return None
    told = _XET_SIZE.search(head)
    return Finding(
        f"a pointer of Git Xet{_to_bytes(told and told[1])}, not the file",
        "download the file itself",
    )


def _page(head: bytes) -> Finding | None:
    start = head.lstrip()
    if start[:5].lower() == b"<?xml":
        start = start.partition(b"?>")[2].lstrip()
    bucket = _BUCKET.match(start)
    if bucket is not None:
        code = bucket[1].decode()
        return Finding(f"a storage server's refusal ({code}), not the file", _AGAIN)
    if not start[:16].lower().startswith(_PAGE):
        return None
    title = _TITLE.search(head)
    named = f" ({_title(title[1])})" if title else ""
    return Finding(
        f"a web page{named}, not the file",
        "its address was wrong, or wants a login: download the file itself",
    )


def _answer(head: bytes) -> Finding | None:
    start = head.lstrip()
    if len(head) == HEAD_BYTES or not _ANSWER.match(start):
        return None
    told = _ANSWER_WORDS.search(start)
    return Finding(f"a server's answer, not the file: {_words(told[1] if told else start)}", _AGAIN)


def _title(raw: bytes) -> str:
    import html  # a large table

    text = html.unescape(raw.decode(errors="replace"))
    return repr(visible(" ".join(text.split()))[:100])


def _words(raw: bytes) -> str:
    return shown(" ".join(raw.decode(errors="replace").split()))


_ALL: Final[tuple[Callable[[bytes], Finding | None], ...]] = (_lfs, _annex, _xet, _page, _answer)


def stand_in(head: bytes) -> Finding | None:
    """Recognize by its first HEAD_BYTES what stands in for another file; None for anything else."""
    head = head.removeprefix(codecs.BOM_UTF8)
    return next((found for look in _ALL if (found := look(head)) is not None), None)


def few_words(head: bytes, size: int) -> Finding | None:
    """Take a file of one short line for the words with which a server refused."""
    if not 8 <= size <= 512 or b"{" in head:
        return None
    words = head.decode(errors="surrogateescape").strip()
    if not words or not words.isprintable():  # more than one line, or no text
        return None
    return Finding(f"a text, not the file: {shown(words)}", _AGAIN)
