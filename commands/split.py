"""The command `split`: cut a GGUF file into parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightcast.commands.conversions import copy
from weightcast.commands.options import PATH, Command, all_tensors, as_json, listed_option, quiet
from weightcast.commands.work_options import convert_options, dry_run
from weightcast.converters.sources import ConvertOptions
from weightcast.converters.split import MAX_TENSORS, part_limits, plan_split
from weightcast.converters.targets.gguf_parts import parts_path


@click.command(
    cls=Command,
    examples=(
        "weightcast split model-BF16.gguf model-parts.gguf --max-size 48G",
        "weightcast split model-BF16.gguf model --max-tensors 256 --no-tensor-first-split -n",
    ),
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("output", metavar="OUT", type=str)
@listed_option(
    "--max-size",
    section="output",
    metavar="SIZE",
    help="Most tensor data of one part, such as 48G or 4GiB.",
)
@listed_option(
    "--max-tensors",
    section="output",
    type=click.IntRange(1),
    metavar="N",
    help=f"Most tensors of one part ({MAX_TENSORS} if no limit is given).",
)
@listed_option(
    "--no-tensor-first-split",
    section="output",
    is_flag=True,
    help="The first part has all metadata and no tensors.",
)
@dry_run
@convert_options(ConvertOptions, names=("jobs", "memory", "resume"))
@all_tensors
@quiet
@as_json
def split(
    source: Path,
    output: str,
    max_size: str | None,
    max_tensors: int | None,
    no_tensor_first_split: bool,
    dry_run: bool,
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Split SRC, a GGUF file, into the parts OUT-00001-of-0000N.gguf and so on.

    No byte of a tensor changes, and the files are those of llama-gguf-split. SRC may be split
    already: give its first part, and it is cut anew. `weightcast merge` undoes it.
    """
    limits = part_limits(max_size, max_tensors, first_is_empty=no_tensor_first_split)
    asked = ConvertOptions(**options)
    copy(
        lambda: plan_split(source, output, limits, asked),
        parts_path(output),
        asked,
        dry_run=dry_run,
        quiet=quiet,
        as_json=as_json,
        all_tensors=all_tensors,
    )
