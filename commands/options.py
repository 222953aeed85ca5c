"""Click options that commands share, and help pages that list options by section.

Nothing is imported here that `inspect` does not need: `work_options` has those of commands that
read weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from weightcast.converters.sources.options import Group


class _Path(click.Path):
    """A path that is not empty: "" would stand for the folder in which the command runs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


# An unreadable file is bad input, as an absent one is; click's own check would call it wrong usage.
PATH: Final = _Path(path_type=Path, readable=False)

# Sections of help, in order; options without one come last.
SECTIONS: Final[dict[Group, str]] = {
    "output": "What to write",
    "source": "Source",
    "precision": "Precision",
    "running": "Running",
    "reporting": "Reporting",
}
# Options of llama.cpp's programs by which people ask for the same; of several words those count
# first that the command has.
_ELSEWHERE: Final[dict[str, str | tuple[str, ...]]] = {
    "--outtype": "--type",
    "--outfile": "OUT, after SRC",
    "--output": "OUT, after SRC",
    "-o": "OUT, after SRC",
    "--model": "SRC",
    "-m": "SRC",
    "--threads": "--jobs",
    "--nthread": "--jobs",
    "--max-buffer-size": "--memory",
    "--split-max-size": ("--max-size", "--split", "weightcast split --max-size"),
    "--split-max-tensors": ("--max-tensors", "weightcast split --max-tensors"),
    "--no-tensor-first-split": "weightcast split --no-tensor-first-split",
    "--max-size": ("--split", "weightcast split --max-size"),
    "--max-tensors": "weightcast split --max-tensors",
    "--split": "weightcast split",
    "--merge": "weightcast merge",
    "--vocab-dir": "--tokenizer",
    "--output-dir": "the folder in OUT",
    "--lora-scaled": "--lora PATH=SCALE",
    "--base-model-id": "--base MODEL",
}

# Options that need no counterpart.
_UNNEEDED: Final = {
    **dict.fromkeys(
        ("--overwrite", "--force", "-f", "-y"),
        "outputs are replaced when the new ones are complete",
    ),
    "--delete-splits": "remove the parts when weightcast verify OUT --source SRC says all is there",
}

# What llama-gguf-split is told to do, and what a command of that name does anyway.
_OWN: Final = {
    "--split": "leave it out, --max-size limits the parts",
    "--merge": "leave it out",
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
            said = _UNNEEDED.get(error.option_name)
            if error.option_name in _ELSEWHERE:
                said = f"here it is {self._called(_ELSEWHERE[error.option_name])}"
            if error.option_name == f"--{ctx.info_name}":
                said = _OWN.get(error.option_name, said)
            if said is None:
                raise
            message = f"No such option '{error.option_name}'; {said}."
            raise click.UsageError(message, ctx) from None

    def _called(self, words: str | tuple[str, ...]) -> str:
        """Choose the words for an option that this command has."""
        if isinstance(words, str):
            return words
        own = {flag for param in self.params for flag in param.opts}
        return next((word for word in words if word in own), words[-1])


def listed_option(*names: str, section: Group, **settings: Any) -> Callable[[Decorated], Decorated]:
    """Declare an option of a section."""
    return click.option(*names, cls=Option, section=section, **settings)


spec = listed_option(
    "--spec",
    section="source",
    type=PATH,
    metavar="FILE",
    help="JSON file of hyperparameters (keys as in spec.json).",
)
lora = listed_option(
    "--lora",
    section="source",
    metavar="PATH[=SCALE]",
    multiple=True,
    help="An adapter to merge into the source (A of compare) first; any number.",
)
all_tensors = listed_option(
    "-v",
    "--verbose",
    "--all",
    "all_tensors",
    section="reporting",
    is_flag=True,
    help="Show everything: a line for each tensor.",
)
quiet = listed_option("-q", "--quiet", section="reporting", is_flag=True, help="Print errors only.")
as_json = listed_option(
    "--json", "as_json", section="reporting", is_flag=True, help="Print the result as JSON."
)
