"""The command `report`: show error reports as a page or a summary."""

from __future__ import annotations

from pathlib import Path

import click

from weightcast.commands.options import PATH, Command
from weightcast.commands.printing import print_lines
from weightcast.converters.report.show import show_reports
from weightcast.errors import RequestError


@click.command(
    cls=Command,
    examples=(
        "weightcast report errors.json errors.html",
        "weightcast report q4.json q6.json both.html",
        'weightcast report errors.json - >> "$GITHUB_STEP_SUMMARY"',
    ),
)
@click.argument("paths", metavar="REPORT.json... OUT", type=PATH, nargs=-1, required=True)
def report(paths: tuple[Path, ...]) -> None:
    """Show error reports of conversions: as a page, OUT.html, or as a summary, OUT.md.

    Both begin with a verdict: what each output keeps, its worst tensor, and options of convert that
    would make it better. The page is one file that works offline; several reports and outputs are
    compared in it. The summary is Markdown for a pull request or a CI job; - prints it.
    """
    *reports, out = paths
    if not reports:
        raise RequestError(
            f"name what to write after {out}: OUT.html for a page, OUT.md for a summary, or - to "
            "print that"
        )
    print_lines(show_reports(reports, out))
