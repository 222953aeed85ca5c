"""Click options: those of `convert` are made from `ConvertOptions`, others are shared.

Help pages list options by section. `Command` and `Option` know their sections and examples.
"""

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
    "size": str,
    "input": PATH,
    "report": PATH,
    "workers": WORKERS,
    "baseline": BASELINE,
}

# Sections of help, in order; options without one come last.
SECTIONS: Final[dict[Group, str]] = {
    "output": "What to write",
    "source": "Source",
    "precision": "Precision",
    "running": "Running",
    "reporting": "Reporting",
}
# Options of llama.cpp's programs by which people ask for the same.
_ELSEWHERE: Final = {
    "--outtype": "--type",
    "--outfile": "OUT, after SRC",
    "--output": "OUT, after SRC",
    "-o": "OUT, after SRC",
    "--model": "SRC",
    "-m": "SRC",
    "--threads": "--jobs",
    "--nthread": "--jobs",
    "--split-max-size": "--split",
    "--vocab-dir": "--tokenizer",
    "--token-embedding-type": "--tensor-type '^token_embd=TYPE'",
    "--output-tensor-type": "--tensor-type '^output=TYPE'",
    "--leave-output-tensor": "--tensor-type '^output=F16'",
    "--keep-split": "--split SIZE",
    "--overwrite": "nothing: outputs are replaced when the new ones are complete",
    "--force": "nothing: outputs are replaced when the new ones are complete",
    "--output-dir": "the folder in OUT",
}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Option(click.Option):
    """An option that is listed in a section of its command's help."""

    def __init__(self, *arguments: Any, section: Group, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class Command(click.Command):
    """A command whose help lists options by section, and ends in examples."""

    def __init__(self, *arguments: Any, examples: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that have options, then the rest."""
        options = [p for p in self.params if isinstance(p, click.Option)]
        listed = [(getattr(p, "section", None), p.get_help_record(ctx)) for p in options]
        listed.append((None, ("-h, --help", "Show this page.")))
        for section, title in (*SECTIONS.items(), (None, "Help")):
            rows = [row for of, row in listed if of == section and row is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each in a line of its own, to be copied."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{example}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; say how options of llama.cpp's programs are called here."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            called = _ELSEWHERE.get(error.option_name)
            if called is None:
                raise
            message = f"No such option '{error.option_name}'; here it is {called}."
            raise click.UsageError(message, ctx) from None


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
    return option(*flags, row.name, section=said.group, **settings)


def option(*names: str, section: Group, **settings: Any) -> Callable[[Decorated], Decorated]:
    """Declare an option of a section."""
    return click.option(*names, cls=Option, section=section, **settings)


fail_over = option(
    "--fail-over",
    "limits",
    section="reporting",
    metavar="[KIND:]METRIC=LIMIT",
    multiple=True,
    help="Exit with 3 if a tensor is beyond: relative_rms=0.1, attn_q:sqnr_db=30, ...",
)
spec = option(
    "--spec",
    section="source",
    type=PATH,
    metavar="FILE",
    help="JSON file of hyperparameters (keys as in spec.json).",
)
report = option(
    "--report",
    section="reporting",
    type=PATH,
    metavar="FILE",
    help="Write the errors: FILE.json, .html (a page) or .md (a summary).",
)
all_tensors = option(
    "-v",
    "--verbose",
    "--all",
    "all_tensors",
    section="reporting",
    is_flag=True,
    help="Show everything: a line for each tensor.",
)
jobs = option(
    "-j",
    "--jobs",
    section="running",
    type=WORKERS,
    metavar="N",
    help="Workers (default: cores + 1).",
)
quiet = option("-q", "--quiet", section="reporting", is_flag=True, help="Print errors only.")
as_json = option(
    "--json", "as_json", section="reporting", is_flag=True, help="Print the result as JSON."
)
