"""A verification in words: what `verify` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from weightcast.converters.verify.result import Verification
from weightcast.text import count

_VERDICTS: Final = {
    "same": "byte for byte what weightcast makes of the source",
    "rounded": "byte for byte what is made of rounded weights",
    "requantized": "requantized, where they could have been carried over",
    "similar": "with errors as their type makes them, by another rule or importance",
    "damaged": "damaged",
    "wrong": "wrong",
}


def verification_lines(found: Verification) -> Iterator[str]:
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
    yield from problem_lines(found)
    yield "good" if found.is_good else count(len(found.problems), "problem")


def problem_lines(found: Verification) -> Iterator[str]:
    """Give a line for each problem."""
    for problem in found.problems:
        yield f"problem: {problem.line}"
