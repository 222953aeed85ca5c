"""Protocol 2 stores bytes as Latin-1 text in UTF-8: any range of them reads back, in little memory.

The reader notes the address of every MiB, so the cases that matter are ranges around those notes
and two-byte characters that lie across them.
"""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightcast.errors import FormatError
from weightcast.formats.array import StoredArray
from weightcast.formats.jax import latin1
from weightcast.formats.jax.arrays import read_pickle

MIB = 1 << 20
Writer = Callable[..., Path]
Bytes = Callable[..., bytes]

# Text of 3 MiB and more: bytes of one and two characters mixed; all of two, with an odd byte in
# front, so that a character lies across each MiB; all of one.
rng = np.random.default_rng(1)
LONG = {
    "mixed": rng.integers(0, 256, 5 * MIB // 2, np.uint8).tobytes(),
    "two-byte characters, even": b"\xff" * (3 * MIB // 2 + 3),
    "two-byte characters, odd": b"a" + b"\x80" * (3 * MIB // 2 + 3),
    "one-byte characters": b"\x7f" * (3 * MIB + 3),
}


def protocol_2(raw: bytes) -> bytes:
    return pickle.dumps(np.frombuffer(raw, np.uint8), 2)


def described(path: Path) -> StoredArray:
    array = read_pickle(path)
    assert isinstance(array, StoredArray)
    assert array.text is not None
    return array


@pytest.fixture(scope="module")
def long_arrays(write: Writer) -> dict[str, StoredArray]:
    return {name: described(write(protocol_2(raw), name)) for name, raw in LONG.items()}


@settings(max_examples=200)
@given(raw=st.binary(min_size=1, max_size=600), data=st.data())
def test_any_range_of_a_short_text(
    write: Writer, stored_bytes: Bytes, raw: bytes, data: st.DataObject
) -> None:
    array = described(write(protocol_2(raw)))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    assert array.nbytes == len(raw)
    assert stored_bytes(array, start, stop) == raw[start:stop]


@pytest.mark.parametrize("name", LONG)
def test_long_text_has_several_marks(name: str, long_arrays: dict[str, StoredArray]) -> None:
    text = long_arrays[name].text
    assert text is not None
    assert len(text.marks) > 2
    assert [position for position, _ in text.marks] == sorted({m[0] for m in text.marks})


@pytest.mark.parametrize("name", LONG)
def test_whole_long_text(
    name: str, long_arrays: dict[str, StoredArray], stored_bytes: Bytes
) -> None:
    assert stored_bytes(long_arrays[name]) == LONG[name]


@pytest.mark.parametrize("name", LONG)
def test_ranges_around_the_marks(
    name: str, long_arrays: dict[str, StoredArray], stored_bytes: Bytes
) -> None:
    array, raw = long_arrays[name], LONG[name]
    assert array.text is not None
    for position, _ in array.text.marks[1:]:
        for start in range(position - 2, position + 3):
            for stop in range(start, min(start + 6, len(raw))):
                assert stored_bytes(array, start, stop) == raw[start:stop]


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(LONG)), data=st.data())
def test_any_range_of_a_long_text(
    long_arrays: dict[str, StoredArray], stored_bytes: Bytes, name: str, data: st.DataObject
) -> None:
    raw = LONG[name]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    assert stored_bytes(long_arrays[name], start, stop) == raw[start:stop]


def test_long_text_is_checked_in_little_memory(write: Writer) -> None:
    path = write(protocol_2(b"\xff" * (16 * MIB)))
    tracemalloc.start()
    array = described(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == 16 * MIB
    assert peak < 12 * MIB


def scan(write: Writer, raw: bytes) -> latin1.Latin1Text:
    path = write(raw)
    fd = os.open(path, os.O_RDONLY)
    try:
        return latin1.scan(fd, path, 0, len(raw))
    finally:
        os.close(fd)


def test_all_256_bytes(write: Writer) -> None:
    every = bytes(range(256))
    text = scan(write, every.decode("latin-1").encode())
    assert (text.nbytes, text.end) == (256, 128 + 2 * 128)


def test_no_text(write: Writer) -> None:
    assert scan(write, b"").nbytes == 0


BAD_TEXT = {
    "a character beyond U+00FF": "\u0100".encode(),
    "a character of three bytes": "\u20ac".encode(),
    "a character of four bytes": "\U0001f600".encode(),
    "an overlong character": b"\xc1\x81",
    "a tail without a lead": b"\x80",
    "a lead without a tail": b"\xc3a",
    "two leads": b"\xc3\xc3\x80",
    "two tails": b"\xc3\x80\x80",
    "a lead at the end": b"\xc3",
    "a byte that is never used": b"\xff",
}


@pytest.mark.parametrize("problem", BAD_TEXT)
# At the start, inside, and where the first and second MiB meet.
@pytest.mark.parametrize("before", [0, 1, 1000, MIB - 2, MIB - 1, MIB])
def test_text_that_does_not_encode_bytes(problem: str, before: int, write: Writer) -> None:
    raw = BAD_TEXT[problem]
    with pytest.raises(FormatError, match="does not encode bytes"):
        scan(write, b"a" * before + raw)
    if problem != "a lead at the end":
        with pytest.raises(FormatError, match="does not encode bytes"):
            scan(write, b"a" * before + raw + b"a" * 10)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=40))
def test_scan_accepts_what_python_decodes(write: Writer, raw: bytes) -> None:
    try:
        expected = len(raw.decode().encode("latin-1"))
    except UnicodeError:
        with pytest.raises(FormatError):
            scan(write, raw)
    else:
        assert scan(write, raw).nbytes == expected


def test_file_that_shrinks_between_scan_and_read(write: Writer, stored_bytes: Bytes) -> None:
    path = write(protocol_2(b"\xff" * 1000))
    array = described(path)
    with path.open("r+b") as file:
        file.truncate(array.offset + 100)
    with pytest.raises(FormatError, match="ends inside an array"):
        stored_bytes(array)


def test_python_pickler_writes_the_same_text(write: Writer, stored_bytes: Bytes) -> None:
    """Python's own pickler, not the C one, and every byte value."""
    raw = bytes(range(256)) * 3
    file = io.BytesIO()
    pickle._Pickler(file, 2).dump(np.frombuffer(raw, np.uint8))
    assert stored_bytes(described(write(file.getvalue()))) == raw
