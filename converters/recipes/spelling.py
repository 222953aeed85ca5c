"""Find types in names of outputs: at their end, or where they do not belong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from weightcast.quant.names import SEPARATOR

_Found = TypeVar("_Found")

# Endings that say an importance matrix was used: model-Q4_K_M-imat.gguf.
_IMATRIX_ENDING: Final = re.compile(r"[-._ ](?:imat(?:rix)?)$", re.IGNORECASE)
# What others put before the type for the same: model.i1-Q4_K_M.gguf.
_IMATRIX_BEFORE: Final = re.compile(r"(?:^|[-._ ])(?:imat(?:rix)?|i1)[-._ ]$", re.IGNORECASE)


def endings(stem: str) -> Iterable[str]:
    """Give what a name may end in, the longest first: all of it, then what follows separators."""
    yield stem
    for match in SEPARATOR.finditer(stem):
        yield stem[match.end() :]


def find_ending(stem: str, lookup: Callable[[str], _Found | None]) -> tuple[str, _Found] | None:
    """Find the type that a name ends in, as it is written and as it was found."""
    for written in endings(stem):
        found = lookup(written) if written else None
        if found is not None:
            return written, found
    return None


def find_inside(stem: str, lookup: Callable[[str], object | None]) -> str | None:
    """Find a type that a name has, but not at its end."""
    for match in reversed(list(SEPARATOR.finditer(stem))):
        found = find_ending(stem[: match.start()], lookup)
        if found is not None:
            return found[0]
    return None


def without_imatrix(stem: str) -> tuple[str, bool]:
    """Take the ending off a name that says an importance matrix was used, if it has one."""
    shorter = _IMATRIX_ENDING.sub("", stem)
    return shorter, shorter != stem


def says_imatrix(before: str) -> bool:
    """Tell whether what comes before the type says that an importance matrix was used."""
    return _IMATRIX_BEFORE.search(before) is not None
