"""Print results to stdout and notes to stderr; control characters in names are escaped."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from weightcast.errors import visible

if TYPE_CHECKING:
    from weightcast.converters.report import Violation

# What lines begin with, and how that is shown. A verdict is a line of its own.
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "error": {"fg": "red", "bold": True},
    "usage error": {"fg": "red", "bold": True},
    "problem": {"fg": "red", "bold": True},
    "beyond a limit": {"fg": "red", "bold": True},
    "interrupted": {"fg": "yellow", "bold": True},
    "warning": {"fg": "yellow", "bold": True},
    "not checked": {"fg": "yellow"},
    "note": {"fg": "cyan"},
    "checked": {"fg": "green"},
}
ERASE_LINE: Final = "\r\x1b[K"
# Lines of one kind that are printed; JSON has all.
_MOST_ALIKE: Final = 10
_LABEL: Final = re.compile(rf"({'|'.join(_STYLES)})(?=:)")
_VERDICTS: Final[tuple[tuple[re.Pattern[str], dict[str, Any]], ...]] = (
    (re.compile("good"), {"fg": "green", "bold": True}),
    (re.compile(r"[\d,]+ problems?"), {"fg": "red", "bold": True}),
)


def on_terminal() -> bool:
    """Tell whether stderr is a terminal on which a line can change."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def wants_color(stream: TextIO) -> bool:
    """Tell whether to colour what goes to a stream: on terminals, unless the user says otherwise.

    NO_COLOR comes first (https://no-color.org), then FORCE_COLOR and CLICOLOR_FORCE, then CLICOLOR
    (http://bixense.com/clicolors).
    """
    said = os.environ.get
    if said("NO_COLOR"):
        return False
    if said("FORCE_COLOR", "0") not in ("", "0") or said("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if said("FORCE_COLOR") == "0" or said("CLICOLOR") == "0" or said("TERM") == "dumb":
        return False
    return stream.isatty()


def styled(line: str) -> str:
    """Colour what a line begins with if that says what it is, or all of it if it is a verdict."""
    for pattern, style in _VERDICTS:
        if pattern.fullmatch(line):
            return click.style(line, **style)
    label = _LABEL.match(line)
    if label is None:
        return line
    return click.style(label[1], **_STYLES[label[1]]) + line[label.end() :]


def _echo(line: str, stream: TextIO) -> None:
    line = visible(line)
    color = wants_color(stream)
    click.echo(styled(line) if color else line, file=stream, color=color)


# What kept results from being printed; `main` says so, and fails if nothing else did.
unprinted: Final[list[OSError]] = []


def print_lines(lines: Iterable[str]) -> None:
    """Print results; a reader that has enough of them (head, less) is no failure."""
    made = iter(lines)
    while (line := next(made, None)) is not None:  # what makes them may raise OSError, too
        try:
            _echo(line, sys.stdout)
        except OSError as problem:
            _give_up(problem)
            return
    try:
        sys.stdout.flush()
    except OSError as problem:
        _give_up(problem)


def _give_up(problem: OSError) -> None:
    """Let what else is printed lead nowhere."""
    if not isinstance(problem, BrokenPipeError):
        unprinted.append(problem)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(values: Mapping[str, Any], form: str | None = None) -> None:
    """Print a result as JSON: first its format, which is named after the command, and version."""
    name = form or click.get_current_context().command.name
    named = {"format": f"weightcast.{name}", "version": 1}
    rest = {key: value for key, value in values.items() if key not in named}
    print_lines(json.dumps(named | rest, indent=1).split("\n"))


def tell(*lines: str) -> None:
    """Print notes to stderr, so that results can be redirected."""
    with contextlib.suppress(OSError):  # nobody reads it, and that changes no result
        for line in lines:
            _echo(line, sys.stderr)


def violation_lines(violations: Sequence[Violation]) -> Iterator[str]:
    """Name what is beyond a limit of --fail-over, the first few of many."""
    for violation in violations[:_MOST_ALIKE]:
        yield f"beyond a limit: {violation.text}"
    if len(violations) > _MOST_ALIKE:
        more = f"{len(violations) - _MOST_ALIKE:,} more"
        yield f"beyond a limit: and {more}; --report and --json have all of them"


def violation_values(violations: Iterable[Violation]) -> list[dict[str, Any]]:
    """Describe what is beyond a limit as JSON values; a value that is not finite is null."""
    return [
        {
            "output": each.output,
            "name": each.name,
            "metric": each.limit.metric,
            "value": each.value if math.isfinite(each.value) else None,
            "limit": each.limit.limit,
        }
        for each in violations
    ]
