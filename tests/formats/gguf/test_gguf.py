"""GGUF files: read as the gguf package writes them, laid out as it and llama.cpp read them.

The oracle both ways is the gguf package's GGUFWriter and GGUFReader; hostile files are written by
hand. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from weightcast.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.formats.array import FileLayout
from weightcast.formats.gguf.header import raw_array, raw_string, raw_uint
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.formats.gguf.read import SPLIT_KEYS, read_file, read_split
from weightcast.formats.split import split_name
from weightcast.quant.types import BF16, F16, F32, Q8_0, STORED_TYPES

Writer = Callable[..., Path]
Bytes = Callable[..., bytes]

SCALARS: dict[GGUFValueType, list[Any]] = {
    GGUFValueType.UINT8: [0, 255],
    GGUFValueType.INT8: [-128, 127],
    GGUFValueType.UINT16: [0, 65535],
    GGUFValueType.INT16: [-32768, 32767],
    GGUFValueType.UINT32: [0, (1 << 32) - 1],
    GGUFValueType.INT32: [-(1 << 31), (1 << 31) - 1],
    GGUFValueType.FLOAT32: [0.5, -1e30],
    GGUFValueType.BOOL: [True, False],
    GGUFValueType.STRING: ["", "a\u2581\U0001f600\n"],
    GGUFValueType.UINT64: [0, (1 << 64) - 1],
    GGUFValueType.INT64: [-(1 << 63), (1 << 63) - 1],
    GGUFValueType.FLOAT64: [0.1, -1e300],
}


METADATA = {"general.architecture": raw_string("test")}


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


# Files of the gguf package.


@pytest.mark.parametrize("kind", SCALARS, ids=lambda kind: kind.name)
def test_every_type_of_metadata(kind: GGUFValueType, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(path, "test")
    for number, value in enumerate(SCALARS[kind]):
        writer.add_key_value(f"scalar.{number}", value, kind)
    writer.add_key_value("array", SCALARS[kind], GGUFValueType.ARRAY, sub_type=kind)
    finish(writer)
    metadata = read_file(path).metadata
    fields = GGUFReader(path).fields
    assert set(metadata) == {name for name in fields if not name.startswith("GGUF.")}
    for name, value in metadata.items():
        assert plain(value) == fields[name].contents()
    for number, value in enumerate(SCALARS[kind]):
        assert type(metadata[f"scalar.{number}"]) is type(value)
    assert metadata["general.architecture"] == "test"


def test_values_are_exact(tmp_path: Path) -> None:
    """Integers as integers, float32 as the nearest double; not only equal to the other reader."""
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(path, "test")
    writer.add_uint64("large", (1 << 64) - 1)
    writer.add_float32("third", 1 / 3)
    writer.add_array("strings", ["a", "", "\u2581b"])
    finish(writer)
    metadata = read_file(path).metadata
    assert metadata["large"] == 18446744073709551615
    assert metadata["third"] == float(np.float32(1 / 3))
    assert metadata["strings"] == ["a", "", "\u2581b"]


def add_tensor(writer: GGUFWriter, name: str, kind: GGMLQuantizationType, rows: int) -> bytes:
    elements, nbytes = GGML_QUANT_SIZES[kind]
    shape = (rows, 2 * nbytes)
    data = np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)
    writer.add_tensor(name, data, raw_shape=shape, raw_dtype=kind)
    assert elements > 0
    return data.tobytes()


@pytest.mark.parametrize("alignment", [32, 8, 64, 4096])
def test_tensors_of_every_type(alignment: int, tmp_path: Path, stored_bytes: Bytes) -> None:
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(path, "test")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    kinds = [kind for kind in GGML_QUANT_SIZES if kind.name in STORED_TYPES]
    assert {kind.name for kind in GGML_QUANT_SIZES} - set(STORED_TYPES) == {"Q8_1", "Q8_K"}
    data = {
        kind.name: add_tensor(writer, kind.name, kind, 1 + number % 3)
        for number, kind in enumerate(kinds)
    }
    finish(writer)
    tensors = read_file(path).tensors
    assert set(tensors) == set(data)
    for expected in GGUFReader(path).tensors:
        array = tensors[expected.name]
        assert array.dtype == expected.tensor_type.name
        assert list(array.shape) == [int(size) for size in reversed(expected.shape)]
        assert (array.offset, array.nbytes) == (expected.data_offset, expected.n_bytes)
        assert array.offset % alignment == 0
        assert stored_bytes(array) == data[array.dtype]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 1), (0,), (0, 3)])
def test_shapes_are_row_major(shape: tuple[int, ...], tmp_path: Path, stored_bytes: Bytes) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    writer = GGUFWriter(tmp_path / "a.gguf", "test")
    writer.add_tensor("a", values)
    finish(writer)
    array = read_file(tmp_path / "a.gguf").tensors["a"]
    assert (array.shape, array.dtype) == (shape, "F32")
    assert stored_bytes(array) == values.tobytes()


# Our layout.


def write_layout(path: Path, layout: FileLayout, data: dict[str, bytes]) -> None:
    raw = bytearray(layout.header.ljust(layout.size, b"\0"))
    for name, start in layout.offsets.items():
        raw[start : start + len(data[name])] = data[name]
    assert len(raw) == layout.size
    path.write_bytes(raw)


def entries_and_data(count: int) -> tuple[list[Entry], dict[str, bytes]]:
    rng = np.random.default_rng(count)
    kinds = (BF16, F16, F32, Q8_0)
    entries = [Entry(f"t{n}", kinds[n % len(kinds)], (n + 1, 32)) for n in range(count)]
    return entries, {e.name: rng.integers(0, 256, e.nbytes, np.uint8).tobytes() for e in entries}


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_layout_loads_in_the_package(alignment: int | None, tmp_path: Path) -> None:
    entries, data = entries_and_data(9)
    metadata = METADATA | {
        "general.name": raw_string("a model"),
        "test.list": raw_array("int32", np.array([1, 2, 3])),
    }
    if alignment is not None:
        metadata["general.alignment"] = raw_uint(alignment)
    [layout] = lay_out(metadata, [entries])
    path = tmp_path / "a.gguf"
    write_layout(path, layout, data)
    reader = GGUFReader(path)
    assert reader.alignment == (alignment or 32)
    assert reader.fields["general.name"].contents() == "a model"
    assert {t.name: t.data_offset for t in reader.tensors} == layout.offsets
    for entry, tensor in zip(entries, reader.tensors, strict=True):
        assert tensor.tensor_type.value == entry.type.ggml_id
        assert [int(n) for n in reversed(tensor.shape)] == list(entry.shape)
        assert tensor.data.tobytes() == data[entry.name]


def test_layout_reads_back(tmp_path: Path, stored_bytes: Bytes) -> None:
    entries = [
        Entry("f", F32, (3,)),
        Entry("h", F16, (2, 3)),
        Entry("b", BF16, (2, 2, 3)),
        Entry("q", Q8_0, (2, 2, 2, 64)),
    ]
    data = {entry.name: bytes([n]) * entry.nbytes for n, entry in enumerate(entries)}
    [layout] = lay_out(METADATA, [entries])
    write_layout(tmp_path / "a.gguf", layout, data)
    tensors = read_file(tmp_path / "a.gguf").tensors
    assert {n: (a.dtype, a.shape) for n, a in tensors.items()} == {
        entry.name: (entry.type.name, entry.shape) for entry in entries
    }
    assert {name: stored_bytes(array) for name, array in tensors.items()} == data


def test_layout_is_what_the_package_writes(tmp_path: Path) -> None:
    """The same writer calls with real data give the same file, byte for byte."""
    values = {f"t{n}": np.full((n + 1, 5), n, np.float32) for n in range(4)}
    writer = GGUFWriter(tmp_path / "package.gguf", "test")
    writer.add_name("a model")
    for name, value in values.items():
        writer.add_tensor(name, value)
    finish(writer)
    metadata = METADATA | {"general.name": raw_string("a model")}
    [layout] = lay_out(metadata, [[Entry(name, F32, v.shape) for name, v in values.items()]])
    write_layout(tmp_path / "a.gguf", layout, {name: v.tobytes() for name, v in values.items()})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "package.gguf").read_bytes()


def split_model(directory: Path) -> list[Path]:
    """A model in several parts, as laid out by us."""
    entries, data = entries_and_data(9)
    metadata = METADATA | {"general.name": raw_string("a model")}
    parts = [entries[:2], entries[2:5], entries[5:]]
    layouts = lay_out(metadata, parts, SPLIT_KEYS)
    paths = [directory / split_name("m", n, len(layouts)) for n in range(len(layouts))]
    for path, layout in zip(paths, layouts, strict=True):
        write_layout(path, layout, data)
    assert len(paths) > 2
    return paths


def test_split_layout_loads_in_the_package(tmp_path: Path) -> None:
    _, data = entries_and_data(9)
    loaded = {}
    for number, path in enumerate(paths := split_model(tmp_path)):
        reader = GGUFReader(path)
        assert reader.fields["split.no"].contents() == number
        assert reader.fields["split.count"].contents() == len(paths)
        assert reader.fields["split.tensors.count"].contents() == len(data)
        loaded |= {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    assert loaded == data


def test_split_reads_back(tmp_path: Path, stored_bytes: Bytes) -> None:
    _, data = entries_and_data(9)
    index = read_split(split_model(tmp_path)[0])
    assert index.metadata["general.name"] == "a model"
    assert {name: stored_bytes(array) for name, array in index.tensors.items()} == data


def test_split_name() -> None:
    assert split_name("grok-1-Q8_0", 0, 12) == "grok-1-Q8_0-00001-of-00012.gguf"


# Hostile files, written by hand.


def string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def numbers(*values: int) -> bytes:
    """The value of an array of uint32."""
    return struct.pack(f"<IQ{len(values)}I", 4, len(values), *values)


def info(name: str | bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return string(name) + axes + struct.pack("<IQ", kind, offset)


def file_of(
    pairs: list[bytes],
    infos: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    n_tensors, n_values = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values)
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def alignment(value: int, kind: int = 4, width: str = "I") -> bytes:
    return pair("general.alignment", kind, struct.pack(f"<{width}", value))


def refused(path: Path, error: type[CheckpointError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        read_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 2000
    return message


SMALL = file_of(
    [pair("name", 8, string("x")), pair("list", 9, numbers(1, 2)), pair("flag", 7, b"\1")],
    [info("a", [2, 2]), info("b", [3], 0, 32)],
    bytes(range(44)),
)


def test_the_builder_makes_a_valid_file(write: Writer, stored_bytes: Bytes) -> None:
    index = read_file(write(SMALL))
    assert {k: plain(v) for k, v in index.metadata.items()} == {
        "name": "x",
        "list": [1, 2],
        "flag": True,
    }
    assert index.tensors["a"].shape == (2, 2)
    assert stored_bytes(index.tensors["b"]) == bytes(range(32, 44))


def test_version_2_is_read(write: Writer) -> None:
    path = write(file_of([], [info("a", [1])], b"1234", version=2))
    assert read_file(path).tensors["a"].nbytes == 4


HUGE = 1 << 60
MAX = (1 << 64) - 1
BAD_FILES = {
    "empty": b"",
    "magic alone": b"GGUF",
    "another magic": b"GGML" + SMALL[4:],
    "zeros": bytes(1000),
    "version 1": file_of([], [], version=1),
    "version 4": file_of([], [], version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "many tensors": file_of([], [], counts=(HUGE, 0)),
    "many values": file_of([], [], counts=(0, HUGE)),
    "2**64 tensors": file_of([], [], counts=(MAX, MAX)),
    "one tensor more": file_of([], [info("a", [1])], b"1234", counts=(2, 0)),
    "one value more": file_of([pair("a", 0, b"1")], [], counts=(0, 9)),
    "a long key": file_of([struct.pack("<Q", HUGE) + bytes(20)], []),
    "a long string": file_of([pair("a", 8, struct.pack("<Q", MAX))], []),
    "a long array": file_of([pair("a", 9, struct.pack("<IQ", 0, HUGE))], []),
    "a long array of 8-byte values": file_of([pair("a", 9, struct.pack("<IQ", 10, HUGE))], []),
    "a long array of strings": file_of([pair("a", 9, struct.pack("<IQ", 8, HUGE))], []),
    "an array in an array": file_of([pair("a", 9, struct.pack("<IQ", 9, 1) + numbers(1))], []),
    "many empty arrays in an array": file_of([pair("a", 9, struct.pack("<IQ", 9, HUGE))], []),
    "an array of unknown type": file_of([pair("a", 9, struct.pack("<IQ", 13, 1) + b"1")], []),
    "a value of unknown type": file_of([pair("a", 13, b"12345678")], []),
    "a value of type 2**32 - 1": file_of([pair("a", (1 << 32) - 1, b"12345678")], []),
    "a key of 65,536 bytes": file_of([pair("k" * 65536, 0, b"1")], []),
    "a repeated key": file_of([pair("a", 0, b"1"), pair("a", 0, b"2")], []),
    "a name of 65,536 bytes": file_of([], [info("a" * 65536, [1])], b"1234"),
    "no axes, and no data": file_of([], [info("a", [])]),
    "no axes, of a type of blocks": file_of([], [info("a", [], 8)], bytes(64)),
    "nine axes": file_of([], [info("a", [1] * 9)], b"1234"),
    "2**32 - 1 axes": file_of([], [string("a") + b"\xff" * 4 + bytes(64)]),
    "an unknown type": file_of([], [info("a", [32], 1000)], bytes(64)),
    "a removed type": file_of([], [info("a", [32], 4)], bytes(64)),
    "a type of activations": file_of([], [info("a", [256], 15)], bytes(320)),
    "rows that do not fill blocks": file_of([], [info("a", [2, 16], 8)], bytes(64)),
    "a huge shape": file_of([], [info("a", [HUGE])], b"1234"),
    "a product of 2**64": file_of([], [info("a", [1 << 32, 1 << 32])], b"1234"),
    "a product of 2**256": file_of([], [info("a", [MAX] * 4)], b"1234"),
    "negative as unsigned": file_of([], [info("a", [MAX])], b"1234"),
    "data one byte short": file_of([], [info("a", [1])], b"123"),
    "offset beyond the end": file_of([], [info("a", [1], 0, 32)], b"1234"),
    "offset of 2**63": file_of([], [info("a", [1], 0, 1 << 63)], b"1234"),
    "offset of 2**64 - 1": file_of([], [info("a", [1], 0, MAX)], b"1234"),
    "nothing, of axes of 2**62": file_of([], [info("a", [0, 1 << 62, 1 << 62])]),
    "nothing twice": file_of([], [info("a", [0]), info("a", [0])]),
    "a repeated name": file_of([], [info("a", [1]), info("a", [1], 0, 32)], bytes(64)),
    "overlap": file_of([], [info("a", [9]), info("b", [1], 0, 32)], bytes(64)),
    "the same range twice": file_of([], [info("a", [1]), info("b", [1])], bytes(64)),
    "alignment 0": file_of([alignment(0)], [info("a", [1])], b"1234"),
    "alignment -32": file_of([alignment(-32, 5, "i")], [info("a", [1])], b"1234"),
    "alignment 24": file_of([alignment(24)], [info("a", [1])], bytes(64)),
    "alignment 2**21": file_of([alignment(1 << 21)], [info("a", [0])], b"1234"),
    "alignment 2**31": file_of([alignment(1 << 31)], [info("a", [1])], b"1234"),
    "alignment 2**63": file_of([alignment(1 << 63, 10, "Q")], [info("a", [1])], b"1234"),
    "alignment true": file_of([pair("general.alignment", 7, b"\1")], [info("a", [1])], b"1234"),
    "alignment as text": file_of([pair("general.alignment", 8, string("32"))], [], bytes(64)),
    "alignment as a list": file_of([pair("general.alignment", 9, numbers(32, 32))], [], bytes(64)),
}


# What is unusual, and read: shapes by name.
ODD_FILES: dict[str, tuple[bytes, dict[str, tuple[int, ...]]]] = {
    "no axes": (
        file_of([], [info("a", []), info("b", [1], 0, 32)], bytes(64)),
        {"a": (), "b": (1,)},
    ),
    "eight axes": (file_of([], [info("a", [1] * 8)], bytes(4)), {"a": (1,) * 8}),
    "nothing else": (file_of([], [info("a", [0]), info("b", [3, 0])]), {"a": (0,), "b": (3, 0)}),
    "nothing, at one place with others": (
        file_of([], [info("a", [0]), info("b", [2, 4]), info("c", [0])], bytes(32)),
        {"a": (0,), "b": (2, 4), "c": (0,)},
    ),
    "nothing, inside another and beyond the end": (
        file_of([], [info("a", [8]), info("b", [0], 0, 16), info("c", [0], 8, MAX)], bytes(32)),
        {"a": (8,), "b": (0,), "c": (0,)},
    ),
    "a name that is not UTF-8": (file_of([], [info(b"a\xff", [1])], b"1234"), {"a\udcff": (1,)}),
    "a name of 65,535 bytes": (file_of([], [info("a" * 65535, [1])], b"1234"), {"a" * 65535: (1,)}),
    "no name": (file_of([], [info("", [])], b"1234"), {"": ()}),
    "out of order": (
        file_of([], [info("a", [8], 0, 32), info("b", [8])], bytes(64)),
        {"a": (8,), "b": (8,)},
    ),
    "gaps and more": (file_of([], [info("a", [8], 0, 64)], bytes(999)), {"a": (8,)}),
    "version 2": (file_of([], [info("a", [1])], b"1234", version=2), {"a": (1,)}),
    "alignment of 64 bits": (
        file_of([alignment(32, 10, "Q")], [info("a", [1])], b"1234"),
        {"a": (1,)},
    ),
    "alignment of 8 bits, signed": (
        file_of([alignment(32, 1, "b")], [info("a", [1])], b"1234"),
        {"a": (1,)},
    ),
    "alignment 1": (file_of([alignment(1)], [info("a", [1])], bytes(64)), {"a": (1,)}),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_file(kind: str, write: Writer, stored_bytes: Bytes) -> None:
    raw, shapes = ODD_FILES[kind]
    tensors = read_file(write(raw)).tensors
    assert {name: array.shape for name, array in tensors.items()} == shapes
    for array in tensors.values():
        assert array.nbytes == 4 * int(np.prod(array.shape))
        assert len(stored_bytes(array)) == array.nbytes


@pytest.mark.parametrize("problem", BAD_FILES)
def test_hostile_file(problem: str, write: Writer) -> None:
    path = write(BAD_FILES[problem])
    tracemalloc.start()
    try:
        refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_every_truncation_is_refused(write: Writer) -> None:
    for end in range(len(SMALL)):
        refused(write(SMALL[:end]))


def test_every_changed_byte(write: Writer, stored_bytes: Bytes) -> None:
    """Read as something else that lies in the file, or refused."""
    raw = bytearray(SMALL)
    for position in range(len(raw)):
        for change in (1, 16, 128, 255):
            raw[position] ^= change
            path = write(raw)
            try:
                index = read_split(path)
            except CheckpointError:
                index = None
            for array in index.tensors.values() if index else ():
                assert len(stored_bytes(array)) == array.nbytes
            raw[position] ^= change


@settings(max_examples=300)
@given(st.data())
def test_random_edits(write: Writer, stored_bytes: Bytes, data: st.DataObject) -> None:
    raw = bytes(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        piece = data.draw(st.binary(max_size=9) | st.just(raw[start:stop] * 2))
        raw = raw[:start] + piece + raw[stop:]
    try:
        index = read_split(write(raw))
    except CheckpointError:
        return
    for array in index.tensors.values():
        assert len(stored_bytes(array)) == array.nbytes


# Split files.


def part_of(number: bytes, count: bytes, name: str, extra: tuple[bytes, ...] = ()) -> bytes:
    pairs = [string("split.no") + number, string("split.count") + count, *extra]
    return file_of(pairs, [info(name, [1])], b"1234")


def u16(value: int) -> bytes:
    return struct.pack("<IH", 2, value)


LIST = struct.pack("<I", 9) + numbers(0, 0)
NO_LIST = struct.pack("<I", 9) + numbers()


def refused_split(path: Path, error: type[CheckpointError], *words: str) -> None:
    with pytest.raises(error) as caught:
        read_split(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def two_parts(directory: Path, first: bytes, second: bytes | None) -> Path:
    (directory / "m-00001-of-00002.gguf").write_bytes(first)
    if second is not None:
        (directory / "m-00002-of-00002.gguf").write_bytes(second)
    return directory / "m-00001-of-00002.gguf"


FIRST, SECOND = part_of(u16(0), u16(2), "a"), part_of(u16(1), u16(2), "b")


def test_two_parts(tmp_path: Path) -> None:
    assert set(read_split(two_parts(tmp_path, FIRST, SECOND)).tensors) == {"a", "b"}


@pytest.mark.parametrize("number", range(3))
def test_missing_part(number: int, tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[number].unlink()
    if number == 0:
        refused_split(paths[1], FormatError, "not the first file", paths[0].name)
    else:
        refused_split(paths[0], MissingTensorError, paths[number].name)


def test_part_that_is_not_the_first(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    refused_split(paths[1], FormatError, "not the first file", paths[0].name)


@pytest.mark.parametrize(
    "name",
    ["renamed.gguf", "m-00001-of-00003.gguf", "m-1-of-2.gguf", "m-00001-of-00002.gguf.gguf"],
)
def test_renamed_part(tmp_path: Path, name: str) -> None:
    path = two_parts(tmp_path, FIRST, SECOND)
    refused_split(path.rename(tmp_path / name), FormatError, name, "named")


def test_exchanged_parts(tmp_path: Path) -> None:
    problem = "says it is part 2 of 2, but is named as the first"
    refused_split(two_parts(tmp_path, SECOND, FIRST), FormatError, problem)


def test_same_part_twice(tmp_path: Path) -> None:
    refused_split(two_parts(tmp_path, FIRST, FIRST), FormatError, "part 1 of 2 by its")


def test_part_of_another_split(tmp_path: Path) -> None:
    second = part_of(u16(1), u16(3), "b")
    refused_split(two_parts(tmp_path, FIRST, second), FormatError, "part 2 of 3 by its")


def test_part_that_is_damaged(tmp_path: Path) -> None:
    path = two_parts(tmp_path, FIRST, SECOND[:-1])
    refused_split(path, FormatError, "m-00002-of-00002.gguf")


def test_tensor_in_two_parts(tmp_path: Path) -> None:
    second = part_of(u16(1), u16(2), "a")
    refused_split(
        two_parts(tmp_path, FIRST, second), FormatError, "'a'", "00001-of-00002", "different files"
    )


def test_65535_parts(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-65535.gguf"
    path.write_bytes(part_of(u16(0), u16(65535), "a"))
    refused_split(path, MissingTensorError, "m-00002-of-65535.gguf")


@pytest.mark.parametrize("count", [1, 3, 1 << 30, -1])
def test_number_of_tensors_that_does_not_match(count: int, tmp_path: Path) -> None:
    extra = pair("split.tensors.count", 5, struct.pack("<i", count))
    first = part_of(u16(0), u16(2), "a", (extra,))
    refused_split(two_parts(tmp_path, first, SECOND), MissingTensorError, f"not {count}")


@pytest.mark.parametrize("value", [LIST, NO_LIST], ids=["two", "none"])
def test_lists_where_numbers_belong(value: bytes, tmp_path: Path) -> None:
    count = string("split.tensors.count") + value
    refused_split(two_parts(tmp_path, part_of(value, u16(2), "a"), SECOND), FormatError)
    refused_split(two_parts(tmp_path, FIRST, part_of(value, u16(2), "b")), FormatError)
    refused_split(two_parts(tmp_path, FIRST, part_of(u16(1), value, "b")), FormatError)
    first = part_of(u16(0), u16(2), "a", (count,))
    refused_split(two_parts(tmp_path, first, SECOND), CheckpointError)


@pytest.mark.parametrize("count", [0, 1])
def test_split_of_one(count: int, tmp_path: Path) -> None:
    path = tmp_path / "any-name.gguf"
    path.write_bytes(part_of(u16(0), u16(count), "a"))
    assert set(read_split(path).tensors) == {"a"}
