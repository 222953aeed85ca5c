"""Importance matrices get their names when they are whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support import DATA
from weightcast.errors import LayoutError
from weightcast.evaluation.importance_files import write_dat_imatrix, write_gguf_imatrix
from weightcast.formats.gguf.imatrix import read_imatrix, read_sums
from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums

IMATRICES = DATA / "imatrix"


def test_both_formats(tmp_path: Path) -> None:
    sums = read_sums(IMATRICES / "tiny.gguf")
    write_gguf_imatrix(tmp_path / "i.gguf", sums)
    write_dat_imatrix(tmp_path / "i.dat", sums)
    for name in ("gguf", "dat"):
        found, expected = tmp_path / f"i.{name}", IMATRICES / f"tiny.{name}"
        assert found.read_bytes() == expected.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["i.dat", "i.gguf"]


def test_what_cannot_be_written_leaves_an_earlier_file(tmp_path: Path) -> None:
    """The second tensor is found to be bad when the first is written."""
    path = tmp_path / "i.gguf"
    write_gguf_imatrix(path, read_sums(IMATRICES / "tiny.gguf"))
    good = TensorSums(np.ones((1, 2)), np.array([1]))
    bad = TensorSums(np.full((1, 2), np.nan), np.array([1]))
    with pytest.raises(LayoutError, match=r"'b\.in_sum2': a sum is nan"):
        write_gguf_imatrix(path, ImportanceSums({"a": good, "b": bad}, ()))
    assert path.read_bytes() == (IMATRICES / "tiny.gguf").read_bytes()
    assert os.listdir(tmp_path) == ["i.gguf"]


def test_a_merged_file_is_read(tmp_path: Path) -> None:
    """Sums of float64 and plain ones beside: means are those of float64, rounded."""
    squares, counts = np.array([[1.0, 2.0], [3.0, 5.0]]) / 3, np.array([7, 0])
    sums = ImportanceSums({"x": TensorSums(squares, counts, squares - 1)}, ("a", "b"), 4)
    write_gguf_imatrix(tmp_path / "i.gguf", sums, plain=True)
    found = read_imatrix(tmp_path / "i.gguf")
    expected = squares[0].astype(np.float32) / np.float32(7)
    np.testing.assert_array_equal(found.entries["x"], [*expected, 1, 1])
    assert (found.unused, found.datasets, found.chunks) == ({"x": (1,)}, ("a", "b"), 1)
