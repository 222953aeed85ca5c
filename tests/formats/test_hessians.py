"""Files of second moments: what is found in them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import hessians
from weightcast.errors import CheckpointError, FormatError
from weightcast.formats.hessians import read_hessians

ONE = np.arange(9, dtype=np.float32).reshape(3, 3) + 1
MANY = np.arange(18, dtype=np.float32).reshape(2, 3, 3) + 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hessians.write(tmp_path / "h.safetensors", {"one": ONE, "many": MANY})


def test_entries_are_found_by_tensor_and_matrix(path: Path) -> None:
    found = read_hessians(path)
    assert found.tokens == 1000
    one = found.find("one", 0, 1, 3)
    assert one is not None
    np.testing.assert_array_equal(one.open(), ONE)
    np.testing.assert_array_equal(one.diagonal(), np.diag(ONE))
    for number in range(2):
        of = found.find("many", number, 2, 3)
        assert of is not None
        np.testing.assert_array_equal(of.open(), MANY[number])
        assert of == found.find("many", number, None, 3)
    assert found.find("other", 0, 1, 3) is None


def test_one_matrix_is_for_all_experts(path: Path) -> None:
    found = read_hessians(path)
    assert found.find("one", 0, 2, 3) == found.find("one", 1, 2, 3) != found.find("many", 0, 2, 3)


@pytest.mark.parametrize(
    ("asked", "values", "expected"),
    [
        (("one", 0, 1, 4), "[3, 3]", "[4, 4]"),
        (("many", 0, 3, 3), "[2, 3, 3]", "[3, 3, 3]"),
        (("many", 2, None, 3), "[2, 3, 3]", "[3, 3]"),
    ],
)
def test_another_size_is_refused(path: Path, asked: Any, values: str, expected: str) -> None:
    told = (
        f"{path}: {asked[0]!r}: {values} values, expected {expected}; the file belongs to another"
    )
    with pytest.raises(CheckpointError, match=re.escape(told)):
        read_hessians(path).find(*asked)


@pytest.mark.parametrize(
    ("entries", "metadata", "problem"),
    [
        ({"w": ONE}, {}, "not second moments: no `tokens` in metadata"),
        ({"w": ONE}, {"tokens": "many"}, "`tokens` in its metadata are 'many', not a number"),
        ({"w": ONE}, {"tokens": "0"}, "not a number"),
        ({"w": ONE.astype("f8")}, None, "'w': F64 [3, 3], expected F32 [in, in]"),
        ({"w": ONE[:2]}, None, "'w': F32 [2, 3], expected F32 [in, in]"),
        ({"w": ONE[0]}, None, "'w': F32 [3], expected F32 [in, in]"),
        ({}, None, "no second moments"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, entries: Any, metadata: dict[str, str] | None, problem: str
) -> None:
    path = hessians.write(tmp_path / "h.safetensors", entries, metadata)
    with pytest.raises(FormatError, match=re.escape(problem)):
        read_hessians(path)


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_a_diagonal_that_is_none_is_refused(tmp_path: Path, bad: float) -> None:
    values = ONE.copy()
    values[1, 1] = bad
    moments = read_hessians(hessians.write(tmp_path / "h", {"w": values})).find("w", 0, 1, 3)
    assert moments is not None
    with pytest.raises(CheckpointError, match=r"h: 'w': negative, infinite or NaN on the diagonal"):
        moments.diagonal()


def test_a_file_that_is_cut_while_it_is_read_is_refused(path: Path) -> None:
    moments = read_hessians(path).find("many", 1, 2, 3)
    assert moments is not None
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        moments.open()
