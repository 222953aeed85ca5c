"""Split a GGUF file into parts, and merge parts: the same bytes in other files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from weightcast.converters.convert import Conversion, Summary, plan_outputs
from weightcast.converters.engine import OnProgress, Progress, callback
from weightcast.converters.files import as_path
from weightcast.converters.graph import TensorGraph
from weightcast.converters.plan import choose_workers
from weightcast.converters.recipes import COPY
from weightcast.converters.sources import (
    ConvertOptions,
    open_as_it_is,
    parse_size,
    resolve_source,
)
from weightcast.converters.summary import StrPath, listed
from weightcast.converters.targets import TARGETS
from weightcast.converters.targets.gguf_parts import (
    lay_out_merged,
    lay_out_split,
    merged_path,
    parts_path,
)
from weightcast.converters.targets.target import Output, Request, with_split_note
from weightcast.errors import FormatError, RequestError
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.split import SPLIT_NAME, PartLimits
from weightcast.quant.devices import PROCESSOR
from weightcast.text import option, shown

# As llama-gguf-split has it.
MAX_TENSORS: Final = 128


def split(
    source: StrPath,
    output: StrPath,
    *,
    max_size: str | float | None = None,
    max_tensors: int | None = None,
    no_tensor_first_split: bool = False,
    jobs: int | None = None,
    memory: str | float | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Split a GGUF file into parts, without changing a byte of any tensor.

    Parts are named after `output`: m.gguf becomes m-00001-of-00003.gguf and so on. A part ends
    where its tensors would take more than `max_size` (bytes, or text as "48G"), or be more than
    `max_tensors`; by default there are 128 in each. A tensor larger than `max_size` has a part of
    its own. With `no_tensor_first_split` the first part has the metadata alone. `source` can be
    split already; its parts are cut anew.

    The rest is as in `weightcast.convert`. The files are those of llama-gguf-split. Raises
    CheckpointError, or a child of it.

    >>> summary = weightcast.split(out, folder / "parts.gguf", max_size="4M")
    >>> [file.name for file in summary.outputs[0].files]
    ['parts-00001-of-00002.gguf', 'parts-00002-of-00002.gguf']
    """
    options = ConvertOptions(jobs=jobs, memory=memory, resume=resume)
    tell = callback(on_progress)
    tell(Progress("plan"))
    limits = part_limits(max_size, max_tensors, first_is_empty=no_tensor_first_split)
    return plan_split(as_path(source, "source"), _one(output), limits, options).run(tell)


def merge(
    source: StrPath | Iterable[StrPath],
    output: StrPath,
    *,
    jobs: int | None = None,
    memory: str | float | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Merge the parts of a split GGUF file into one, without changing a byte of any tensor.

    `source` is the first part, the name that all parts go by, or a list of all parts. The rest is
    as in `weightcast.convert`. The file is that of llama-gguf-split. Raises CheckpointError, or a
    child of it: FormatError for a file that is whole, MissingTensorError for parts that are not
    there.

    >>> parts = weightcast.split(out, folder / "m.gguf", max_tensors=20).outputs[0].files
    >>> weightcast.merge(parts, folder / "merged.gguf").outputs[0].path.name
    'merged.gguf'
    """
    options = ConvertOptions(jobs=jobs, memory=memory, resume=resume)
    tell = callback(on_progress)
    tell(Progress("plan"))
    parts = [Path(part) for part in listed([source])]
    return plan_merge(first_part(parts), _one(output), options).run(tell)


def _one(output: StrPath) -> str:
    return str(as_path(output, "output"))


def part_limits(
    max_size: str | float | None, max_tensors: int | None, *, first_is_empty: bool = False
) -> PartLimits:
    """Make limits of what is asked for, or the usual one. Raises RequestError."""
    if max_tensors is not None and (type(max_tensors) is not int or max_tensors < 1):
        raise RequestError(
            f"{option('max_tensors')}: give a number from 1 on, not {shown(max_tensors)}"
        )
    if max_size is None and max_tensors is None:
        max_tensors = MAX_TENSORS
    nbytes = 0 if max_size is None else parse_size(max_size, "max_size")
    return PartLimits(nbytes, max_tensors or 0, first_is_empty)


def first_part(paths: list[Path]) -> Path:
    """Find the first of the parts that are named; one alone may stand for all.

    Raises RequestError if these are no parts of one file.
    """
    if len(paths) == 1:
        return paths[0]
    matches = [SPLIT_NAME.fullmatch(str(path)) for path in paths]
    wholes = {(match[1], match[3]) if match else None for match in matches}
    if not paths or len(wholes) > 1 or None in wholes:
        named = ", ".join(map(str, paths[:3])) or "nothing"
        raise RequestError(f"{named}: not the parts of one split file; give the first part alone")
    return min(paths)


def plan_split(
    source: Path, output: str, limits: PartLimits, options: ConvertOptions
) -> Conversion:
    """Plan and check the splitting of a file. Raises CheckpointError."""
    request = Request(parts_path(output), TARGETS["gguf"], COPY)

    def lay_out(graph: TensorGraph, metadata: Metadata) -> Output:
        laid_out = lay_out_split(graph, metadata, request, limits)
        return with_split_note(laid_out, limits.nbytes)

    return _planned(source, options, lay_out)


def plan_merge(source: Path, output: str, options: ConvertOptions) -> Conversion:
    """Plan and check the merging of parts. Raises CheckpointError."""
    request = Request(merged_path(output), TARGETS["gguf"], COPY)

    def lay_out(graph: TensorGraph, metadata: Metadata) -> Output:
        return with_split_note(lay_out_merged(graph, metadata, request), 0)

    return _planned(source, options, lay_out)


def _planned(
    source: Path,
    options: ConvertOptions,
    lay_out: Callable[[TensorGraph, Metadata], Output],
) -> Conversion:
    choose_workers(options.jobs, PROCESSOR)  # refuses what would be refused when it runs
    source = resolve_source(source)
    graph = open_as_it_is(source)
    if graph is None or graph.metadata is None:
        raise FormatError(source, None, "not a GGUF file; weightcast convert makes one of it")
    plan = plan_outputs(source, graph, [lay_out(graph, graph.metadata)], options)
    return Conversion(plan, options, PROCESSOR, None)
