"""The command `imatrix`: make an importance matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightcast.commands import options
from weightcast.commands.evaluation_options import (
    dry_run,
    settings_of,
    settings_options,
    show_estimate,
    telling_what_is_kept,
    text_of,
    text_options,
)
from weightcast.commands.options import PATH, Command, listed_option
from weightcast.commands.printing import print_json, print_lines
from weightcast.commands.progress import progress
from weightcast.commands.text.imatrix import imatrix_lines, imatrix_values, statistics_lines
from weightcast.errors import RequestError
from weightcast.evaluation.api import estimate_run, merge_imatrices
from weightcast.evaluation.api import imatrix as make


@click.command(
    cls=Command,
    examples=(
        "weightcast imatrix grok-1 calibration.txt -o imatrix.gguf",
        "weightcast imatrix model-BF16.gguf test.txt -o more.gguf --chunks 100",
        "weightcast imatrix --merge imatrix.gguf --merge more.gguf -o all.gguf",
        "weightcast imatrix --merge imatrix.gguf --show-statistics",
    ),
)
@click.argument("source", metavar="[SRC", type=PATH, required=False)
@click.argument("text", metavar="TEXT]", type=PATH, required=False)
@listed_option(
    "-o",
    "--output",
    section="output",
    type=PATH,
    metavar="FILE",
    help="The file to write: llama-imatrix's GGUF, or, named .dat, its older format.",
)
@dry_run
@listed_option(
    "--merge",
    section="source",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Add the sums of another importance matrix; any number.",
)
@options.spec
@text_options
@settings_options
@listed_option(
    "--no-ppl",
    "no_perplexity",
    section="reporting",
    is_flag=True,
    help="Leave the perplexity out, which costs a run of the head.",
)
@listed_option(
    "--show-statistics",
    section="reporting",
    is_flag=True,
    help="Print llama-imatrix's statistics, and how many tokens experts saw.",
)
@options.quiet
@options.as_json
def imatrix(
    source: Path | None,
    text: Path | None,
    output: Path | None,
    dry_run: bool,
    merge: tuple[Path, ...],
    spec: Path | None,
    no_perplexity: bool,
    show_statistics: bool,
    resume: bool,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Make an importance matrix: run SRC over TEXT, as llama-imatrix does.

    It runs layer by layer, so that the model need not fit into memory. SRC is anything that
    weightcast reads; TEXT is UTF-8, or token ids in a .npy. An interrupted run goes on where it
    was.
    """
    if text is None and (source is not None or not merge):
        raise RequestError("give a model and a text (SRC TEXT), or importance matrices (--merge)")
    if dry_run and source is not None and text is not None:
        with progress(quiet=quiet or as_json):
            found = estimate_run(
                source, [], text_of(text, **asked), settings_of(**asked), spec=spec
            )
        show_estimate(*found, quiet=quiet, as_json=as_json)
        return
    if output is None and not show_statistics:
        raise RequestError("name the file to write (-o FILE), or ask for --show-statistics")
    with (
        progress(quiet=quiet or as_json) as shown,
        telling_what_is_kept(output, shown, resume=resume) as on_progress,
    ):
        if source is None or text is None:
            sums, losses = merge_imatrices(merge, output), None
        else:
            sums, losses = make(
                source,
                text_of(text, **asked),
                output,
                settings_of(**asked),
                spec=spec,
                merge=merge,
                scores=not no_perplexity,
                resume=resume,
                on_progress=on_progress,
            )
    if as_json:
        print_json(imatrix_values(sums, losses, output))
    elif not quiet:
        print_lines(imatrix_lines(sums, losses, output))
        if show_statistics:
            print_lines(statistics_lines(sums))
