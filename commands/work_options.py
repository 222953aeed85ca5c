"""Click options of commands that read weights; those of `convert` are rows of `ConvertOptions`."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Final

import click

from weightcast.commands.options import PATH, Decorated, listed_option
from weightcast.converters.plan import MAX_WORKERS
from weightcast.converters.report import BASELINES
from weightcast.converters.sources import ConvertOptions, Group, Kind, Row
from weightcast.quant.search import EFFORTS, SEARCHES

WORKERS: Final = click.IntRange(1, MAX_WORKERS)
BASELINE: Final = click.Choice(list(BASELINES))

_TYPES: Final[dict[Kind, Any]] = {
    "text": str,
    "texts": str,
    "size": str,
    "share": str,
    "number": str,
    "input": PATH,
    "model": PATH,
    "report": PATH,
    "workers": WORKERS,
    "baseline": BASELINE,
    "layers": str,
    "search": click.Choice(SEARCHES),
    "effort": click.Choice(list(map(str, EFFORTS))),
}


def convert_options(
    declared: type[ConvertOptions], *groups: Group, names: Container[str] = ()
) -> Callable[[Decorated], Decorated]:
    """Declare the options of some groups, some by their names, or all, in the order of rows."""

    def decorate(command: Decorated) -> Decorated:
        for row in reversed(declared.rows()):  # the decorator that comes last is shown first
            if not (groups or names) or row.option.group in groups or row.name in names:
                command = _click_option(row)(command)
        return command

    return decorate


def _listed_layers(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> str | None:
    """Put lists of layers together, as llama-quantize takes them; None if there is none."""
    return ",".join(given) if given else None


def _as_number(_ctx: click.Context, _param: click.Parameter, given: str | None) -> int | None:
    return None if given is None else int(given)


def _click_option(row: Row) -> Callable[[Decorated], Decorated]:
    said = row.option
    settings: dict[str, Any] = {"help": said.help, "metavar": said.metavar}
    if said.kind == "flag":
        settings["is_flag"] = True
    else:
        settings["type"] = _TYPES[said.kind]
        settings["multiple"] = said.kind in ("texts", "layers")
    if said.kind == "layers":
        settings["callback"] = _listed_layers
    if said.kind == "effort":
        settings["callback"] = _as_number
    if row.default:
        settings.update(default=row.default, show_default=said.shows_default)
    flags = (said.flag,) if said.short is None else (said.short, said.flag)
    return listed_option(*flags, row.name, section=said.group, **settings)


dry_run = listed_option(
    "-n",
    "--dry-run",
    section="output",
    is_flag=True,
    help="Print exact sizes, memory and time; write nothing.",
)
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
# As convert was given them, for commands that hold its outputs against their sources.
include_weights = listed_option(
    "--include-weights",
    section="source",
    metavar="NAME",
    multiple=True,
    help="As it was given to convert.",
)
exclude_weights = listed_option(
    "--exclude-weights",
    section="source",
    metavar="NAME",
    multiple=True,
    help="As it was given to convert.",
)
importance_floor = listed_option(
    "--importance-floor",
    section="source",
    metavar="SHARE",
    help="As it was given to convert.",
)
override_kv = listed_option(
    "--override-kv",
    section="source",
    metavar="KEY=TYPE:VALUE",
    multiple=True,
    help="As it was given to convert.",
)
prune_layers = listed_option(
    "--prune-layers",
    section="source",
    metavar="N,...",
    multiple=True,
    callback=_listed_layers,
    help="Layers of the source that were left out, as given to convert.",
)
jobs = listed_option(
    "-j",
    "--jobs",
    section="running",
    type=WORKERS,
    metavar="N",
    help="Workers (default: cores + 1).",
)
