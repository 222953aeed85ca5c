"""Verifying on the command line: progress, reports as files, samples as text."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from weightcast.commands.progress import progress
from weightcast.converters.output.overwrite import check_small_target
from weightcast.converters.report import write_report
from weightcast.converters.verify.result import Verification
from weightcast.converters.verify.verifier import verify
from weightcast.errors import RequestError
from weightcast.text import shown


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
    if report is not None:
        named = (artifact, source, options.get("spec"), options.get("imatrix"))
        check_small_target(report, [Path(path) for path in named if path is not None])
    with contextlib.ExitStack() as shown:
        found = verify(
            artifact,
            source,
            on_start=lambda total: shown.enter_context(progress(total, quiet=quiet)),
            **options,
        )
    if report is not None and found.errors is not None:
        write_report(report, found.errors)
    return found


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
