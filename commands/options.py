"""Click options: those of `convert` are made from `ConvertOptions`, others are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from weightcast.converters.plan import MAX_WORKERS
from weightcast.converters.report import BASELINES
from weightcast.converters.sources import ConvertOptions, Group, Kind, Row

# An unreadable file is bad input, as an absent one is; click's own check would call it wrong usage.
PATH: Final = click.Path(path_type=Path, readable=False)
WORKERS: Final = click.IntRange(1, MAX_WORKERS)
BASELINE: Final = click.Choice(list(BASELINES))

_TYPES: Final[dict[Kind, Any]] = {
    "text": str,
    "texts": str,
    "input": PATH,
    "report": PATH,
    "workers": WORKERS,
    "baseline": BASELINE,
}

Command = TypeVar("Command", bound=Callable[..., Any])


def convert_options(declared: type[ConvertOptions], *groups: Group) -> Callable[[Command], Command]:
    """Declare the options of some groups, in the order of their rows."""

    def decorate(command: Command) -> Command:
        for row in reversed(declared.rows()):  # the decorator that comes last is shown first
            if row.option.group in groups:
                command = _click_option(row)(command)
        return command

    return decorate


def _click_option(row: Row) -> Callable[[Command], Command]:
    said = row.option
    settings: dict[str, Any] = {"help": said.help, "metavar": said.metavar}
    if said.kind == "flag":
        settings["is_flag"] = True
    else:
        settings["type"] = _TYPES[said.kind]
        settings["multiple"] = said.kind == "texts"
    if row.default:
        settings.update(default=row.default, show_default=said.shows_default)
    return click.option(said.flag, row.name, **settings)


fail_over = click.option(
    "--fail-over",
    "limits",
    metavar="[KIND:]METRIC=LIMIT",
    multiple=True,
    help="Exit with 1 if a tensor is beyond: relative_rms=0.1, attn_q:sqnr_db=30, ...",
)
spec = click.option(
    "--spec", type=PATH, help="JSON file of hyperparameters (keys as in spec.json)."
)
all_tensors = click.option("--all", "all_tensors", is_flag=True, help="A line for each tensor.")
jobs = click.option("--jobs", type=WORKERS, help="Workers (default: cores + 1).")
quiet = click.option("--quiet", is_flag=True, help="Print errors only.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
