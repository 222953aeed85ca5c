"""Rules by which the scales and codes of blocks are chosen: ggml's, or a search for least error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from weightcast.errors import RequestError
from weightcast.text import closest, option, shown

EFFORTS: Final = (1, 2, 3)
USUAL_EFFORT: Final = 2
LEAST_ERROR: Final = "least-error"
SEARCHES: Final = ("ggml", LEAST_ERROR)


@dataclass(frozen=True, slots=True)
class Search:
    """How scales and codes are chosen: by ggml's rule, or for the least squared error.

    An `effort` of 1, 2 or 3 searches for the least error, each through more candidates than the one
    before; 0 is ggml's rule, and its bytes. Frozen, so that it can be a part of keys.
    """

    effort: int = 0

    @property
    def is_least_error(self) -> bool:
        return self.effort > 0

    @property
    def group_effort(self) -> int:
        """Give the effort of integers in groups, which by ggml's rule have the usual one."""
        return max(self.effort, USUAL_EFFORT)

    @property
    def name(self) -> str:
        """Name the rule as users do."""
        return SEARCHES[self.is_least_error]

    def __str__(self) -> str:
        return f"{self.name}, effort {self.effort}" if self.is_least_error else self.name

    def describe(self) -> dict[str, Any]:
        """Describe the rule as JSON values."""
        return {"name": self.name, "effort": self.effort or None}


GGML: Final = Search()


def parse_search(name: object = "ggml", effort: object = None) -> Search:
    """Read a rule and its effort as users give them; without an effort it is the usual one.

    Raises RequestError for words and numbers that are none, and for an effort of ggml's rule.
    """
    if name not in SEARCHES:
        near = closest(name, SEARCHES) if isinstance(name, str) else None
        meant = "" if near is None else f"; did you mean {near}?"
        given = shown(name[:50] if isinstance(name, str) else name)
        raise RequestError(
            f"{option('search')}: {given} is no rule for scales; use ggml or least-error{meant}"
        )
    if effort is not None and (type(effort) is not int or effort not in EFFORTS):
        raise RequestError(f"{option('effort')}: {shown(effort)} is no effort; use 1, 2 or 3")
    if name == LEAST_ERROR:
        return Search(USUAL_EFFORT if effort is None else effort)
    if effort is not None:
        least_error = option("search", LEAST_ERROR)
        raise RequestError(f"{option('effort')}: of use with {least_error} only")
    return GGML
