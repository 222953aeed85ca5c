"""Exit codes of the command line, for scripts and pipelines."""

from __future__ import annotations

from typing import Final

BAD_INPUT: Final = 1  # or output: what was asked for cannot be done
USAGE: Final = 2
FAILED_CHECK: Final = 3  # a limit of --fail-over, or what a verification or a comparison found
INTERRUPTED: Final = 130

MEANINGS: Final = {
    0: "done",
    BAD_INPUT: "bad input or output",
    USAGE: "wrong usage",
    FAILED_CHECK: "a check failed: --fail-over, verify, compare",
    INTERRUPTED: "interrupted",
}
