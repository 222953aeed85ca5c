"""Types of outputs in words: what `types` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from weightcast.converters.recipes import COPY
from weightcast.converters.targets.catalog import TypeInfo

_IMPORTANCE: Final = {"ignored": "-", "optional": "helps", "required": "needed"}


def type_values(types: Sequence[TypeInfo]) -> dict[str, Any]:
    """Describe the types as JSON values."""
    return {"types": [asdict(found) for found in types]}


def type_lines(types: Sequence[TypeInfo], *, all_types: bool) -> Iterator[str]:
    """Tell of all types, those of directories in other layouts only if `all_types` are wanted."""
    files = [found for found in types if found.target == "gguf"]
    directories = [found for found in types if found.target != "gguf"]
    layouts = list(dict.fromkeys(found.layout for found in directories if found.layout))
    shown = [f for f in directories if all_types or f.layout in (None, layouts[0])]
    yield "GGUF files, NAME-TYPE.gguf, for llama.cpp and what builds on it:"
    yield from _table(sorted(files, key=lambda found: -found.model_bits), runtimes=False)
    yield f"  {COPY.name} leaves each tensor of a GGUF file in the type that it has there."
    yield ""
    yield "Safetensors directories, NAME-TYPE:"
    yield from _table(shown, runtimes=True)
    if not all_types:
        endings = ", ".join(f"-{layout}" for layout in layouts[1:])
        yield f"Integers can end in {endings} too, as in int4-g128-awq: --all lists them."


def _table(types: Sequence[TypeInfo], *, runtimes: bool) -> Iterator[str]:
    width = max(len(found.name) for found in types)
    yield f"  {'type':<{width}} {'bits':>6} {'Grok-1':>7}  imatrix"
    for found in types:
        named = (", ".join(found.runtimes),) if runtimes else ()
        said = "; ".join(filter(None, (*named, found.advice)))
        numbers = f"{found.bits:6.2f} {found.model_bits:7.2f}  {_IMPORTANCE[found.importance]:<7}"
        yield f"  {found.name:<{width}} {numbers}  {said}".rstrip()
