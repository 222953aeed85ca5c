"""The command `sensitivity`: measure what the type of each tensor costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightcast.commands import options
from weightcast.commands.evaluation_options import (
    settings_of,
    settings_options,
    telling_what_is_kept,
    text_of,
    text_options,
)
from weightcast.commands.options import PATH, Command, listed_option
from weightcast.commands.printing import print_lines
from weightcast.commands.progress import progress
from weightcast.converters.recipes.sensitivity import sensitivity_text
from weightcast.evaluation.api import USUAL_TYPES
from weightcast.evaluation.api import sensitivity as measure
from weightcast.quant.search import EFFORTS, SEARCHES, parse_search
from weightcast.text import count


@click.command(
    cls=Command,
    examples=(
        "weightcast sensitivity grok-1 calibration.txt -o costs.json --chunks 4",
        "weightcast convert grok-1 grok-1.gguf --sensitivity costs.json --target-size 120G",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("text", metavar="TEXT", type=PATH)
@listed_option(
    "-o",
    "--output",
    section="output",
    type=PATH,
    required=True,
    metavar="FILE",
    help="The file to write, which convert takes as --sensitivity.",
)
@options.spec
@text_options
@listed_option(
    "--types",
    section="precision",
    metavar="TYPE,...",
    default=",".join(USUAL_TYPES),
    help="What to measure (default: a type or two of each size).",
)
@listed_option(
    "--probe",
    section="precision",
    metavar="TYPE",
    help="Judge each tensor in this type by the model's predictions, too (slow).",
)
@listed_option(
    "--imatrix",
    section="precision",
    type=PATH,
    metavar="FILE",
    help="Quantize with this importance matrix; some types need one.",
)
@listed_option(
    "--search",
    section="precision",
    type=click.Choice(SEARCHES),
    default=SEARCHES[0],
    show_default=True,
    help="How scales are chosen, as in convert.",
)
@listed_option(
    "--effort",
    section="precision",
    type=click.Choice(list(map(str, EFFORTS))),
    help="How long least-error searches, as in convert.",
)
@settings_options
@options.quiet
@options.as_json
def sensitivity(
    source: Path,
    text: Path,
    output: Path,
    spec: Path | None,
    types: str,
    probe: str | None,
    imatrix: Path | None,
    search: str,
    effort: str | None,
    resume: bool,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure what each type costs each tensor of SRC, with real activations.

    The cost is how far a tensor alone in that type moves what its layer gives for TEXT. `convert`
    chooses types by it under --target-size, --target-bpw or --max-kl.
    """
    with (
        progress(quiet=quiet or as_json) as shown,
        telling_what_is_kept(output, shown, resume=resume) as on_progress,
    ):
        found = measure(
            source,
            text_of(text, **asked),
            output,
            settings_of(**asked),
            spec=spec,
            types=[name.strip() for name in types.split(",")],
            imatrix=imatrix,
            search=parse_search(search, None if effort is None else int(effort)),
            probe=probe,
            resume=resume,
            on_progress=on_progress,
        )
    if as_json:
        print_lines(sensitivity_text(found).splitlines())
    elif not quiet:
        tensors = count(len(found.tensors), "tensor")
        print_lines([f"{output}: {tensors} in {count(len(found.types), 'type')}"])
