"""Record in an output that its scales and codes were searched for, so that it can be verified.

GGUF metadata and headers of safetensors have the same two keys. ggml's rule leaves none: its files
are those of llama.cpp's tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from weightcast.errors import RequestError
from weightcast.formats.gguf.header import raw_string, raw_uint
from weightcast.quant.search import GGML, Search, parse_search
from weightcast.quant.types import WeightType

_SEARCH: Final = "weightcast.search"
_EFFORT: Final = "weightcast.search.effort"
SEARCH_KEYS: Final = (_SEARCH, _EFFORT)


def search_of(search: Search, made: Iterable[WeightType]) -> Search:
    """Give the rule that an output is made by: ggml's where no type that is made has a choice."""
    return GGML if all(weight_type.is_plain for weight_type in made) else search


def search_metadata(search: Search) -> dict[str, bytes]:
    """Encode the rule as GGUF metadata."""
    if not search.is_least_error:
        return {}
    return {_SEARCH: raw_string(search.name), _EFFORT: raw_uint(search.effort)}


def search_texts(search: Search) -> dict[str, str]:
    """Write the rule as metadata of a safetensors header."""
    if not search.is_least_error:
        return {}
    return {_SEARCH: search.name, _EFFORT: str(search.effort)}


def recorded_search(metadata: Mapping[str, Any]) -> Search:
    """Read the rule from the metadata of a file; ggml's if none is recorded that is known."""
    name, effort = (metadata.get(key) for key in SEARCH_KEYS)
    number = int(effort) if isinstance(effort, str) and effort.isdecimal() else effort
    try:
        return GGML if name is None else parse_search(name, number)
    except RequestError:
        return GGML
