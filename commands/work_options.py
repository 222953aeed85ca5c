"""Click options of commands that read weights; those of `convert` are rows of `ConvertOptions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from weightcast.commands.options import PATH, Decorated, listed_option
from weightcast.converters.plan import MAX_WORKERS
from weightcast.converters.report import BASELINES
from weightcast.converters.sources import ConvertOptions, Group, Kind, Row

WORKERS: Final = click.IntRange(1, MAX_WORKERS)
BASELINE: Final = click.Choice(list(BASELINES))

_TYPES: Final[dict[Kind, Any]] = {
    "text": str,
    "texts": str,
    "size": str,
    "input": PATH,
    "model": PATH,
    "report": PATH,
    "workers": WORKERS,
    "baseline": BASELINE,
}


def convert_options(
    declared: type[ConvertOptions], *groups: Group
) -> Callable[[Decorated], Decorated]:
    """Declare the options of some groups, or of all, in the order of their rows."""

    def decorate(command: Decorated) -> Decorated:
        for row in reversed(declared.rows()):  # the decorator that comes last is shown first
            if not groups or row.option.group in groups:
                command = _click_option(row)(command)
        return command

    return decorate


def _click_option(row: Row) -> Callable[[Decorated], Decorated]:
    said = row.option
    settings: dict[str, Any] = {"help": said.help, "metavar": said.metavar}
    if said.kind == "flag":
        settings["is_flag"] = True
    else:
        settings["type"] = _TYPES[said.kind]
        settings["multiple"] = said.kind == "texts"
    if row.default:
        settings.update(default=row.default, show_default=said.shows_default)
    flags = (said.flag,) if said.short is None else (said.short, said.flag)
    return listed_option(*flags, row.name, section=said.group, **settings)


fail_over = listed_option(
    "--fail-over",
    "limits",
    section="reporting",
    metavar="[KIND:]METRIC=LIMIT",
    multiple=True,
    help="Exit with 3 if a tensor is beyond: relative_rms=0.1, attn_q:sqnr_db=30, ...",
)
report = listed_option(
    "--report",
    section="reporting",
    type=PATH,
    metavar="FILE",
    help="Write the errors: FILE.json, .html (a page) or .md (a summary).",
)
jobs = listed_option(
    "-j",
    "--jobs",
    section="running",
    type=WORKERS,
    metavar="N",
    help="Workers (default: cores + 1).",
)
