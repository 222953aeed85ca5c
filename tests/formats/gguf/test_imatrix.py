"""Importance matrices: both formats, what llama-quantize makes of them, and hostile files."""

from __future__ import annotations

import re
import struct
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import imatrices
from tests.support import DATA
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.sources import open_graph
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.gguf import imatrix
from weightcast.formats.gguf.imatrix import read_imatrix

IMATRICES = DATA / "imatrix"
ONES = np.ones(1, np.float32)


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny.dat"])
def test_files_of_llama_imatrix(name: str, tmp_path: Path) -> None:
    """Each format, as the tool writes it, weighs every matrix of its model."""
    found = read_imatrix(IMATRICES / name)
    spec = tiny_spec(emb_size=64, key_size=8, num_q_heads=8, vocab_size=512)
    tensors = shapes_of(open_graph(write_checkpoint(tmp_path, spec, sparse=True)))
    sizes = {
        name: prod(shape[:-2]) * shape[-1]
        for name, shape in tensors
        if len(shape) > 1 and name != "token_embd.weight"
    }
    assert {name: values.size for name, values in found.entries.items()} == sizes
    assert (found.datasets, found.chunks) == (("text.txt",), 2)


def test_formats_of_llama_imatrix_agree() -> None:
    new, old = read_imatrix(IMATRICES / "tiny.gguf"), read_imatrix(IMATRICES / "tiny.dat")
    for name, values in new.entries.items():
        np.testing.assert_allclose(values, old.entries[name], rtol=1e-6)


def test_gguf_entries_are_means(tmp_path: Path) -> None:
    sums, counts = imatrices.sample(1, 64, 5)
    path = imatrices.write_gguf(tmp_path / "i.gguf", {"blk.0.attn_q.weight": (sums, counts)})
    found = read_imatrix(path)
    expected = np.array([np.float32(x) / np.float32(counts[0]) for x in sums[0]])
    np.testing.assert_array_equal(found.entries["blk.0.attn_q.weight"], expected)
    assert (found.datasets, found.chunks, found.unused) == (("calibration.txt",), 12, {})


def test_experts_have_counts_of_their_own(tmp_path: Path) -> None:
    sums, counts = imatrices.sample(4, 32, 1)
    counts[[1, 3]] = 0
    path = imatrices.write_gguf(tmp_path / "i.gguf", {"x": (sums, counts)})
    found = read_imatrix(path)
    rows = found.entries["x"].reshape(4, 32)
    np.testing.assert_array_equal(rows[0], sums[0] / counts[0])
    np.testing.assert_array_equal(rows[1], np.ones(32))
    assert found.unused == {"x": (1, 3)}


def test_counts_are_rounded(tmp_path: Path) -> None:
    counts = np.array([2.5, 0.4, 2**23 + 1], np.float32)
    path = imatrices.write_gguf(tmp_path / "i.gguf", {"x": (np.full((3, 1), 6, "f4"), counts)})
    found = read_imatrix(path)
    expected = np.array([2, 1, np.float32(6) / np.float32(2**23 + 1)], np.float32)
    np.testing.assert_array_equal(found.entries["x"], expected)
    assert found.unused == {"x": (1,)}


