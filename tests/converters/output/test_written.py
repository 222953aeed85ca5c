"""Small files are whole or not there, and never take the place of what is no file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from weightcast.converters.files.atomic import replacing, write_small
from weightcast.errors import OutputError


def test_an_earlier_file_is_replaced_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "r.json", tmp_path / "link.json"
    link.symlink_to(file)
    for content in (b"one", b"two"):
        write_small(link, content)
        assert file.read_bytes() == content
    assert link.is_symlink()
    assert os.listdir(tmp_path / "real") == ["r.json"]


def test_a_pipe_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_small(pipe, b"content")
    reader.join(10)
    assert found == [b"content"]
    assert pipe.is_fifo()


def test_a_device_stays_one(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="full: the disk is full; free some space"):
        write_small(full, b"content")
    assert os.listdir(tmp_path) == ["full"]
    assert Path("/dev/full").is_char_device()


def test_a_file_grows_beside_its_name(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"earlier")
    with replacing(path) as file:
        for piece in (b"one", b"two"):
            file.write(piece)
            assert path.read_bytes() == b"earlier"
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(tmp_path) == ["f"]


def test_what_fails_leaves_an_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"earlier")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["f"]
