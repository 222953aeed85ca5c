"""The command `inspect`: show what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from weightcast.commands.options import PATH, Command, all_tensors, as_json, spec
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.progress import progress
from weightcast.commands.text.graph import graph_lines, graph_values
from weightcast.converters.sources import open_to_inspect


@click.command(
    cls=Command,
    examples=(
        "weightcast inspect grok-1",
        "weightcast inspect model-Q4_K_M.gguf --all",
        "weightcast inspect grok-1-bf16/ --json",
    ),
)
@click.argument("path", type=PATH)
@spec
@all_tensors
@as_json
def inspect(path: Path, spec: Path | None, all_tensors: bool, as_json: bool) -> None:
    """Show what is in a checkpoint: hyperparameters, tensors, shapes, sizes. Reads no weights."""
    with progress(quiet=as_json):
        graph, notes = open_to_inspect(path, spec)
    if as_json:
        print_json(graph_values(graph, notes))
    else:
        print_lines(graph_lines(graph, notes, all_tensors=all_tensors))
