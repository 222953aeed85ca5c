"""Put numbers, lists, names and sizes into words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final

from weightcast.errors import visible

# Messages are for somebody at the command line, or else for a caller in Python. A process is one of
# the two, and workers, which write messages too, would not inherit a context variable.
_is_command_line = False


@contextmanager
def speaking_of_options() -> Iterator[None]:
    """Make messages name options of the command line, not arguments of Python, meanwhile."""
    global _is_command_line
    before, _is_command_line = _is_command_line, True
    try:
        yield
    finally:
        _is_command_line = before


def spoken(command: str, call: str) -> str:
    """Choose what is said to somebody at the command line, or to a caller in Python."""
    return command if _is_command_line else call


# Options that bear another name than their argument.
_FLAGS: Final = {
    "isolated": "--isolate",
    "types": "--type",
    "tensor_types": "--tensor-type",
    "target_types": "--target-type",
}


def option(name: str, value: str | float | bool | None = None) -> str:
    """Name an option as its reader gives it: --split 48G at the command line, or split='48G'.

    True and False are those of a flag (--no-resume, resume=False), words in capitals what stands
    for a value (--spec FILE, spec=FILE). What is written to files must not depend on the reader,
    so it cannot say this.
    """
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None:
        return spoken(flag, name)
    if isinstance(value, bool):
        return spoken(flag if value else f"--no-{flag[2:]}", f"{name}={value}")
    if isinstance(value, int | float):
        return spoken(f"{flag} {value:g}", f"{name}={value:g}")
    if value.isalpha() and value.isupper():
        return spoken(f"{flag} {value}", f"{name}={value}")
    return spoken(f"{flag} {shlex.quote(value)}", f"{name}={value!r}")


_UNITS: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def bytes_text(nbytes: int) -> str:
    """Write bytes in full and in a readable unit: 66,560 bytes (66.56 kB)."""
    for unit, size in _UNITS:
        if nbytes >= 0.999995 * size:  # less would be rounded to 1000 of the next unit
            return f"{nbytes:,} bytes ({nbytes / size:.2f} {unit})"
    return count(nbytes, "byte")


def size_text(nbytes: float) -> str:
    """Write a size in a readable unit alone, in three digits: 66.6 kB."""
    for unit, size in _UNITS:
        number = nbytes / size
        if number >= 0.9995:
            digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
            text = f"{number:,.{digits}f}"
            return f"{text.rstrip('0').rstrip('.') if digits else text} {unit}"
    return count(round(nbytes), "byte")


def closest(name: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """Find the known name that somebody most likely meant; None if none is so much like it."""
    spelled = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), spelled, n=1, cutoff=alike)
    return spelled[found[0]] if found else None


def duration(seconds: float) -> str:
    """Write a time to read: 0.4 s, 35 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_MAX_SHOWN: Final = 100


def shown(value: object) -> str:
    """Show a value from a file in a message: one line, printable, not long."""
    text = " ".join(ascii(_beginning(value, _Count())).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


@dataclass(slots=True)
class _Count:
    """Values that may still be shown: each takes a character at least."""

    left: int = 2 * _MAX_SHOWN


def _beginning(value: object, count: _Count) -> object:
    """Cut a value from JSON or TOML down to what is shown of it, however large and deep it is."""
    count.left -= 1
    if isinstance(value, str):
        return value[: 2 * _MAX_SHOWN]
    if isinstance(value, dict):
        items = islice(value.items(), max(count.left, 0))
        return {_beginning(key, count): _beginning(each, count) for key, each in items}
    if isinstance(value, list):
        return [_beginning(each, count) for each in islice(value, max(count.left, 0))]
    return value


def count(n: int, noun: str) -> str:
    """Write a number and what is counted: 1 tensor, 2,000 tensors."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def some(names: Sequence[str]) -> str:
    """List the first few of many names."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4:,} more"


def in_code(text: str) -> str:
    """Write a text as code in Markdown: one line, nothing that ends code or a table's cell."""
    return visible(text).replace("|", "\\|").replace("`", "'")
