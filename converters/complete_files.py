"""Small files that have their names only when they are whole: one, or several together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from weightcast.converters.held import signals_held
from weightcast.converters.output_files import partial_path
from weightcast.converters.system_files import explained, sync_directory
from weightcast.quant.errors import OutputError


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, flush all of them, then give each its name, in their order.

    Raises OutputError; what has no name yet is removed then.
    """
    pending: dict[Path, Path] = {}
    path: Path | None = None
    try:
        for path, content in contents.items():
            pending[partial_path(path)] = path
            _write_flushed(partial_path(path), content)
        with signals_held():
            for partial, path in list(pending.items()):
                os.replace(partial, path)
                del pending[partial]
        for folder in {path.parent for path in contents}:
            sync_directory(folder)
    except OSError as problem:
        raise explained(problem, path) from None
    finally:
        for partial in pending:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_small(path: Path, content: bytes) -> None:
    """Write a file beside its name, then rename it. Raises OutputError; an earlier one stays.

    Links are followed. What is there and no regular file, such as a pipe or /dev/null, is written
    to as it is: root could rename a file over it.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a directory")
    real = Path(os.path.realpath(path))
    partial = partial_path(real)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        _write_flushed(partial, content)
        os.replace(partial, real)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {problem.strerror or problem}") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_flushed(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
