"""Values that a GGUF file is to have in the place of its source's: KEY=TYPE:VALUE."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

import numpy as np

from weightcast.errors import RequestError
from weightcast.formats.gguf.header import (
    MAX_NAME_BYTES,
    raw_float,
    raw_number,
    raw_string,
    raw_uint,
)
from weightcast.formats.gguf.read import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    MAX_ALIGNMENT,
    SPLIT_KEYS,
)
from weightcast.text import option, shown

_WHOLE: Final = re.compile(r"\+?[0-9]{1,10}")
_BOOLS: Final = {"true": 1, "false": 0}
_ALIGNMENTS: Final = frozenset(1 << n for n in range(MAX_ALIGNMENT.bit_length()))


def read_overrides_kv(texts: Iterable[str]) -> dict[str, bytes]:
    """Read KEY=TYPE:VALUE of each; of a key that is there twice the last counts, in its place.

    Raises RequestError.
    """
    found: dict[str, bytes] = {}
    for key, raw in map(parse_override_kv, texts):
        found.pop(key, None)
        found[key] = raw
    return found


def parse_override_kv(text: str) -> tuple[str, bytes]:
    """Read KEY=TYPE:VALUE, as llama.cpp's programs do, into a key and its raw value.

    Types are int (written as uint32), float (float32), bool (true or false) and str. Raises
    RequestError. Source: string_parse_kv_override in common/common.cpp of llama.cpp, and
    llama_model_quantize_impl in src/llama-quant.cpp, which drops the sign of a negative number.
    """
    source = f"{option('override_kv')} {shown(text)[1:-1]}"
    key, is_one, typed = text.partition("=")
    kind, has_value, value = typed.partition(":")
    if not (key and is_one and has_value) or len(key.encode()) > MAX_NAME_BYTES:
        raise RequestError(
            f"{source}: write it as KEY=TYPE:VALUE, such as llama.expert_used_count=int:4; types "
            "are int, float, bool and str"
        )
    if key in SPLIT_KEYS:
        raise RequestError(f"{source}: weightcast itself says how files are split")
    raw = _raw(kind, value, source)
    if key == ALIGNMENT_KEY and (kind != "int" or int(value) not in _ALIGNMENTS):
        raise RequestError(f"{source}: an alignment is a power of two, at most {MAX_ALIGNMENT:,}")
    if key == ARCHITECTURE_KEY and kind != "str":
        raise RequestError(f"{source}: an architecture is a name, str")
    return key, raw


def _raw(kind: str, value: str, source: str) -> bytes:
    if kind == "str":
        return raw_string(value)
    if kind == "bool" and value in _BOOLS:
        return raw_number("bool", _BOOLS[value])
    if kind == "int" and _WHOLE.fullmatch(value) and int(value) < 1 << 32:
        return raw_uint(int(value))
    if kind == "float" and (number := _float32(value)) is not None:
        return raw_float(number)
    faults = {
        "int": "is not a whole number from 0 to 4294967295, as it is written as uint32",
        "float": "is not a number that float32 holds",
        "bool": "is not true or false",
    }
    if kind not in faults:
        raise RequestError(f"{source}: unknown type {shown(kind)}; it is int, float, bool or str")
    raise RequestError(f"{source}: {shown(value)} {faults[kind]}")


def _float32(text: str) -> float | None:
    try:
        with np.errstate(over="ignore"):
            number = float(np.float32(float(text)))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
