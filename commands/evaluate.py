"""The command `evaluate`: perplexity and divergence of artifacts beside their source."""

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
from weightcast.commands.text.evaluate import evaluation_lines
from weightcast.errors import RequestError
from weightcast.evaluation.api import estimate_run
from weightcast.evaluation.api import evaluate as run
from weightcast.evaluation.report import json_values, report_of


@click.command(
    cls=Command,
    examples=(
        "weightcast evaluate grok-1 grok-1-Q4_K_M.gguf grok-1-int4-g128/ --text test.txt",
        "weightcast evaluate grok-1 --text test.txt --save-base grok-1.kld",
        "weightcast evaluate grok-1-Q4_K_M.gguf --base grok-1.kld",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("artifacts", metavar="[ARTIFACT]...", type=PATH, nargs=-1)
@listed_option(
    "--text",
    section="source",
    type=PATH,
    metavar="FILE",
    help="What to run the models over: UTF-8, or token ids in a .npy.",
)
@options.spec
@text_options
@listed_option(
    "--base",
    section="source",
    type=PATH,
    metavar="FILE",
    help="Compare with a KL base file of llama-perplexity, over its tokens.",
)
@dry_run
@listed_option(
    "--save-base",
    section="output",
    type=PATH,
    metavar="FILE",
    help="Write what SRC predicts as a KL base file, which llama-perplexity reads.",
)
@listed_option(
    "--isolate",
    "isolated",
    section="precision",
    is_flag=True,
    help="Measure the effect of each layer alone, too.",
)
@settings_options
@listed_option(
    "--report",
    section="reporting",
    type=PATH,
    metavar="FILE",
    help="Write the evaluation: FILE.json, .html (a page) or .md (a summary).",
)
@options.all_tensors
@options.quiet
@options.as_json
def evaluate(
    source: Path,
    artifacts: tuple[Path, ...],
    text: Path | None,
    spec: Path | None,
    base: Path | None,
    dry_run: bool,
    save_base: Path | None,
    isolated: bool,
    report: Path | None,
    all_tensors: bool,
    resume: bool,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure what artifacts lose: run SRC and each ARTIFACT over a text, and compare.

    All of them run layer by layer in one pass, so that none need fit into memory. Printed are
    perplexity, the divergence of predictions (KL) and what else llama-perplexity prints, and
    errors by layer. Only weights differ: llama.cpp also rounds activations.
    """
    if text is None and base is None:
        raise RequestError("give a text (--text FILE), or a KL base file (--base FILE)")
    if text is not None and base is not None:
        raise RequestError("--base has tokens of its own: leave --text out")
    if dry_run:
        if text is None:
            raise RequestError("--dry-run estimates runs over a text (--text FILE)")
        asked_for = text_of(text, **asked), settings_of(**asked)
        with progress(quiet=quiet or as_json):
            told = estimate_run(source, artifacts, *asked_for, spec=spec, isolated=isolated)
        show_estimate(*told, quiet=quiet, as_json=as_json)
        return
    with (
        progress(quiet=quiet or as_json) as shown,
        telling_what_is_kept(
            report or save_base if base is None else None, shown, resume=resume
        ) as on_progress,
    ):
        found = run(
            source,
            artifacts,
            None if text is None else text_of(text, **asked),
            settings_of(**asked),
            spec=spec,
            isolated=isolated,
            base=base,
            save_base=save_base,
            report=report,
            resume=resume,
            on_progress=on_progress,
        )
    values = report_of(found)
    if as_json:
        print_json(json_values(values), "evaluation")
    elif not quiet:
        print_lines(evaluation_lines(values, everything=all_tensors))