def test_other_arrays_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(path, "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 0)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name in ("x.in_sum2", "x.counts", "other"):
        writer.add_tensor(name, ONES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert list(read_imatrix(path).entries) == ["x"]


def test_old_format(tmp_path: Path) -> None:
    a, b = np.arange(4, dtype=np.float32), np.arange(8, dtype=np.float32)
    path = imatrices.write_old(tmp_path / "i.dat", {"a": (3, a), "b": (0, b)}, 7, "wiki.txt")
    found = read_imatrix(path)
    np.testing.assert_array_equal(found.entries["a"], a / np.float32(3))
    np.testing.assert_array_equal(found.entries["b"], b)
    assert (found.chunks, found.datasets) == (7, ("wiki.txt",))


@pytest.mark.parametrize("cut", [0, 4])
def test_the_first_old_files_end_without_a_dataset(tmp_path: Path, cut: int) -> None:
    body = struct.pack("<i", 1) + imatrices.old_entry(b"a", 1, ONES)
    (tmp_path / "i.dat").write_bytes(body + struct.pack("<i", 9)[:cut])
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.chunks, found.datasets) == (9 if cut else 0, ())


@pytest.mark.parametrize(
    ("sums", "counts", "problem"),
    [
        ([[1, -1]], [1], "'x': value 1 is -1.0; none can be below 0"),
        ([[1, np.nan]], [1], "'x': value 1 is nan"),
        ([[np.inf, 1]], [1], "'x': value 0 is inf"),
        ([[1, 1]], [-1], "'x': value 0 is -1.0"),
        ([[1, 1, 1]], [1, 1], "'x': 3 sums do not divide into 2"),
    ],
)
def test_values_that_cannot_be(
    tmp_path: Path, sums: list[list[float]], counts: list[float], problem: str
) -> None:
    entry = (np.array(sums, np.float32), np.array(counts, np.float32))
    path = imatrices.write_gguf(tmp_path / "i.gguf", {"x": entry})
    with pytest.raises(FormatError, match=re.escape(f"{path}: {problem}")):
        read_imatrix(path)


def test_sums_that_overflow_are_refused(tmp_path: Path) -> None:
    """Numbers below 1 would make a mean of infinity, but counts are whole."""
    entry = (np.full((1, 2), 3e38, np.float32), np.array([0.5], np.float32))
    found = read_imatrix(imatrices.write_gguf(tmp_path / "i.gguf", {"x": entry}))
    assert np.isfinite(found.entries["x"]).all()


def write_arrays(path: Path, arrays: dict[str, np.ndarray], **metadata: object) -> Path:
    writer = gguf.GGUFWriter(path, "")
    for key, value in metadata.items():
        add = {list: writer.add_array, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(f"imatrix.{key}", value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KNOWN = {"datasets": ["a"], "chunk_count": 1, "chunk_size": 1}
PAIR = {"x.in_sum2": ONES, "x.counts": ONES}


@pytest.mark.parametrize(
    ("arrays", "metadata", "problem"),
    [
        (
            PAIR,
            {},
            "of the architecture unknown, not an importance matrix; make one (weightcast",
        ),
        (PAIR, {"chunk_count": 1}, "an importance matrix that lacks metadata (imatrix.*); make"),
        (PAIR, {**KNOWN, "datasets": "a"}, "imatrix.datasets is not a list of names"),
        (PAIR, {**KNOWN, "datasets": [1]}, "imatrix.datasets is not a list of names"),
        (PAIR, {**KNOWN, "chunk_count": "1"}, "imatrix.chunk_count is '1'"),
        ({"x.in_sum2": ONES}, KNOWN, "'x' has sums, but no counts"),
        ({"x.counts": ONES}, KNOWN, "'x' has counts, but no sums"),
        ({**PAIR, "x.counts": ONES.astype("f2")}, KNOWN, "'x': stored as F16, expected F32"),
        ({"x": ONES}, KNOWN, "an importance matrix without entries"),
    ],
)
def test_gguf_files_that_are_none(
    tmp_path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, object], problem: str
) -> None:
    path = write_arrays(tmp_path / "i.gguf", arrays, **metadata)
    with pytest.raises(FormatError, match=re.escape(problem)):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "an empty file; its download has not started"),
        (struct.pack("<i", 0) + b"\1" * 99, "declares 0 entries"),
        (struct.pack("<i", -1) + bytes(99), "declares -1 entries"),
        (struct.pack("<i", 1 << 30) + bytes(99), "declares 1073741824 entries"),
        (struct.pack("<ii", 1, -5) + bytes(99), "declares -5 bytes of a name"),
        (struct.pack("<ii", 1, 1 << 30) + bytes(99), "declares 1073741824 bytes of a name"),
        (struct.pack("<iisii", 1, 1, b"a", 1, 1 << 30) + bytes(9), "1073741824 values of 'a'"),
        (struct.pack("<iisii", 1, 1, b"a", 1, 0) + bytes(9), "declares 0 values of 'a'"),
        (struct.pack("<iisii", 1, 1, b"\xff", 1, 1) + bytes(9), "a name is not valid UTF-8"),
        (
            struct.pack("<i", 2) + 2 * imatrices.old_entry(b"a", 1, ONES),
            "'a' occurs twice",
        ),
        (
            struct.pack("<i", 1) + imatrices.old_entry(b"a", 1, -ONES),
            "'a': value 0 is -1.0; none can be below 0",
        ),
        (
            struct.pack("<i", 1) + imatrices.old_entry(b"a", 1, ONES) + struct.pack("<ii", 1, 99),
            "declares 99 bytes of a name",
        ),
    ],
)
def test_old_files_that_are_none(tmp_path: Path, raw: bytes, problem: str) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=re.escape(problem)) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    said = {
        tmp_path: "a directory, not a file; name a file in it",
        tmp_path / "absent": "no such file or directory",
        Path("/dev/zero"): "a device, not a regular file; name a file on a disk",
    }
    for path, words in said.items():
        with pytest.raises(CheckpointError, match=f"{path}: {words}"):
            read_imatrix(path)


def test_files_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imatrix, "MAX_FILE_BYTES", 99)
    (tmp_path / "i.dat").write_bytes(b"\1" * 100)
    with pytest.raises(FormatError, match="100 bytes, which is no importance matrix"):
        read_imatrix(tmp_path / "i.dat")


@given(data=st.data())
def test_every_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Truncated and altered files of both formats raise CheckpointError or give clean values."""
    folder = tmp_path_factory.mktemp("damaged")
    if data.draw(st.booleans()):
        path = imatrices.write_gguf(folder / "i", {"x": imatrices.sample(2, 4, 0)})
    else:
        path = imatrices.write_old(folder / "i", {"x": (1, ONES), "y": (2, ONES)})
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[position:]
    else:
        raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        found = read_imatrix(path)
    except CheckpointError:
        return
    for values in found.entries.values():
        assert (np.isfinite(values) & (values >= 0)).all()
