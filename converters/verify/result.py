"""Problems that verifying finds, and the verdict they lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from weightcast.converters.report import Report, json_values
from weightcast.text import count, shown

_VERDICTS: Final = {
    "same": "byte for byte what weightcast makes of the source",
    "rounded": "byte for byte what is made of rounded weights",
    "requantized": "requantized, where they could have been carried over",
    "similar": "with errors as their type makes them, by another rule or importance",
    "damaged": "damaged",
    "wrong": "wrong",
}


@dataclass(frozen=True)
class Verification:
    """What was found: problems, notes, what was checked and what not.

    `matrices` counts matrices (of experts each) by how their bytes came about. `errors` are those
    of all tensors, where the source was given; `report` has them as JSON values.
    """

    artifact: str
    source: str | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    matrices: Counter[str] = field(default_factory=Counter)
    errors: Report | None = field(default=None, repr=False)

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """Give the errors as JSON values (docs/report.schema.json)."""
        return None if self.errors is None else json_values(self.errors)

    @property
    def is_good(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def describe(self) -> dict[str, Any]:
        """Everything but the errors of tensors, as JSON values."""
        return {
            "artifact": self.artifact,
            "source": self.source,
            "good": self.is_good,
            "problems": [problem.describe() for problem in self.problems],
            "matrices": dict(self.matrices),
            "notes": list(self.notes),
            "checked": list(self.checked),
            "not_checked": list(self.unchecked),
        }

    def problem_lines(self) -> Iterator[str]:
        """A line for each problem."""
        for problem in self.problems:
            yield f"problem: {problem.line}"

    def lines(self) -> Iterator[str]:
        """What to tell people: problems last, where they are seen."""
        for text in self.checked:
            yield f"checked: {text}"
        for verdict, number in self.matrices.items():
            noun = "matrix" if number == 1 else "matrices"
            yield f"checked: {number:,} {noun} {_VERDICTS[verdict]}"
        for text in self.notes:
            yield f"note: {text}"
        for text in self.unchecked:
            yield f"not checked: {text}"
        yield from self.problem_lines()
        yield "good" if self.is_good else count(len(self.problems), "problem")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: where (a file, maybe a byte), of which tensor, what, what helps.

    `mistake` is a short name of a known mistake, for programs.
    """

    place: str
    what: str
    tensor: str | None = None
    remedy: str = ""
    mistake: str | None = None

    @property
    def line(self) -> str:
        """One line for people."""
        parts = [self.place, *([] if self.tensor is None else [plain(self.tensor)]), self.what]
        return ": ".join(parts) + (f"; {self.remedy}" if self.remedy else "")

    def describe(self) -> dict[str, Any]:
        """The problem as JSON values."""
        return {
            "place": self.place,
            "tensor": self.tensor,
            "mistake": self.mistake,
            "problem": self.what,
            "remedy": self.remedy,
        }


def plain(name: str) -> str:
    """A name from a file for a message: as it is, if that is short and printable."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)
