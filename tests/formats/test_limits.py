"""Every count and length that a file declares has a limit, or is checked against the file first.

The files here are small, or have holes: what is refused is refused before memory or time is spent.
"""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import gguf_files
from tests.grok1 import read_spec
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.recipes.file import parse_tensor_type, read_recipe_file
from weightcast.converters.report.schema import read_report
from weightcast.converters.sources.packed import join_packed
from weightcast.errors import (
    CheckpointError,
    FormatError,
    LayoutError,
    RequestError,
    UnsafePickleError,
)
from weightcast.formats import reading, safetensors
from weightcast.formats.gguf import header as gguf_header
from weightcast.formats.gguf import imatrix
from weightcast.formats.gguf import read as gguf
from weightcast.formats.reading import parse_json, read_json_object, read_small
from weightcast.formats.tokenizer import sentencepiece as tokenizer
from weightcast.text import shown

Writer = Callable[..., Path]


@contextmanager
def little_memory(limit: int = 4 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


def holes(path: Path, start: bytes, size: int) -> Path:
    """A file that begins so, and goes on with a hole."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


# Messages


@pytest.mark.parametrize("error", [CheckpointError, LayoutError, RequestError])
def test_messages_are_one_printable_line(error: type[CheckpointError]) -> None:
    assert str(error("a\nb\x1b[31m\u2028\ud800é")) == "a\\nb\\x1b[31m\\u2028\\ud800é"
    assert len(str(error("x" * 100_000))) < 5000
    assert str(pickle.loads(pickle.dumps(error("a\nb")))) == "a\\nb"


def test_a_file_s_name_does_not_end_the_line() -> None:
    said = str(UnsafePickleError(Path("a\nb\r"), 3, "no\tgood"))
    assert said == "a\\nb\\r at byte 3: no\\tgood"


def test_values_are_shown_without_being_made_text_whole() -> None:
    wide = [["x" * 1000] * 1000] * 1000
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    long = "y" * 1_000_000
    with little_memory(1 << 18):
        assert shown(wide).startswith("[['xxx")
        assert shown({"a": wide}).startswith("{'a': [['xxx")
        assert shown(deep) == "[" * 100 + "..."
        assert len(shown(long)) == 103
    assert shown({"b": [1, 2.5, None], "a": "ü\n"}) == r"{'b': [1, 2.5, None], 'a': '\xfc\n'}"
    while deep:  # freed level by level
        deep = deep[0]  # type: ignore[assignment]


# JSON


def test_reading_makes_no_room_for_more_than_the_file(write: Writer) -> None:
    path = write(b'{"a": 1}', "small.json")
    with little_memory(1 << 17):
        assert read_json_object(path) == {"a": 1}


def test_files_without_a_size_are_read() -> None:
    path = Path("/proc/self/status")
    assert path.stat().st_size == 0
    assert read_small(path, 1 << 16).startswith(b"Name:")
    with pytest.raises(FormatError, match="larger than 10 bytes"):
        read_small(path, 10)


@pytest.mark.parametrize("text", ["[" + "{}," * 99 + "{}]", "[" * 101 + "]" * 101, "{" * 101])
def test_json_of_too_many_values(text: str) -> None:
    with pytest.raises(FormatError, match="JSON of more than 100 values"):
        parse_json("a.json", text.encode(), limit=100)
    assert parse_json("a.json", "[" + "0," * 98 + "0]", limit=100) == [0] * 99


def test_values_are_counted_before_they_are_made(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b'{"a":[' + b"[]," * (reading.MAX_JSON_VALUES // 2) + b"[]]}"
    path = write(raw, "many.json")
    with (
        little_memory(3 * len(raw)),
        pytest.raises(FormatError, match="JSON of more than 4,194,304 values"),
    ):
        read_json_object(path)
    header = write(len(raw).to_bytes(8, "little") + raw, "many.safetensors")
    with little_memory(3 * len(raw)), pytest.raises(FormatError, match="byte 8: the header is"):
        safetensors.read_index(header)
    monkeypatch.setattr("weightcast.converters.report.schema._MAX_VALUES", 1000)
    with pytest.raises(FormatError, match="more than 1,000 values"):
        read_report(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "utf-8-sig", "latin-1"])
def test_json_is_utf_8(encoding: str) -> None:
    with pytest.raises(FormatError, match="not valid JSON"):
        parse_json("a.json", '{"ä": 1}'.encode(encoding))


# GGUF


def gguf_start(n_tensors: int, n_values: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values)


def test_gguf_of_too_many_tensors(tmp_path: Path) -> None:
    count = gguf.MAX_TENSORS + 1
    path = holes(tmp_path / "a.gguf", gguf_start(count, 0), 32 * count + 1000)
    with little_memory(), pytest.raises(FormatError, match=r"131,073 tensors; 131,072 are read"):
        gguf.read_file(path)


def test_gguf_of_too_many_values(tmp_path: Path) -> None:
    count = gguf_header.MAX_VALUES + 1
    path = holes(tmp_path / "a.gguf", gguf_start(0, count), 13 * count + 1000)
    with little_memory(), pytest.raises(FormatError, match=r"65,537 metadata values; 65,536 are"):
        gguf.read_file(path)


def test_gguf_of_too_many_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    gguf_files.write(path, {"a": gguf_files.strings("x", "y"), "b": gguf_files.strings("z")}, {})
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 3)
    assert gguf.read_file(path).metadata["b"] == ["z"]
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 2)
    with pytest.raises(FormatError, match="more than 2 strings in arrays"):
        gguf.read_file(path)


def test_gguf_strings_that_a_hole_would_hold(tmp_path: Path) -> None:
    """A count that the file's size allows, but no vocabulary has."""
    count = gguf_header.MAX_STRINGS + 1
    start = gguf_start(0, 1) + gguf_files.text("a") + struct.pack("<IIQ", 9, 8, count)
    path = holes(tmp_path / "a.gguf", start, len(start) + 8 * count)
    with little_memory(), pytest.raises(FormatError, match="more than 4,194,304 strings"):
        gguf.read_file(path)


# Others


def test_imatrix_of_too_many_entries(tmp_path: Path) -> None:
    path = holes(tmp_path / "a.dat", struct.pack("<i", 1 << 20), 16 << 20)
    with little_memory(), pytest.raises(FormatError, match="declares 1048576 entries"):
        imatrix.read_imatrix(path)


def test_a_specification_of_too_many_keys(tmp_path: Path) -> None:
    """Each unknown key is compared with all known ones: 100,000 would take minutes."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({f"emb_sise{n}": n for n in range(100_000)} | RELEASE))
    with pytest.raises(FormatError, match="100,013 keys; a specification has some 17"):
        read_spec(path)
    path.write_text(json.dumps({f"comment {n}": n for n in range(900)} | RELEASE))
    assert read_spec(path) == RELEASE


def test_a_pattern_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    lines = "(?:x\n" * 300
    path.write_text(f"base = 'Q8_0'\n[[rule]]\ntype = 'Q8_0'\npattern = '''{lines}'''\n")
    with pytest.raises(FormatError, match=r"rule 1: pattern .* more than 1000 characters"):
        read_recipe_file(path)
    with pytest.raises(RequestError, match="more than 1000 characters"):
        parse_tensor_type("x" * 1001 + "=Q8_0")


def sentencepiece(*pieces: str) -> bytes:
    """A model of these pieces: field 1 of ModelProto, each with its own field 1 and a type."""

    def field(number: int, raw: bytes) -> bytes:
        size, length = len(raw), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + raw

    unknown = field(1, field(1, b"<unk>") + b"\x18\x02")
    trainer = field(2, b"\x18\x02")  # BPE
    return unknown + b"".join(field(1, field(1, p.encode())) for p in pieces) + trainer


def test_pieces_that_are_too_long_or_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece("a", "b" * 1000))
    assert tokenizer.read_sentencepiece(path).tokens[1:] == ["a", "b" * 1000]
    path.write_bytes(sentencepiece("a", "b" * 1001))
    with pytest.raises(FormatError, match="a piece of more than 1,000 characters"):
        tokenizer.read_sentencepiece(path)
    path.write_bytes(sentencepiece("a", "b", "c"))
    monkeypatch.setattr(tokenizer, "MAX_PIECES", 3)
    with pytest.raises(FormatError, match="4 pieces; 3 are read"):
        tokenizer.read_sentencepiece(path)


def test_a_vocabulary_is_not_padded_without_end(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece("a"))
    with little_memory(), pytest.raises(LayoutError, match="2,147,483,647 pieces"):
        tokenizer.read_sentencepiece(path).padded((1 << 31) - 1)


# Links: caches of model hubs are links to files elsewhere; names in an index stay in the directory.


def test_files_that_are_links_are_read(tmp_path: Path) -> None:
    header = b'{"a.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / "0123abcd"
    blob.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    name = "model-00001-of-00001.safetensors"
    (snapshot / name).symlink_to(blob)
    index = tmp_path / "blobs" / "index"
    index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    (snapshot / safetensors.INDEX_NAME).symlink_to(index)
    assert safetensors.read_directory(snapshot)["a.weight"].path == snapshot / name


def test_links_to_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device, not a regular file"):
        safetensors.read_directory(tmp_path)
    (tmp_path / "spec.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device, not a regular file"):
        read_spec(tmp_path / "spec.json")


# Findings of the fuzzer and of reading the code


def test_metadata_that_are_no_texts_beside_packed_codes(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"weightcast": 1},
            "a.codes": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        }
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(FormatError, match="__metadata__ is not a map of texts"):
        join_packed(path, tmp_path / "config.json", safetensors.read_directory(path))


def test_pieces_that_once_overflowed_the_stack(tmp_path: Path) -> None:
    """A unigram model: sentencepiece before 0.2.2 follows its pieces by recursion."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece("a", "b" * 1_000_000).removesuffix(b"\x12\x02\x18\x02"))
    with pytest.raises(FormatError):
        tokenizer.read_sentencepiece(path)
