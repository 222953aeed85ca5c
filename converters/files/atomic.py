"""Small files that have their names only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from weightcast.converters.files.names import partial_path
from weightcast.converters.files.posix import explained
from weightcast.errors import OutputError


def write_small(path: Path, content: bytes) -> None:
    """Write a file whole; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that grows beside its name, and gets this when all is written and flushed.

    Links are followed. While it grows it is locked. What is there and no regular file, such as a
    pipe or /dev/null, is written to as it is: root could rename a file over it. Raises OutputError,
    and after that or any other error an earlier file stays as it was.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a directory")
    real = Path(os.path.realpath(path))
    partial = partial_path(real)
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        with _opened(partial) as file:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            _flush(file)
            os.replace(partial, real)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise explained(problem, path) from None
        raise OutputError(f"{path}: cannot be written: {problem.strerror or problem}") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_flushed(path: Path, content: bytes) -> None:
    """Write a whole file and flush it to the disk; links are not followed. Raises OSError."""
    with _opened(path) as file:
        file.write(content)
        _flush(file)


def _opened(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
