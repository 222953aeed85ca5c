"""Print results to stdout and notes to stderr; control characters in names are escaped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from weightcast.errors import visible

if TYPE_CHECKING:
    from weightcast.converters.report import Violation


def print_lines(lines: Iterable[str]) -> None:
    """Print results; a reader that has enough of them (head, less) is no failure."""
    try:
        for line in lines:
            click.echo(visible(line))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(values: Any) -> None:
    """Print a result as JSON."""
    print_lines(json.dumps(values, indent=1).split("\n"))


def tell(*lines: str) -> None:
    """Print notes to stderr, so that results can be redirected."""
    for line in lines:
        click.echo(visible(line), err=True)


def tell_violations(violations: Sequence[Violation]) -> None:
    """Name what is beyond a limit of --fail-over."""
    tell(*(f"beyond a limit: {violation.text}" for violation in violations))
