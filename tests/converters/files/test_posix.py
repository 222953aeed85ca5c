"""Calls to the system, on libraries that differ."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from weightcast.converters.files import posix

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.mark.parametrize("name", ["fallocate64", "fallocate"])
def test_blocks_are_reserved_with_the_name_that_the_c_library_has(name, tmp_path, monkeypatch):
    asked = []

    def fallocate(*arguments: object) -> int:
        asked.append(arguments)
        return LIBC.fallocate64(*arguments)

    monkeypatch.setattr(
        ctypes, "CDLL", lambda *_, **__: SimpleNamespace(fstatfs=LIBC.fstatfs, **{name: fallocate})
    )
    with (tmp_path / "file").open("wb") as file:
        posix.allocate(file.fileno(), 1 << 20)
    assert (tmp_path / "file").stat().st_size == 1 << 20
    assert len(asked) == 1


def test_a_c_library_without_it_gives_the_size_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(fstatfs=LIBC.fstatfs))
    with (tmp_path / "file").open("wb") as file:
        posix.allocate(file.fileno(), 1 << 20)
    assert (tmp_path / "file").stat().st_size == 1 << 20
