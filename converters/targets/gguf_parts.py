"""Split and merge GGUF files: the same tensors and metadata, in other files.

Files are what llama-gguf-split makes of the same source, byte for byte, where tensors are aligned
to 32 bytes. To anything else it pads wrongly (tensors do not lie where the header says).
Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/gguf-split/gguf-split.cpp
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from weightcast.converters.graph import TensorGraph
from weightcast.converters.targets.gguf_copy import entry_of
from weightcast.converters.targets.gguf_files import (
    GGUF_SPLIT_KEYS,
    GgufFiles,
    cut,
    lay_out_parts,
)
from weightcast.converters.targets.names import plain_path
from weightcast.converters.targets.target import Output, PlannedTensor, Request
from weightcast.errors import FormatError, RequestError
from weightcast.formats.gguf.header import Metadata, raw_number
from weightcast.formats.gguf.layout import Entry
from weightcast.formats.gguf.read import SPLIT_KEYS
from weightcast.formats.split import SPLIT_NAME, PartLimits

_COUNT_KEY: Final = "split.count"
_ENDING: Final = ".gguf"


def parts_path(text: str) -> Path:
    """Give the path that the parts of a split file go by. Raises RequestError if it can be none.

    As llama-gguf-split has it, the ending may be left out.
    """
    _check_file(text)
    path = plain_path(text)
    return path if text.endswith(_ENDING) else path.with_name(f"{path.name}{_ENDING}")


def merged_path(text: str) -> Path:
    """Give the path of a merged file. Raises RequestError if it can be none."""
    _check_file(text)
    if not text.endswith(_ENDING):
        raise RequestError(f"{text}: the name of a GGUF file ends in {_ENDING}")
    return plain_path(text)


def _check_file(text: str) -> None:
    name = Path(text).name
    if not name or text.endswith("/") or Path(text).is_dir():
        raise RequestError(f"{text}: is a directory; name a file in it")
    match = SPLIT_NAME.fullmatch(name)
    if match is not None:
        short = f"{match[1]}{_ENDING}"
        raise RequestError(f"{text}: this is the name of one part of a split file; write {short}")


def lay_out_split(
    graph: TensorGraph, metadata: Metadata, request: Request, limits: PartLimits
) -> Output:
    """Lay out the parts of a file, or one part. Raises CheckpointError for too many."""
    raw = {key: value for key, value in metadata.raw.items() if key not in SPLIT_KEYS}
    entries = [entry_of(tensor) for tensor in graph.values()]
    parts = cut(raw, entries, limits)
    return _output(
        graph, request, entries, lay_out_parts(request.path, raw, parts, GGUF_SPLIT_KEYS)
    )


def lay_out_merged(graph: TensorGraph, metadata: Metadata, request: Request) -> Output:
    """Lay out one file of the parts of a split one. Raises FormatError if it is none."""
    if metadata.get(_COUNT_KEY, 0) == 0:
        raise FormatError(
            graph.source,
            None,
            "a whole file, not a part of one; give the first part of a split file",
        )
    raw = {key: value for key, value in metadata.raw.items() if key != _COUNT_KEY}
    raw[_COUNT_KEY] = raw_number("uint16", 0)  # else readers would look for more files
    entries = [entry_of(tensor) for tensor in graph.values()]
    return _output(graph, request, entries, lay_out_parts(request.path, raw, [entries]))


def _output(
    graph: TensorGraph, request: Request, entries: Sequence[Entry], placed: GgufFiles
) -> Output:
    tensors = tuple(
        PlannedTensor(tensor, entry.type, *placed.offsets[entry.name])
        for tensor, entry in zip(graph.values(), entries, strict=True)
    )
    return Output(request, placed.files, tensors)
