"""What verifying finds: problems, each a line that names place, tensor and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightcast.formats.small_files import shown


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
