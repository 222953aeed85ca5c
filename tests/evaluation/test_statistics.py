"""Statistics of importance matrices: those of llama-imatrix --show-statistics, and experts' use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support import DATA
from weightcast.evaluation.statistics import (
    TensorStatistics,
    expert_use,
    layer_statistics,
    tensor_statistics,
)
from weightcast.formats.gguf.imatrix import read_sums
from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums

TRAINED = read_sums(DATA / "imatrix" / "trained.gguf")
PRINTED = [
    line.split("\t")
    for line in (DATA / "imatrix" / "trained-statistics.txt").read_text().splitlines()
]


def sums_of(**entries: tuple[list[list[float]], list[int]]) -> ImportanceSums:
    made = {
        name: TensorSums(np.array(squares, np.float64), np.array(counts, np.int64))
        for name, (squares, counts) in entries.items()
    }
    return ImportanceSums(made, (), 4)


def one(sums: ImportanceSums) -> TensorStatistics:
    (found,) = tensor_statistics(sums)
    return found


def agrees(found: float, printed: str) -> bool:
    """Equal to the digits printed, but for what llama-imatrix loses in sums of float32."""
    digits = len(printed.rstrip("%").partition(".")[2])
    expected = float(printed.rstrip("%"))
    return abs(found - expected) <= 10**-digits + 5e-6 * abs(expected)


def test_tensors_are_as_llama_imatrix_prints_them() -> None:
    found = {each.name: each for each in tensor_statistics(TRAINED)}
    rows = [row for row in PRINTED if len(row) > 4]
    assert len(rows) == len(found) == 48
    for layer, tensor, *printed in rows:
        each = found[f"blk.{layer}.{tensor}.weight"]
        figures = [
            each.total,
            each.least,
            each.largest,
            each.mean,
            each.deviation,
            100 * each.active,
            each.columns,
            each.entropy,
            100 * each.entropy_norm,
            100 * each.zd,
            each.cosine,
        ]
        assert each.layer == int(layer)
        for value, text in zip(figures, printed, strict=True):
            assert agrees(value, text), (each, text)


def test_layers_are_as_llama_imatrix_prints_them() -> None:
    found = layer_statistics(tensor_statistics(TRAINED))
    rows = [row for row in PRINTED if len(row) == 4]
    assert [each.layer for each in found] == [int(row[0]) for row in rows] == [*range(6)]
    for each, (_, *printed) in zip(found, rows, strict=True):
        for value, text in zip((each.total, 100 * each.zd, each.cosine), printed, strict=True):
            assert agrees(value, text), (each, text)


def test_figures_by_hand() -> None:
    """Means 1, 3 of the first expert and 0, 0 of the third; the second saw no token."""
    found = one(sums_of(x=([[2, 6], [0, 0], [0, 0]], [2, 0, 5])))
    assert (found.layer, found.columns, found.total) == (None, 4, 4)
    assert (found.least, found.largest, found.mean) == (0, 3, 1)
    assert found.deviation == pytest.approx(math.sqrt(10 / 4 - 1))
    assert found.active == 0.5
    assert found.entropy == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    assert found.entropy_norm == pytest.approx(found.entropy / 2)
    assert found.zd == 0.25
    np.testing.assert_array_equal(found.active_columns, [1, np.nan, 0])


def test_cosines_are_of_raw_sums() -> None:
    a, b = [[3, 4]], [[4, 3]]
    sums = sums_of(
        **{"blk.9.q.weight": (a, [1]), "blk.10.q.weight": (b, [100]), "blk.12.q.weight": (a, [1])}
    )
    found = {each.layer: each.cosine for each in tensor_statistics(sums)}
    assert found == {9: 0, 10: pytest.approx(24 / 25), 12: 0}


def test_zeros_have_figures_too() -> None:
    found = one(sums_of(x=([[0, 0]], [3])))
    assert (found.total, found.entropy, found.zd, found.active) == (0, 0, 0, 0)
    assert one(sums_of(x=([[5]], [1]))).entropy_norm == 0


def test_tensors_without_tokens_are_left_out() -> None:
    assert tensor_statistics(sums_of(x=([[0, 0]], [0]))) == []
    assert layer_statistics(tensor_statistics(sums_of(x=([[1, 1]], [1])))) == []


def test_layers_are_weighted_by_columns() -> None:
    sums = sums_of(**{"blk.0.a": ([[1, 1, 1]], [1]), "blk.0.b": ([[5]], [1])})
    (found,) = layer_statistics(tensor_statistics(sums))
    assert found.total == pytest.approx((3 * 3 + 5 * 1) / 4)


def test_use_of_experts() -> None:
    """100 tokens to 2 of 4 experts each; 20 tokens for one make 100 with 4 times as much more."""
    experts = ([[1, 1]] * 4, [80, 20, 0, 100])
    sums = sums_of(
        **{
            "blk.1.up": experts,
            "blk.1.gate": experts,
            "blk.1.q": ([[1]], [100]),
            "blk.0.up": ([[1]] * 2, [100, 100]),
        }
    )
    zero, found = expert_use(sums, 100)
    assert (zero.layer, zero.tensors, zero.rare) == (0, ("blk.0.up",), ())
    assert (found.layer, found.tensors) == (1, ("blk.1.gate", "blk.1.up"))
    np.testing.assert_array_equal(found.tokens, [80, 20, 0, 100])
    np.testing.assert_array_equal(found.shares, [0.4, 0.1, 0, 0.5])
    needs = {each.expert: (each.tokens, each.more_text) for each in found.rare}
    assert needs == {0: (80, 25), 1: (20, 400), 2: (0, None)}


def test_use_in_a_trained_model() -> None:
    found = expert_use(TRAINED, fewest=1000)
    assert [use.layer for use in found] == [*range(6)]
    assert all(len(use.tensors) == 3 and use.shares.sum() == 1 for use in found)
    assert [[each.expert for each in use.rare] for use in found] == [[], [], [], [0], [], [7]]
