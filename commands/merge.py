"""The command `merge`: put the parts of a split GGUF file together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightcast.commands.conversions import copy
from weightcast.commands.options import PATH, Command, all_tensors, as_json, quiet
from weightcast.commands.work_options import convert_options, dry_run
from weightcast.converters.sources import ConvertOptions
from weightcast.converters.split import first_part, plan_merge
from weightcast.converters.targets.gguf_parts import merged_path
from weightcast.errors import RequestError
from weightcast.formats.split import SPLIT_NAME


@click.command(
    cls=Command,
    examples=(
        "weightcast merge model-BF16-00001-of-00003.gguf model-whole.gguf",
        "weightcast merge model-BF16-*-of-*.gguf model-whole.gguf",
    ),
)
@click.argument("sources", metavar="SRC...", type=PATH, nargs=-1)
@click.argument("output", metavar="OUT", type=str)
@dry_run
@convert_options(ConvertOptions, names=("jobs", "memory", "resume"))
@all_tensors
@quiet
@as_json
def merge(
    sources: tuple[Path, ...],
    output: str,
    dry_run: bool,
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge the parts of a split GGUF file into one, OUT.

    SRC is the first part (or all of them). No byte of a tensor changes, and the file is that of
    llama-gguf-split. `weightcast split` cuts it again.
    """
    if not sources:
        part = SPLIT_NAME.fullmatch(output)
        example = "model.gguf" if part is None else f"{part[1]}.gguf"
        raise RequestError(f"name an output after {output}, such as {example}")
    asked = ConvertOptions(**options)
    source = first_part(list(sources))
    copy(
        lambda: plan_merge(source, output, asked),
        merged_path(output),
        asked,
        dry_run=dry_run,
        quiet=quiet,
        as_json=as_json,
        all_tensors=all_tensors,
    )
