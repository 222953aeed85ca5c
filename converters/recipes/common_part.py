"""Find a part of names by which some tensors can be told from all others, for a short rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_WORDS: Final = re.compile(r"_?[a-zA-Z0-9]+|\.")
_NUMBER: Final = re.compile(r"\d+")


def common_part(names: Sequence[str], others: Iterable[str]) -> str | None:
    """Give the longest part, whole words, of all names and none of the others.

    Others that no rule can change, as biases, do not count. None if there is no such part.
    """
    kinds = list(dict.fromkeys(_NUMBER.sub("0", name) for name in names))
    rest = {_NUMBER.sub("0", name) for name in others if name.endswith("weight")}
    parts = sorted(_parts(kinds[0]), key=lambda part: (-len(part), part))
    for part in parts:
        if all(part in kind for kind in kinds) and not any(part in name for name in rest):
            return part
    return None


def _parts(name: str) -> Iterator[str]:
    """List the runs of words in a name, without its ending and its numbers."""
    for stretch in name.removesuffix(".weight").split(".0."):
        words = _WORDS.findall(stretch)
        for start in range(len(words)):
            for end in range(start + 1, len(words) + 1):
                part = "".join(words[start:end]).strip(".")
                if part and part in name and not part.isdecimal():
                    yield part
