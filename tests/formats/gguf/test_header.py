"""Metadata of GGUF files as raw bytes: exactly what lies there, decoded on demand, bounded."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import gguf_files as files
from tests.gguf_files import Part, string, strings, u32, write
from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.gguf.header import Metadata, raw_number, raw_string
from weightcast.formats.gguf.layout import lay_out
from weightcast.formats.gguf.read import SPLIT_KEYS, read_file

SCALARS = st.one_of(
    *(
        st.binary(min_size=width, max_size=width).map(
            lambda raw, kind=kind: struct.pack("<I", kind) + raw
        )
        for kind, width in files.WIDTHS.items()
    )
)
ARRAYS = st.one_of(
    *(
        st.lists(st.binary(min_size=width, max_size=width), max_size=5).map(
            lambda items, kind=kind: files.array(kind, b"".join(items))
        )
        for kind, width in files.WIDTHS.items()
    )
)
TEXTS = st.binary(max_size=9)
# split.* says how a file is cut, which is not carried over; hypothesis finds these in the sources.
KEYS = st.text(min_size=1, max_size=9).filter(lambda k: k.isprintable() and k not in SPLIT_KEYS)
VALUES = (
    SCALARS | ARRAYS | TEXTS.map(string) | st.lists(TEXTS, max_size=5).map(lambda s: strings(*s))
)


@settings(max_examples=200)
@given(st.dictionaries(KEYS, VALUES))
def test_raw_values_are_what_lies_there(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    found = read_file(write(folder / "a.gguf", metadata, {})).metadata
    assert list(found.raw.items()) == list(metadata.items())
    [layout] = lay_out(found.raw, [[]])
    assert layout.header == (folder / "a.gguf").read_bytes()
    for key in metadata:
        decoded = found[key]  # whatever the bytes are
        if isinstance(decoded, list):
            assert strings(*(s.encode(errors="surrogateescape") for s in decoded)) == metadata[key]
        elif isinstance(decoded, np.ndarray):
            wanted = metadata[key][16:]
            if decoded.dtype == bool:
                wanted = bytes(byte != 0 for byte in wanted)
            assert files.array(metadata[key][4], decoded.tobytes())[16:] == wanted
        elif isinstance(decoded, str):
            assert string(decoded.encode(errors="surrogateescape")) == metadata[key]


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (struct.pack("<IB", 0, 255), 255),
        (struct.pack("<Ib", 1, -1), -1),
        (struct.pack("<IQ", 10, (1 << 64) - 1), (1 << 64) - 1),
        (struct.pack("<If", 6, 0.1), float(np.float32(0.1))),
        (struct.pack("<I?", 7, True), True),
        (struct.pack("<IB", 7, 2), True),
        (string(b"a\xff"), "a\udcff"),
        (strings("a", b"\xc3"), ["a", "\udcc3"]),
        (strings(), []),
    ],
)
def test_decoded(raw: bytes, value: Any) -> None:
    found = Metadata({"a": raw})["a"]
    assert found == value
    assert type(found) is type(value)


def test_kinds() -> None:
    metadata = Metadata({"a": u32(1), "b": strings("x", "y"), "c": files.array(6, bytes(12))})
    assert [metadata.kind(key) for key in metadata] == [4, 9, 9]
    assert [metadata.array_type(key) for key in metadata] == [None, ("string", 2), ("float32", 3)]


def test_encoded() -> None:
    assert raw_number("uint32", 7) == u32(7)
    assert raw_number("uint16", 65535) == files.u16(65535)
    assert raw_number("int32", -1) == struct.pack("<Ii", 5, -1)
    assert raw_string("\u00fc") == string("\u00fc")


def test_many_strings_take_little_more_than_their_bytes(tmp_path: Path) -> None:
    raw = strings(*[b""] * 200_000)
    path = write(tmp_path / "a.gguf", {"a": raw}, {})
    tracemalloc.start()
    try:
        read_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(raw)


def test_a_header_that_is_too_large_is_not_written() -> None:
    with pytest.raises(CheckpointError, match="a GGUF header of"):
        lay_out({"a": string(bytes(1 << 28))}, [[]])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (4, "'a' is of the type Q4_2 (4), which ggml has no longer"),
        (15, "'a' is of the type Q8_K (15)"),
        (31, "'a' is of the type Q4_0_4_4 (31)"),
        (43, "'a' is of type 43, of a newer ggml, or of a fork with TurboQuant; make the file"),
        (48, "'a' is of the unknown type 48; make the file again"),
        (1 << 31, "'a' is of the unknown type 2147483648"),
    ],
)
def test_types_that_are_refused_by_name(kind: int, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {}, {"a": Part(kind, (256,), bytes(1024))})
    with pytest.raises(FormatError) as caught:
        read_file(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
