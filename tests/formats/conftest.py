"""Files to read and arrays to compare, for all tests of the formats."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weightcast.formats.array import ITEM_BYTES, StoredArray, read_stored


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write bytes to a file of a directory that lasts as long as the session; return its path."""
    directory = tmp_path_factory.mktemp("files")

    def write_file(raw: bytes, name: str = "tensor00000_000") -> Path:
        path = directory / name
        # Overwritten, then cut: file systems write a file that was emptied first to the disk.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.write(raw)
            file.truncate()
        return path

    return write_file


@pytest.fixture(scope="session")
def stored_bytes() -> Callable[..., bytes]:
    """Read bytes [start, stop) of an array's storage, as they lie in memory."""

    def read(array: StoredArray, start: int = 0, stop: int | None = None) -> bytes:
        buffer = bytearray((array.nbytes if stop is None else stop) - start)
        fd = os.open(array.path, os.O_RDONLY)
        try:
            read_stored(fd, array, start, memoryview(buffer))
        finally:
            os.close(fd)
        return bytes(buffer)

    return read


@pytest.fixture(scope="session")
def row_major_bytes(stored_bytes: Callable[..., bytes]) -> Callable[[StoredArray], bytes]:
    """Read an array through its strides and give its elements in row-major order."""

    def read(array: StoredArray) -> bytes:
        item = np.dtype(f"V{ITEM_BYTES[array.dtype]}")
        flat = np.frombuffer(stored_bytes(array), item)
        assert flat.size == math.prod(array.shape)
        if flat.size == 0:
            return b""
        steps = [step * item.itemsize for step in array.strides]
        return np.lib.stride_tricks.as_strided(flat, array.shape, steps).tobytes()

    return read
