"""Name the files of a GGUF output and place its tensors in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightcast.converters.targets.target import PlannedFile
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.formats.split import split_name


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """The files of a GGUF output, and the file (its index) and byte offset of each tensor."""

    files: tuple[PlannedFile, ...]
    offsets: Mapping[str, tuple[int, int]]


def lay_out_files(
    path: Path, metadata: Mapping[str, bytes], entries: Sequence[Entry], split_bytes: int
) -> GgufFiles:
    """Lay out one file, or parts with up to `split_bytes` of tensor data each (0: one file)."""
    layouts = lay_out(metadata, entries, split_bytes)
    stem = path.name.removesuffix(".gguf")
    names = [path.name]
    if len(layouts) > 1:
        names = [split_name(stem, n, len(layouts)) for n in range(len(layouts))]
    files = tuple(
        PlannedFile(path.with_name(name), layout.header, layout.size)
        for name, layout in zip(names, layouts, strict=True)
    )
    offsets = {
        name: (n, offset)
        for n, layout in enumerate(layouts)
        for name, offset in layout.offsets.items()
    }
    return GgufFiles(files, offsets)
