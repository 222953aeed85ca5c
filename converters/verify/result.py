"""Problems that verifying finds, and the verdict they lead to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from weightcast.converters.report import Report, json_values
from weightcast.text import count, shown


@dataclass(frozen=True)
class Verification:
    """The result of verifying: problems, notes, what was checked and what not.

    `is_good` tells whether no problem was found. `matrices` counts matrices (of experts each) by
    how their bytes came about. `errors` are those of all tensors, where the source was given;
    `report` has them as JSON values.

    >>> found = weightcast.verify(out, path)
    >>> found.is_good, [problem.line for problem in found.problems]
    (True, [])
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

    def __repr__(self) -> str:
        found = "good" if self.is_good else count(len(self.problems), "problem")
        against = "" if self.source is None else f", against {self.source}"
        return f"<Verification of {self.artifact}{against}: {found}>"

    @property
    def is_good(self) -> bool:
        """Tell whether no problem was found."""
        return not self.problems

    def describe(self) -> dict[str, Any]:
        """Describe everything but the errors of tensors, as JSON values."""
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


# So many lines of one mistake are read; more are one.
MOST_ALIKE: Final = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: where (a file, maybe a byte), in which tensor, what, and a remedy.

    `place` is the file or directory, and maybe " at byte N"; `what` says what is wrong there.
    `tensor` is a name as `plain` shows it, or several; `remedy` says what helps, and may be empty;
    `mistake` is a short name of a known mistake, for programs.
    """

    place: str
    what: str
    tensor: str | None = None
    remedy: str = ""
    mistake: str | None = None

    @property
    def line(self) -> str:
        """Join all of it in one line for people."""
        parts = [self.place, *([] if self.tensor is None else [self.tensor]), self.what]
        return ": ".join(parts) + (f"; {self.remedy}" if self.remedy else "")

    def describe(self) -> dict[str, Any]:
        """Describe the problem as JSON values."""
        return {
            "place": self.place,
            "tensor": self.tensor,
            "mistake": self.mistake,
            "problem": self.what,
            "remedy": self.remedy,
        }


def refusal(refused: Exception, remedy: str = "") -> Problem:
    """Make a problem of what a reader says; `remedy` is for messages that have none themselves."""
    place, _, said = str(refused).partition(": ")
    what, _, own_remedy = said.partition("; ")
    return Problem(place, what or "cannot be used", remedy=own_remedy or remedy)


def plain(name: str) -> str:
    """Show a name from a file in a message: as it is, if that is short and printable."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)
