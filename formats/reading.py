"""Reading small files whole: configurations, indexes, tokenizers; bounded, regular files.

Bounded in memory too: Python takes 64 bytes and more for what is three in JSON, so the values of a
text are counted before it is parsed.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any, Final

from weightcast.errors import CheckpointError, FormatError
from weightcast.text import shown

MAX_JSON_BYTES: Final = 1 << 26
# A tokenizer.json with a vocabulary of 262,144 has two millions; they take 0.3 GB at most.
MAX_JSON_VALUES: Final = 1 << 22
_CHUNK_BYTES: Final = 1 << 16
# What tells a page or a pointer from weights; other answers of servers are no longer.
_HEAD_BYTES: Final = 512
_LFS: Final = re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/")
_LFS_SIZE: Final = re.compile(rb"\nsize (\d{1,20})\n")
_PAGE: Final = (b"<!doctype", b"<html", b"<?xml", b"<error")


def read_small(path: Path, limit_bytes: int) -> bytes:
    """Read a file of at most `limit_bytes`. Raises CheckpointError for pipes, devices and more."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, or not a regular one")
    try:
        with path.open("rb") as file:
            # Never all that may be read: room for it would be made before it is.
            raw = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
            while len(raw) <= limit_bytes and (more := file.read(_CHUNK_BYTES)):
                raw += more
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    if len(raw) > limit_bytes:
        raise FormatError(
            path, limit_bytes, f"larger than {limit_bytes:,} bytes, which is too much"
        )
    return raw


def check_downloaded(path: Path, *, is_text: bool = False) -> None:
    """Raise FormatError if a file is what downloads leave in another's place.

    Called where a file is not what it should be: a pointer of Git LFS, a web page, or the few words
    with which a server refused are then the reason. These words are not looked for in a file that
    `is_text` itself.
    """
    try:
        with path.open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_HEAD_BYTES)
    except OSError:
        return
    told = _stand_in(head, size, is_text=is_text)
    if told is not None:
        raise FormatError(path, None, told)


def _stand_in(head: bytes, size: int, *, is_text: bool) -> str | None:
    if not size and not is_text:
        return "an empty file: its download has not started, or was lost"
    if _LFS.match(head):
        told = _LFS_SIZE.search(head)
        of = f" to {int(told[1]):,} bytes" if told else ""
        return f"a pointer of Git LFS{of}, not the file: run `git lfs pull` there, or download it"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start[:16].lower().startswith(_PAGE):
        return (
            "a web page, not the file: its address was wrong, or wants a login; download it again"
        )
    if is_text or not start or size > len(head) or b"{" in start:
        return None
    words = start.decode(errors="surrogateescape").strip()
    if not words.isprintable():  # more than one line, or no text
        return None
    return f"a text, not the file: {shown(words)}; download it again"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FormatError if the file holds anything else."""
    raw = read_small(path, MAX_JSON_BYTES)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FormatError(path, None, "JSON in UTF-16; save it as UTF-8")
    try:
        value = parse_json(path, raw.removeprefix(codecs.BOM_UTF8))
    except FormatError:
        check_downloaded(path)
        raise
    if not isinstance(value, dict):
        raise FormatError(path, None, "not a JSON object")
    return value


def parse_json(
    path: object,
    raw: bytes | str,
    *,
    offset: int | None = None,
    what: str = "",
    limit: int = MAX_JSON_VALUES,
    **hooks: Any,
) -> Any:
    """Parse JSON (UTF-8) of at most `limit` values. Raises FormatError, of `path` at `offset`.

    `what` comes before "not valid JSON" in the message, `hooks` go to json.loads.
    """
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        if sum(map(text.count, ",[{")) > limit:
            raise FormatError(path, offset, f"{what}JSON of more than {limit:,} values")
        return json.loads(text, **hooks)
    except (ValueError, RecursionError):  # bad UTF-8 and integers without end are ValueErrors too
        raise FormatError(path, offset, f"{what}not valid JSON") from None
