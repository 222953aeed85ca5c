"""Verifying on the command line: progress, reports as files, samples as text."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from weightcast.converters.progress import progress
from weightcast.converters.verification import Verification
from weightcast.converters.verify import verify
from weightcast.formats.small_files import shown
from weightcast.quant.errors import OutputError, RequestError


def verify_with_progress(
    artifact: Path,
    source: Path | None,
    *,
    report: Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Verification:
    """Do as `verify` does, show progress, and write the errors to a file if one is named."""
    if report is not None and source is None:
        raise RequestError("report: of use with a source only")
    if report is not None and not report.parent.is_dir():
        raise OutputError(f"{report.parent}: no such directory; create it first")
    with contextlib.ExitStack() as shown:
        found = verify(
            artifact,
            source,
            on_start=lambda total: shown.enter_context(progress(total, quiet=quiet)),
            **options,
        )
    if report is not None and found.report is not None:
        _write(report, (json.dumps(found.report, indent=1) + "\n").encode())
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears when it is whole. Raises OutputError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as problem:
        raise OutputError(f"{path}: cannot be written: {problem.strerror}") from None


def parse_sample(text: str) -> int | float:
    """Read a number of rows, or a share such as 0.01 or 1%. Raises RequestError."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / 100 if percent else float(number)
    except ValueError:
        value = 0.0
    if percent or 0 < value < 1:
        if not 0 < value < 1:
            raise RequestError(f"a sample of {shown(text)}: a share is above 0 and below 1")
        return value
    if not number.isascii() or not number.isdecimal() or value < 1:
        raise RequestError(
            f"a sample of {shown(text)}: give a number of rows, or a share such as 0.01"
        )
    return int(number)
