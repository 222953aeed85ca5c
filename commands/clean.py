"""The command `clean`: list and remove what interrupted runs left."""

from __future__ import annotations

from pathlib import Path

import click

from weightcast.commands.options import PATH, Command, as_json, listed_option, quiet
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.text.clean import clean_lines
from weightcast.converters.output import clean as clean_paths


@click.command(
    cls=Command,
    examples=(
        "weightcast clean grok-1-Q4_K_M.gguf",
        "weightcast clean --dry-run out/",
    ),
)
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@listed_option(
    "-n",
    "--dry-run",
    section="running",
    is_flag=True,
    help="List what would be removed, and remove nothing.",
)
@quiet
@as_json
def clean(paths: tuple[Path, ...], dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Remove what interrupted runs left of outputs.

    PATH is an output, or a folder in which outputs lie. Unfinished outputs, journals, states, and
    files of bundles and reports that were being written are listed and removed. Complete outputs
    stay, and so does what a run is writing now.
    """
    found = clean_paths(paths, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "left": [each.describe() for each in found]})
    elif not quiet:
        print_lines(clean_lines(found, dry_run=dry_run))
