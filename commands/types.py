"""The command `types`: list what outputs can hold."""

from __future__ import annotations

import click

from weightcast.commands.options import Command, all_tensors, as_json
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.text.types import type_lines, type_values
from weightcast.converters.targets.catalog import types as list_types


@click.command(
    cls=Command,
    examples=("weightcast types", "weightcast types --all", "weightcast types --json"),
)
@all_tensors
@as_json
def types(all_tensors: bool, as_json: bool) -> None:
    """List the types that outputs can have: bits per weight, importance matrix, runtimes.

    The name of an output ends in its type. Bits per weight are those of the type itself, and what
    a weight of Grok-1 takes on average, as some tensors get another type.
    """
    found = list_types()
    if as_json:
        print_json(type_values(found))
    else:
        print_lines(type_lines(found, all_types=all_tensors))
