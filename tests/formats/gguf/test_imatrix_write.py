"""Importance matrices written: bytes as llama-imatrix makes them, sums merged by its rules."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tests import imatrices
from tests.support import DATA
from weightcast.errors import FormatError, LayoutError, RequestError
from weightcast.formats.gguf.imatrix import read_imatrix, read_sums
from weightcast.formats.gguf.imatrix_write import encode_dat, encode_gguf
from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums, merge_sums

IMATRICES = DATA / "imatrix"


def sums_of(**entries: TensorSums) -> ImportanceSums:
    return ImportanceSums(entries, ("text.txt",), 4)


def tensor(matrices: int, n_in: int, seed: int) -> TensorSums:
    squares, counts = imatrices.sample(matrices, n_in, seed)
    return TensorSums(squares, counts.astype(np.int64))


def written(path: Path, sums: ImportanceSums, *, plain: bool = False) -> Path:
    path.write_bytes(b"".join(encode_gguf(sums, plain=plain)))
    return path


@pytest.mark.parametrize("name", ["tiny.gguf", "trained.gguf"])
def test_files_of_llama_imatrix_are_written_again(name: str) -> None:
    sums = read_sums(IMATRICES / name)
    assert b"".join(encode_gguf(sums)) == (IMATRICES / name).read_bytes()


def test_the_older_format_is_that_of_llama_imatrix() -> None:
    """Both files are of one run."""
    sums = read_sums(IMATRICES / "tiny.gguf")
    assert b"".join(encode_dat(sums)) == (IMATRICES / "tiny.dat").read_bytes()


def test_sums_and_counts() -> None:
    sums = read_sums(IMATRICES / "trained.gguf")
    assert (len(sums.entries), sums.datasets) == (48, ("calibration.txt",))
    assert (sums.chunk_size, sums.chunks) == (256, 40)
    assert sums.entries["blk.3.attn_q.weight"].counts.tolist() == [40 * 256]
    experts = sums.entries["blk.3.ffn_down_exps.weight"]
    assert experts.counts.sum() == 2 * 40 * 256
    assert experts.squares.shape == (8, 512)
    assert experts.n_in == 512
    means = read_imatrix(IMATRICES / "trained.gguf").entries["blk.3.ffn_down_exps.weight"]
    expected = experts.squares / experts.counts[:, None].astype(np.float32)
    np.testing.assert_array_equal(means, expected.reshape(-1))


def test_an_independent_reader_finds_all(tmp_path: Path) -> None:
    entry = tensor(3, 8, 1)
    entry.counts[1] = 0
    reader = gguf.GGUFReader(written(tmp_path / "i.gguf", sums_of(b=entry, a=tensor(1, 4, 2))))
    assert list(reader.fields)[3:] == [
        "general.type",
        "imatrix.datasets",
        "imatrix.chunk_count",
        "imatrix.chunk_size",
    ]
    shapes = {t.name: (t.tensor_type.name, t.shape.tolist()) for t in reader.tensors}
    assert shapes == {
        "a.in_sum2": ("F32", [4]),
        "a.counts": ("F32", [1]),
        "b.in_sum2": ("F32", [8, 3]),
        "b.counts": ("F32", [1, 3]),
    }
    assert list(shapes) == ["a.in_sum2", "a.counts", "b.in_sum2", "b.counts"]
    found = {t.name: t.data for t in reader.tensors}
    np.testing.assert_array_equal(found["b.in_sum2"], entry.squares)
    np.testing.assert_array_equal(found["b.counts"][:, 0], entry.counts)


def test_plain_sums_lie_beside(tmp_path: Path) -> None:
    """Readers of today pass over them."""
    entry = tensor(2, 8, 1)
    plain = TensorSums(entry.squares, entry.counts, -entry.squares.astype(np.float64) / 3)
    path = written(tmp_path / "p.gguf", sums_of(x=plain, y=entry), plain=True)
    names = [t.name for t in gguf.GGUFReader(path).tensors]
    assert names == ["x.in_sum2", "x.counts", "x.in_sum", "y.in_sum2", "y.counts"]
    found = read_sums(path).entries
    np.testing.assert_array_equal(found["x"].plain, plain.plain.astype(np.float32))
    assert found["y"].plain is None
    without = written(tmp_path / "w.gguf", sums_of(x=plain, y=entry))
    for name, values in read_imatrix(without).entries.items():
        np.testing.assert_array_equal(values, read_imatrix(path).entries[name])


def test_plain_sums_of_another_size(tmp_path: Path) -> None:
    entry = TensorSums(np.ones((2, 8)), np.array([1, 2]), np.ones((1, 8)))
    path = written(tmp_path / "p.gguf", sums_of(x=entry), plain=True)
    with pytest.raises(FormatError, match="'x': 8 plain sums, expected 16"):
        read_sums(path)
    assert read_imatrix(path).entries["x"].size == 16


def test_the_older_format_by_hand() -> None:
    """Sums 6, 9 of 3 tokens make two calls of one chunk of 2: means 2, 3 times 2."""
    entry = TensorSums(np.array([[6.0, 9.0], [5.0, 5.0]]), np.array([3, 0]))
    empty = TensorSums(np.zeros((1, 2)), np.array([0]))
    sums = ImportanceSums({"x": entry, "e": empty}, ("a", "b.txt"), 2)
    expected = struct.pack("<iisii4f", 1, 1, b"x", 2, 4, 4, 6, 2, 2)
    assert b"".join(encode_dat(sums)) == expected + struct.pack("<ii", 1, 5) + b"b.txt"


def test_the_older_format_is_read_as_llama_imatrix_does(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    path = imatrices.write_old(tmp_path / "i.dat", {"a": (3, values), "b": (0, values)})
    found = read_sums(path, 128)
    np.testing.assert_array_equal(found.entries["a"].squares, [values * 128])
    counts = {name: entry.counts.tolist() for name, entry in found.entries.items()}
    assert counts == {"a": [3 * 128], "b": [0]}
    assert (found.chunk_size, found.chunks, found.datasets) == (128, 3, ("c.txt",))


def test_sums_of_the_older_format_that_overflow(tmp_path: Path) -> None:
    path = imatrices.write_old(tmp_path / "i.dat", {"a": (3, np.array([3e38], np.float32))})
    with pytest.raises(FormatError, match="'a': value 0 is inf"):
        read_sums(path)


def test_names_are_sorted_by_bytes(tmp_path: Path) -> None:
    sums = sums_of(**{name: tensor(1, 4, 0) for name in ("blk.2", "blk.10", "a\u00e9", "az", "B")})
    path = written(tmp_path / "i.gguf", sums)
    names = [t.name.removesuffix(".counts") for t in gguf.GGUFReader(path).tensors][1::2]
    assert names == ["B", "az", "a\u00e9", "blk.10", "blk.2"]


@pytest.mark.parametrize(
    ("squares", "problem"),
    [
        ([[1.0, -1.0]], "'x.in_sum2': a sum is -1.0"),
        ([[np.nan, 1.0]], "'x.in_sum2': a sum is nan"),
        ([[1.0, 1e39]], "'x.in_sum2': a sum is 1e[+]39"),
    ],
)
def test_sums_that_cannot_be(squares: list[list[float]], problem: str) -> None:
    sums = sums_of(x=TensorSums(np.array(squares), np.array([1])))
    with pytest.raises(LayoutError, match=problem):
        list(encode_gguf(sums))


def test_names_that_llama_cpp_does_not_read() -> None:
    sums = sums_of(**{"n" * 55: tensor(1, 4, 0)})
    assert len(list(encode_gguf(sums))) == 3
    with pytest.raises(LayoutError, match=r"llama\.cpp reads names of up to 63 bytes"):
        list(encode_gguf(sums_of(**{"n" * 56: tensor(1, 4, 0)})))


@pytest.mark.parametrize("chunk_size", [0, 1 << 31, -1])
def test_a_size_of_chunks_that_is_none(tmp_path: Path, chunk_size: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 0)
    writer.add_int64("imatrix.chunk_size", chunk_size)
    for name in ("x.in_sum2", "x.counts"):
        writer.add_tensor(name, np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=f"imatrix.chunk_size is {chunk_size}"):
        read_sums(tmp_path / "i.gguf")


def test_counts_beyond_any_text(tmp_path: Path) -> None:
    counts = np.array([1e19], np.float32)
    path = imatrices.write_gguf(tmp_path / "i.gguf", {"x": (np.ones((1, 2), np.float32), counts)})
    for read in (read_imatrix, read_sums):
        with pytest.raises(FormatError, match=r"'x': a count of 1e\+19"):
            read(path)


def test_merging_adds() -> None:
    a, b = sums_of(x=tensor(2, 4, 1), y=tensor(1, 4, 2)), sums_of(x=tensor(2, 4, 3))
    merged = merge_sums([a, b])
    x = merged.entries["x"]
    expected = a.entries["x"].squares.astype(float) + b.entries["x"].squares
    np.testing.assert_array_equal(x.squares, expected)
    np.testing.assert_array_equal(x.counts, a.entries["x"].counts + b.entries["x"].counts)
    np.testing.assert_array_equal(merged.entries["y"].squares, a.entries["y"].squares)
    assert merged.datasets == ("text.txt", "text.txt")
    assert (merged.chunk_size, merge_sums([a, b], 8).chunk_size) == (4, 8)
    assert merged.chunks == max(x.counts.max(), merged.entries["y"].counts.max()) // 4


@pytest.mark.parametrize("first", [True, False])
def test_one_count_spreads_over_experts(first: bool) -> None:
    """As of a file in the older format, which is flat."""
    many, one = tensor(3, 4, 1), tensor(3, 4, 2)
    flat = TensorSums(one.squares.reshape(1, -1), np.array([10]))
    parts = [sums_of(x=flat), sums_of(x=many)]
    merged = merge_sums(parts if first else parts[::-1]).entries["x"]
    np.testing.assert_array_equal(merged.counts, many.counts + 10)
    np.testing.assert_array_equal(merged.squares, many.squares.astype(float) + one.squares)


def test_plain_sums_are_merged_where_all_have_them() -> None:
    a = tensor(1, 4, 1)
    with_plain = TensorSums(a.squares, a.counts, np.ones((1, 4)))
    both = merge_sums([sums_of(x=with_plain), sums_of(x=with_plain)]).entries["x"]
    np.testing.assert_array_equal(both.plain, np.full((1, 4), 2))
    assert merge_sums([sums_of(x=with_plain), sums_of(x=a)]).entries["x"].plain is None


def test_parts_stay_as_they_are() -> None:
    part = sums_of(x=tensor(1, 4, 1))
    before = part.entries["x"].squares.copy()
    merge_sums([part, part, part])
    np.testing.assert_array_equal(part.entries["x"].squares, before)


@pytest.mark.parametrize("other", [tensor(2, 4, 0), tensor(4, 2, 0), tensor(3, 8, 0)])
def test_sums_of_other_models_are_not_merged(other: TensorSums) -> None:
    with pytest.raises(LayoutError, match=r"'x': sums of .* of the same model"):
        merge_sums([sums_of(x=tensor(3, 4, 0)), sums_of(x=other)])


def test_nothing_to_merge() -> None:
    with pytest.raises(RequestError, match="no importance matrices"):
        merge_sums([])


counts = st.integers(0, 1 << 24)
floats = st.floats(0, float(np.float32(1e30)), width=32)


@given(data=st.data(), matrices=st.integers(1, 4), n_in=st.integers(1, 9))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, matrices: int, n_in: int
) -> None:
    squares = data.draw(st_numpy.arrays(np.float32, (matrices, n_in), elements=floats))
    entry = TensorSums(squares, data.draw(st_numpy.arrays(np.int64, matrices, elements=counts)))
    path = written(tmp_path_factory.mktemp("i") / "i.gguf", sums_of(x=entry))
    found = read_sums(path)
    np.testing.assert_array_equal(found.entries["x"].squares, squares)
    np.testing.assert_array_equal(found.entries["x"].counts, entry.counts)
    assert (found.datasets, found.chunk_size) == (("text.txt",), 4)


def test_numbers_that_the_formats_do_not_hold() -> None:
    many = ImportanceSums({"x": TensorSums(np.ones((1, 2)), np.array([1 << 40]))}, (), 1)
    for encode in (encode_gguf, encode_dat):
        with pytest.raises(LayoutError, match="an importance matrix of 1,099,511,627,776 chunks"):
            list(encode(many))
    large = ImportanceSums({"x": TensorSums(np.full((2, 2), 3e38), np.array([1, 1000]))}, (), 1)
    with pytest.raises(LayoutError, match="'x': a sum is inf"):
        list(encode_dat(large))
