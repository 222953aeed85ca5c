"""Outputs as Python's users are told of them, when they are planned and when they are made."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weightcast.converters.files import as_path
from weightcast.converters.report import OutputErrors
from weightcast.converters.targets.target import Output
from weightcast.errors import RequestError
from weightcast.text import count, shown, size_text

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class OutputSummary:
    """One output of a conversion, written or planned: where, what, how large.

    `path` is the file, of split GGUF the name that its parts go by, or the directory. `target` is
    "gguf" or "safetensors", `type` the type as Q4_K_M, BF16 or int4-g128. `size` counts the bytes
    of all `files` together; `tensor_bytes` those of the tensors alone, which are `bits_per_weight`
    for each weight. `types` has the number of tensors of each type. `notes` are lines on what was
    chosen, and what a runtime will make of it. `bundle` are the files of its release bundle, and
    `errors` those that were measured: `errors.total.relative_rms`.

    >>> summary = weightcast.convert(path, out, no_tokenizer=True)
    >>> output = summary.outputs[0]
    >>> output.path == out and output.size == out.stat().st_size
    True
    """

    path: Path
    target: str  # "gguf" or "safetensors"
    type: str  # Q4_K_M, BF16, int4-g128
    size: int
    files: tuple[Path, ...] = field(repr=False)
    tensor_bytes: int = field(repr=False)
    bits_per_weight: float
    types: Mapping[str, int] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    bundle: tuple[Path, ...] = field(default=(), repr=False)
    errors: OutputErrors | None = field(default=None, repr=False)

    def __str__(self) -> str:
        bits = f"{self.bits_per_weight:.2f} bits per weight"
        files = f", {count(len(self.files), 'file')}" if len(self.files) > 1 else ""
        return f"{self.path}: {self.type}, {size_text(self.size)}, {bits}{files}"


def summarize(
    output: Output, bundle: tuple[Path, ...] = (), errors: OutputErrors | None = None
) -> OutputSummary:
    """Sum up an output as it was laid out, with what was made beside it."""
    path = output.request.path
    return OutputSummary(
        path=path,
        target=output.request.target.name,
        type=output.request.type_name,
        size=output.size,
        files=(*(file.path for file in output.files), *(path / name for name in output.companions)),
        tensor_bytes=output.data_bytes,
        bits_per_weight=output.bits_per_weight,
        types=dict(Counter(planned.type_name for planned in output.tensors)),
        notes=output.notes,
        bundle=bundle,
        errors=errors,
    )


def listed(outputs: Iterable[object]) -> Iterator[str]:
    """List the paths of outputs, given one by one or in lists. Raises RequestError."""
    for given in outputs:
        if isinstance(given, str | os.PathLike):
            yield str(as_path(given, "output"))
        elif isinstance(given, Iterable) and not isinstance(given, bytes):
            yield from listed(given)
        else:
            raise RequestError(f"an output is a path, not {shown(given)}")
