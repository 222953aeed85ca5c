"""Safetensors files: read as the reference implementation writes them, laid out as it reads them.

The `safetensors` package is the oracle both ways; hostile headers are written by hand.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import load_file, save_file

from weightcast.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.formats.safetensors import (
    INDEX_NAME,
    MAX_HEADER_BYTES,
    Entry,
    lay_out,
    read_directory,
    read_index,
)

Writer = Callable[..., Path]
Bytes = Callable[..., bytes]

NUMPY = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)


def filled(dtype: str, shape: tuple[int, ...], seed: int) -> bytes:
    size = ITEM_BYTES[dtype] * int(np.prod(shape))
    raw = np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()
    return bytes(byte & 1 for byte in raw) if dtype == "BOOL" else raw


@settings(max_examples=150)
@given(
    st.dictionaries(names, st.tuples(st.sampled_from(sorted(NUMPY)), shapes), max_size=6),
    # The library writes broken JSON for no tensors with empty metadata.
    st.one_of(st.none(), st.dictionaries(names, names, min_size=1, max_size=3)),
)
def test_files_of_the_library_read_back(
    write: Writer,
    stored_bytes: Bytes,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str] | None,
) -> None:
    path = write(b"", "library.safetensors")
    arrays = {
        name: np.frombuffer(filled(dtype, shape, n), NUMPY[dtype]).reshape(shape)
        for n, (name, (dtype, shape)) in enumerate(tensors.items())
    }
    save_file(arrays, path, metadata)
    index = read_index(path)
    assert set(index) == set(tensors)
    for name, array in index.items():
        assert (array.dtype, array.shape) == tensors[name]
        assert stored_bytes(array) == arrays[name].tobytes()


def laid_out(entries: list[Entry], data: dict[str, bytes], metadata: dict[str, str]) -> bytes:
    layout = lay_out(entries, metadata)
    raw = bytearray(layout.header.ljust(layout.size, b"\xee"))
    for name, start in layout.offsets.items():
        raw[start : start + len(data[name])] = data[name]
    assert len(raw) == layout.size
    return bytes(raw)


@settings(max_examples=150)
@given(
    st.dictionaries(names, st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes), max_size=6),
    st.dictionaries(names, names, max_size=3),
)
def test_our_layout_loads_in_the_library(
    write: Writer,
    stored_bytes: Bytes,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    entries = [Entry(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    data = {e.name: filled(e.dtype, e.shape, n) for n, e in enumerate(entries)}
    assert all(entry.nbytes == len(data[entry.name]) for entry in entries)
    raw = laid_out(entries, data, metadata)
    loaded = dict(deserialize(raw))
    assert set(loaded) == set(tensors)
    for name, (dtype, shape) in tensors.items():
        assert (loaded[name]["dtype"], tuple(loaded[name]["shape"])) == (dtype, shape)
        assert bytes(loaded[name]["data"]) == data[name]
    path = write(raw, "ours.safetensors")
    assert {name: stored_bytes(array) for name, array in read_index(path).items()} == data
    with safe_open(path, "np") as file:
        assert (file.metadata() or {}) == metadata


def test_layout_loads_as_equal_numpy_arrays(write: Writer) -> None:
    values = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.arange(3, dtype=np.float16),
        "b": np.array(7, np.int8),
    }
    entries = [Entry("b", "I8", ()), Entry("h", "F16", (3,)), Entry("f", "F32", (2, 3))]
    raw = laid_out(entries, {name: v.tobytes() for name, v in values.items()}, {})
    loaded = load_file(write(raw, "numpy.safetensors"))
    for name, value in values.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)


def test_layout_in_bytes() -> None:
    """The whole header of one file, so that a change of it cannot go unnoticed."""
    layout = lay_out([Entry("b", "I8", (3,)), Entry("a", "BF16", (2,))], {"format": "pt"})
    text = (
        b'{"__metadata__":{"format":"pt"},'
        b'"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
        b'"b":{"dtype":"I8","shape":[3],"data_offsets":[4,7]}}'
    )
    text += b" " * (-len(text) % 8)
    assert layout.header == struct.pack("<Q", len(text)) + text
    assert layout.offsets == {"a": len(layout.header), "b": len(layout.header) + 4}
    assert layout.size == len(layout.header) + 7


@given(st.permutations([("a", "I8"), ("b", "F32"), ("c", "BF16"), ("d", "F32"), ("e", "F64")]))
def test_layout_is_aligned_and_does_not_depend_on_order(entries: list[tuple[str, str]]) -> None:
    shuffled = [Entry(name, dtype, (3,)) for name, dtype in entries]
    layout = lay_out(shuffled, {})
    assert layout == lay_out(sorted(shuffled, key=lambda e: e.name), {})
    for name, dtype in entries:
        assert layout.offsets[name] % ITEM_BYTES[dtype] == 0


# Hostile files. Each header differs from a valid one in one thing.


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: Any, stop: Any, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refused(path: Path, error: type[CheckpointError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        read_index(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_the_builder_makes_a_valid_file(write: Writer) -> None:
    path = write(file_of({"a": tensor(0, 4), "b": tensor(4, 8)}, b"12345678"))
    assert [a.nbytes for a in read_index(path).values()] == [4, 4]


# Data of 8 bytes follows each of these headers.
BAD_HEADERS: dict[str, Any] = {
    "overlap": {"a": tensor(0, 5), "b": tensor(4, 8)},
    "the same range twice": {"a": tensor(0, 8), "b": tensor(0, 8)},
    "inside another": {"a": tensor(0, 8), "b": tensor(2, 4)},
    "gap": {"a": tensor(0, 3), "b": tensor(4, 8)},
    "gap in front": {"a": tensor(1, 8)},
    "bytes left over": {"a": tensor(0, 7)},
    "no tensors, but data": {},
    "beyond the end": {"a": tensor(0, 9)},
    "far beyond the end": {"a": tensor(0, 1 << 62)},
    "beyond 64 bits": {"a": tensor(1 << 64, (1 << 64) + 8)},
    "an empty one beyond the end": {"a": tensor(0, 8), "b": tensor(9, 9)},
    "an empty one inside another": {"a": tensor(0, 8), "b": tensor(4, 4)},
    "reversed": {"a": tensor(8, 0, shape=[8])},
    "negative": {"a": tensor(-8, 0, shape=[8])},
    "negative shape": {"a": tensor(0, 8, shape=[-1, -8])},
    "shape of another size": {"a": tensor(0, 8, shape=[9])},
    "dtype of another size": {"a": tensor(0, 8, "F32", [8])},
    "a product of 2**64": {"a": tensor(0, 8, shape=[1 << 32, 1 << 32])},
    "a product of 2**64 + 8": {"a": tensor(0, 8, shape=[8, 0x2000000000000001])},
    "true as a size": {"a": tensor(0, 8, shape=[8, True])},
    "true as an offset": {"a": tensor(0, 7), "b": tensor(7, 8), "c": tensor(True, True, shape=[0])},
    "a fraction as a size": {"a": tensor(0, 8, shape=[8.0])},
    "a string as a size": {"a": tensor(0, 8, shape=["8"])},
    "null as a size": {"a": tensor(0, 8, shape=[None])},
    "a list as a size": {"a": tensor(0, 8, shape=[[8]])},
    "a string as a shape": {"a": tensor(0, 8, shape="8")},
    "unknown dtype": {"a": tensor(0, 8, "F7")},
    "dtype in small letters": {"a": tensor(0, 8, "u8")},
    "no dtype": {"a": {"shape": [8], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "U8", "shape": [8]}},
    "null as a dtype": {"a": tensor(0, 8, None)},
    "a list as a dtype": {"a": tensor(0, 8, ["U8"])},
    "one offset": {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0]}},
    "three offsets": {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}},
    "an object as offsets": {"a": {"dtype": "U8", "shape": [8], "data_offsets": {"0": 8}}},
    "a string as a tensor": {"a": "U8"},
    "null as a tensor": {"a": None},
    "a list as a header": [tensor(0, 8)],
    "a number as a header": 8,
    "null as a header": None,
    "nothing": b"",
    "no JSON": b"{'a': 1}",
    "cut JSON": json.dumps({"a": tensor(0, 8)}).encode()[:-1],
    "more after JSON": json.dumps({"a": tensor(0, 8)}).encode() + b"}",
    "invalid UTF-8": b'{"a\xff":' + json.dumps(tensor(0, 8)).encode() + b"}",
    "not a number": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,8]}}',
    "infinity": b'{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,8]}}',
    "a number of 5000 digits": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep shape": b'{"a":{"dtype":"U8","shape":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "a repeated tensor": (
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        b'"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    ),
    "a repeated key": b'{"a":{"dtype":"I8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
    "UTF-16": json.dumps({"a": tensor(0, 8)}).encode("utf-16"),
}


@pytest.mark.parametrize("problem", BAD_HEADERS)
def test_hostile_header(problem: str, write: Writer) -> None:
    refused(write(file_of(BAD_HEADERS[problem], b"12345678")))


# The reference takes the last of them, although its description of the format forbids them.
LENIENT = {"a repeated tensor"}


@pytest.mark.parametrize("problem", sorted(set(BAD_HEADERS) - LENIENT))
def test_the_library_refuses_the_same_headers(problem: str) -> None:
    with pytest.raises(SafetensorError):
        deserialize(file_of(BAD_HEADERS[problem], b"12345678"))


@pytest.mark.parametrize("length", [1 << 60, 1 << 63, (1 << 64) - 1, MAX_HEADER_BYTES + 1, 1000])
def test_header_length_is_not_believed(length: int, write: Writer) -> None:
    path = write(file_of({"a": tensor(0, 8)}, b"12345678", length))
    tracemalloc.start()
    try:
        assert str(length) in refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_header_over_the_limit_in_a_file_that_is_large_enough(write: Writer) -> None:
    path = write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    with path.open("r+b") as file:
        file.truncate(2 * MAX_HEADER_BYTES)
    assert "header" in refused(path)
    path.unlink()


@pytest.mark.parametrize("length", [0, 1, 10])
def test_header_length_that_is_too_small(length: int, write: Writer) -> None:
    refused(write(file_of({"a": tensor(0, 8)}, b"12345678", length)))


def test_every_truncation_is_refused(write: Writer) -> None:
    raw = file_of({"a": tensor(0, 4), "b": tensor(4, 8), "c": tensor(8, 8)}, b"12345678")
    for end in range(len(raw)):
        refused(write(raw[:end]))


def test_trailing_byte_is_refused(write: Writer) -> None:
    refused(write(file_of({"a": tensor(0, 8)}, b"123456789")))


def test_every_flipped_bit(write: Writer, stored_bytes: Bytes) -> None:
    """Read as something else that lies in the file, or refused."""
    raw = bytearray(file_of({"a": tensor(0, 4, "F32", [1]), "b": tensor(4, 8)}, b"12345678"))
    for position in range(len(raw)):
        for bit in range(8):
            raw[position] ^= 1 << bit
            try:
                index = read_index(write(raw))
            except CheckpointError:
                index = {}
            for array in index.values():
                assert len(stored_bytes(array)) == array.nbytes
            raw[position] ^= 1 << bit


def test_long_names_are_cut_in_messages(write: Writer) -> None:
    assert len(refused(write(file_of({"a" * 100_000: tensor(0, 9)}, b"12345678")))) < 1000
    assert len(refused(write(file_of({"a": tensor(0, 8, "F" * 100_000)}, b"12345678")))) < 1000


@pytest.mark.parametrize("size", [1, 10**4000], ids=["many", "large"])
def test_shape_of_many_axes(size: int, write: Writer) -> None:
    """Neither a product of a million digits nor a shape of thousands of axes is worked out."""
    shape = b",".join([str(size).encode()] * (100_000 if size == 1 else 50))
    header = b'{"a":{"dtype":"U8","data_offsets":[0,1],"shape":[' + shape + b"]}}"
    assert len(refused(write(file_of(header, b"1")))) < 1000


# Directories.


def save(path: Path, **tensors: int) -> None:
    """Write a file of uint8 tensors, each filled with the number given."""
    save_file({name: np.full(4, value, np.uint8) for name, value in tensors.items()}, path)


def index_of(directory: Path, weight_map: Any) -> Path:
    path = directory / INDEX_NAME
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


def test_single_file(tmp_path: Path, stored_bytes: Bytes) -> None:
    save(tmp_path / "any.safetensors", a=1)
    for path in (tmp_path, tmp_path / "any.safetensors"):
        arrays = read_directory(path)
        assert {name: stored_bytes(array) for name, array in arrays.items()} == {"a": b"\1" * 4}


def test_files_without_index(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    save(tmp_path / "2.safetensors", b=2)
    assert {n: a.path.name for n, a in read_directory(tmp_path).items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
    }


def test_files_of_an_index(tmp_path: Path, stored_bytes: Bytes) -> None:
    save(tmp_path / "1.safetensors", a=1, b=2)
    save(tmp_path / "2.safetensors", c=3)
    save(tmp_path / "another.safetensors", d=4)
    index_of(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    arrays = read_directory(tmp_path)
    assert {name: stored_bytes(array)[0] for name, array in arrays.items()} == {
        "a": 1,
        "b": 2,
        "c": 3,
    }


def refused_directory(path: Path, error: type[CheckpointError], *words: str) -> None:
    with pytest.raises(error) as caught:
        read_directory(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_empty_directory(tmp_path: Path) -> None:
    refused_directory(tmp_path, MissingTensorError, "no *.safetensors")


def test_tensor_in_two_files(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    save(tmp_path / "2.safetensors", a=1)
    refused_directory(tmp_path, FormatError, "'a'", "1.safetensors", "2.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../1.safetensors",
        "sub/1.safetensors",
        "/etc/passwd",
        "..",
        ".",
        ".hidden.safetensors",
        "sub/../1.safetensors",
        "1.safetensors/",
    ],
)
def test_index_may_not_leave_its_directory(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    for path in (tmp_path, directory, directory / "sub"):
        save(path / "1.safetensors", a=1)
    save(directory / ".hidden.safetensors", a=1)
    index_of(directory, {"a": name})
    refused_directory(directory, FormatError, "leaves the directory")


def test_index_may_say_that_files_are_in_its_directory(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    index_of(tmp_path, {"a": "./1.safetensors"})
    assert read_directory(tmp_path)["a"].path == tmp_path / "1.safetensors"


@pytest.mark.parametrize("name", ["2.safetensors", "", "sub", "a\0b", "\ud800", "x" * 300, "a\nb"])
def test_file_of_the_index_that_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    save(tmp_path / "1.safetensors", a=1)
    index_of(tmp_path, {"a": "1.safetensors", "b": name})
    refused_directory(tmp_path, CheckpointError)


def test_missing_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    index_of(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    refused_directory(tmp_path, MissingTensorError, "2.safetensors: missing")


def test_tensor_that_is_not_in_its_file(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    save(tmp_path / "2.safetensors", b=2)
    index_of(tmp_path, {"a": "1.safetensors", "c": "2.safetensors"})
    refused_directory(tmp_path, MissingTensorError, "'c'", "2.safetensors")
    index_of(tmp_path, {"a": "2.safetensors", "b": "2.safetensors"})
    refused_directory(tmp_path, MissingTensorError, "'a'", "2.safetensors")


@pytest.mark.parametrize("name", [5, None, True, 1.5, ["5"], {"5": 5}])
def test_file_name_that_is_no_string(tmp_path: Path, name: Any) -> None:
    save(tmp_path / "a", a=1)
    for path in (str(name), str(name).lower()):
        (tmp_path / path).write_bytes((tmp_path / "a").read_bytes())
    index_of(tmp_path, {"a": name})
    refused_directory(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "5", "null", '{"weight_map": []}', '{"weight_map": 5}', "[" * 100_000],
)
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    save(tmp_path / "1.safetensors", a=1)
    (tmp_path / INDEX_NAME).write_text(text)
    refused_directory(tmp_path, FormatError, INDEX_NAME)


def test_bfloat16_through_ml_dtypes(tmp_path: Path, stored_bytes: Bytes) -> None:
    values = np.arange(6).astype(ml_dtypes.bfloat16)
    raw = laid_out([Entry("a", "BF16", (6,))], {"a": values.tobytes()}, {})
    (tmp_path / "model.safetensors").write_bytes(raw)
    array: StoredArray = read_directory(tmp_path)["a"]
    assert np.frombuffer(stored_bytes(array), ml_dtypes.bfloat16).tolist() == [0, 1, 2, 3, 4, 5]
