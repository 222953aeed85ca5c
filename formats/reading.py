"""Reading small files whole: configurations, indexes, tokenizers; bounded, regular files.

Bounded in memory too: Python takes 64 bytes and more for what is three in JSON, so the values of a
text are counted before it is parsed.
"""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any, Final

from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.foreign import refuse_foreign, require_file

MAX_JSON_BYTES: Final = 1 << 26
# A tokenizer.json with a vocabulary of 262,144 has two millions; they take 0.3 GB at most.
MAX_JSON_VALUES: Final = 1 << 22
_CHUNK_BYTES: Final = 1 << 16


def read_small(path: Path, limit_bytes: int, wanted: str | None = None) -> bytes:
    """Read a file of at most `limit_bytes`. Raises CheckpointError for pipes, devices and more.

    `wanted` says in messages what a file was to be that is too large; see refuse_foreign.
    """
    require_file(path, wanted)
    try:
        with path.open("rb") as file:
            # Never all that may be read: room for it would be made before it is.
            raw = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
            while len(raw) <= limit_bytes and (more := file.read(_CHUNK_BYTES)):
                raw += more
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    if len(raw) > limit_bytes:
        if wanted is not None:
            refuse_foreign(path, wanted)
        raise FormatError(
            path, limit_bytes, f"larger than {limit_bytes:,} bytes, which is too much"
        )
    return raw


def read_json_object(path: Path, wanted: str = "json") -> dict[str, Any]:
    """Read a JSON object. Raises FormatError if the file holds anything else.

    `wanted` says in messages what it was to be; see refuse_foreign.
    """
    raw = read_small(path, MAX_JSON_BYTES, wanted)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FormatError(path, None, "JSON in UTF-16; save it as UTF-8")
    try:
        value = parse_json(path, raw.removeprefix(codecs.BOM_UTF8))
    except FormatError:
        refuse_foreign(path, wanted)
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
