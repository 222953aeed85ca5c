"""Name the files of a GGUF output and place its tensors in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.converters.targets.target import PlannedFile
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.formats.gguf.read import ALIGNMENT_KEY, DEFAULT_ALIGNMENT
from weightcast.formats.split import PartLimits, split_name

# The keys of a part in the order in which llama-gguf-split sets them, and llama-quantize.
GGUF_SPLIT_KEYS: Final = ("split.no", "split.tensors.count", "split.count")
QUANTIZE_KEYS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """The files of a GGUF output, and the file (its index) and byte offset of each tensor."""

    files: tuple[PlannedFile, ...]
    offsets: Mapping[str, tuple[int, int]]


def lay_out_files(
    path: Path, metadata: Mapping[str, bytes], entries: Sequence[Entry], split_bytes: int
) -> GgufFiles:
    """Lay out one file, or parts with up to `split_bytes` of tensor data each (0: one file)."""
    parts = cut(metadata, entries, PartLimits(split_bytes))
    return lay_out_parts(path, metadata, parts, GGUF_SPLIT_KEYS if len(parts) > 1 else ())


def cut(
    metadata: Mapping[str, bytes], entries: Sequence[Entry], limits: PartLimits
) -> list[Sequence[Entry]]:
    """Cut tensors into parts as llama-gguf-split does, in their order."""
    alignment = Metadata(metadata).get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    ranges = limits.cut([entry.padded_bytes(alignment) for entry in entries])
    return [entries[part.start : part.stop] for part in ranges]


def lay_out_parts(
    path: Path,
    metadata: Mapping[str, bytes],
    parts: Sequence[Sequence[Entry]],
    numbering: Sequence[str] = (),
) -> GgufFiles:
    """Lay out parts, in files that their numbers name; without `numbering` in one file."""
    layouts = lay_out(metadata, parts, numbering)
    names = [path.name]
    if numbering:
        stem = path.name.removesuffix(".gguf")
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
