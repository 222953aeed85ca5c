"""What the system says when a file cannot be written, with the remedy."""

from __future__ import annotations

import errno
import os

import pytest

from weightcast.converters.files.posix import explained


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free some space and try again"),
        (errno.EFBIG, "does not allow files this large; use split"),
        (errno.EROFS, "the file system is read-only; write to another one"),
        (errno.EACCES, "cannot be written: Permission denied"),
    ],
)
def test_each_names_the_file_and_the_remedy(code: int, remedy: str) -> None:
    said = str(explained(OSError(code, os.strerror(code)), "out/m.gguf"))
    assert said.startswith("out/m.gguf: ")
    assert said.endswith(remedy)
