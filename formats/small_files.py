"""Reading small files whole: configurations, indexes, tokenizers; bounded, regular files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from weightcast.quant.errors import CheckpointError, FormatError

MAX_JSON_BYTES: Final = 1 << 26
_MAX_SHOWN = 100


def read_small(path: Path, limit_bytes: int) -> bytes:
    """Read a file of at most `limit_bytes`. Raises CheckpointError for pipes, devices and more."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, or not a regular one")
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    if len(raw) > limit_bytes:
        raise FormatError(
            path, limit_bytes, f"larger than {limit_bytes:,} bytes, which is too much"
        )
    return raw


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FormatError if the file holds anything else."""
    try:
        value = json.loads(read_small(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        raise FormatError(path, None, "not valid JSON") from None
    if not isinstance(value, dict):
        raise FormatError(path, None, "not a JSON object")
    return value


def shown(value: object) -> str:
    """Show a value from a file in a message: one line, printable, not long."""
    text = " ".join(ascii(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
