"""What must hold for every input: CheckpointError or nothing, one printable line, little memory."""

from __future__ import annotations

import tempfile
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.targets import Target
from weightcast.errors import CheckpointError

_MAX_MESSAGE = 8192
# Python's own overhead: JSON of three bytes becomes an object of 64 and a place in a list.
_BYTES_EACH = 128
_MEMORY_FILES = Path("/dev/shm")


class FindingError(AssertionError):
    """An input that a reader does not survive as it promises."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for inputs, in memory if there is one."""
    parent = _MEMORY_FILES if _MEMORY_FILES.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="weightcast-fuzz-", dir=parent) as name:
        yield Path(name)


def check(target: Target, where: Path, raw: bytes) -> str | None:
    """Read an input in the empty folder `where`, and empty it again; give the refusal, if any.

    Raises FindingError, or whatever escapes the reader, unless all promises are kept.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(where, raw)
    except CheckpointError as problem:
        return _checked_message(str(problem))
    finally:
        for path in where.iterdir():
            path.unlink()  # nothing is in a folder of its own
    return None


def check_with_memory(target: Target, where: Path, raw: bytes) -> str | None:
    """Do as `check`, and fail if Python's memory grew out of proportion to the input.

    Other threads, as those that tests before left behind, may allocate meanwhile: not twice.
    """
    limit = target.memory_bytes + _BYTES_EACH * len(raw)
    message, peak = _measured(target, where, raw)
    if peak > limit:
        message, peak = _measured(target, where, raw)
    if peak > limit:
        raise FindingError(f"{peak} bytes of memory for an input of {len(raw)}")
    return message


def _measured(target: Target, where: Path, raw: bytes) -> tuple[str | None, int]:
    tracemalloc.start()
    try:
        message = check(target, where, raw)
        return message, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _checked_message(message: str) -> str:
    if not message.isprintable():
        raise FindingError(f"a message that is not one printable line: {message!r}")
    if len(message) > _MAX_MESSAGE:
        raise FindingError(f"a message of {len(message)} characters: {message[:200]}")
    return message
