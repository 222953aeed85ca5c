"""A verification in words: what `verify` prints."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from weightcast.converters.verify.result import MOST_ALIKE, Problem, Verification
from weightcast.text import count

_NUMBERS: Final = re.compile(r"\d[\d,.]*")

_VERDICTS: Final = {
    "same": "byte for byte what weightcast makes of the source",
    "rounded": "byte for byte what is made of rounded weights",
    "requantized": "requantized, where they could have been carried over",
    "similar": "with errors as their type makes them, by another rule or importance",
    "damaged": "damaged",
    "wrong": "wrong",
}


def verification_lines(found: Verification, *, all_problems: bool = False) -> Iterator[str]:
    """Tell what was checked and found: problems last, where they are seen."""
    for text in found.checked:
        yield f"checked: {text}"
    for verdict, number in found.matrices.items():
        noun = "matrix" if number == 1 else "matrices"
        yield f"checked: {number:,} {noun} {_VERDICTS[verdict]}"
    for text in found.notes:
        yield f"note: {text}"
    for text in found.unchecked:
        yield f"not checked: {text}"
    yield from problem_lines(found, all_problems=all_problems)
    yield "good" if found.is_good else count(len(found.problems), "problem")


def problem_lines(found: Verification, *, all_problems: bool = False) -> Iterator[str]:
    """Give a line for each problem, or for the first few of those that are alike."""
    alike: dict[tuple[str | None, str], list[Problem]] = defaultdict(list)
    for problem in found.problems:
        alike[_kind(problem)].append(problem)
    for problems in alike.values():
        most = len(problems) if all_problems else MOST_ALIKE
        # One line saves none.
        shown = problems if len(problems) <= most + 1 else problems[:most]
        yield from (f"problem: {problem.line}" for problem in shown)
        if len(shown) < len(problems):
            yield f"problem: and {len(problems) - len(shown):,} more of this kind; --all shows them"


def _kind(problem: Problem) -> tuple[str | None, str]:
    """Tell what problems are alike: all but the place, the tensor and the numbers is the same."""
    return problem.mistake, _NUMBERS.sub("#", problem.what)
