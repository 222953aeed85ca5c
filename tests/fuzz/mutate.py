"""Edits of the JSON in an input that leave it JSON, which edits of bytes hardly ever do."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 32, 255, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, 10**300,
    0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), "", "a", "..", "\0", "\ud800", "F32",
    "U8", "I32", "BF16", "[128, 128]", [], [0], [1, 1], [0, 1 << 62], {}, {"": {}}, [[]],
)  # fmt: skip
_Place = tuple[Any, Any]


def mutate_json(raw: bytes, seed: int) -> bytes | None:
    """Change one JSON text in an input at one to four places; None if there is none."""
    rng = random.Random(seed)
    starts = [n for n, byte in enumerate(raw) if byte == ord("{") and (n == 0 or raw[n - 1] == 10)]
    if not starts:
        return None
    start = rng.choice(starts)
    text = raw[start:].decode("latin-1")
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.randint(1, 4)):
        _edit(rng, value)
    changed = json.dumps(value, separators=(",", ":")).encode()
    return raw[:start] + changed + text[end:].encode("latin-1")


def _edit(rng: random.Random, value: Any) -> None:
    places = list(_places(value))
    if not places:
        return
    where, key = rng.choice(places)
    other, other_key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del where[key]
    elif action == 1:
        where[key] = json.loads(json.dumps(other[other_key]))
    elif action == 2 and isinstance(where, dict):
        where[str(rng.choice([other_key, "", "a", "x.weight", "__metadata__"]))] = where.pop(key)
    elif action == 3 and isinstance(where, list):
        where.extend(where[: rng.randint(1, 4)])
    elif action == 4 and isinstance(where[key], int | float):
        where[key] += rng.choice([-1, 1, 7, -where[key], where[key]])
    else:
        where[key] = copy.deepcopy(rng.choice(_VALUES))


def _places(value: Any) -> Iterator[_Place]:
    """Every key of every object, every index of every list."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        items = found.items() if isinstance(found, dict) else enumerate(found)
        for key, each in items:
            yield found, key
            if isinstance(each, dict | list):
                waiting.append(each)
