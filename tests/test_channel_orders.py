"""benchmarks/channel_orders.py: means over orders, and that cells are those of least_error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import weightcast
from benchmarks import channel_orders, objectives
from benchmarks.channel_orders import over_orders, ratios_of
from benchmarks.least_error import Cell, Measured


def test_means_over_orders_have_standard_errors() -> None:
    found = over_orders([0.5, 2, 1, 1])
    assert found["value"] == pytest.approx(1)
    assert found["error"] == pytest.approx(np.log(2) * np.sqrt(2 / 3 / 4))
    assert found["z"] == pytest.approx(0)
    assert over_orders([0.9])["error"] == np.inf


def test_ratios_are_of_what_counts() -> None:
    """Of weighted errors with importance; the typical one is of pairs."""
    ours = Measured(1, 0.3, 0.1, 1, "", {"divergence": np.array([1.0, 9]), "loss": np.ones(2)})
    ggml = Measured(1, 0.2, 0.4, 1, "", {"divergence": np.array([2.0, 2]), "loss": np.ones(2)})
    plain, weighed = (Cell("m-order-2", "Q4_K", "effort-2", with_) for with_ in (False, True))
    found = ratios_of(2, plain, ours, ggml)
    assert (found.order, found.mean) == (2, 2.5)
    assert found.error == pytest.approx(1.5)
    assert found.typical == pytest.approx(1.5)
    assert ratios_of(2, weighed, ours, ggml).error == pytest.approx(0.25)


def test_the_example_is_measured_in_two_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_orders, "CASES", (("grok", False, ("Q2_K",)),))
    output = tmp_path / "r.json"
    options = ["--folder", tmp_path, "--orders", "2,3", "--searches", "effort-1"]
    options = [*map(str, options), "--output", str(output)]
    pages = []
    for _ in range(2):
        result = CliRunner().invoke(channel_orders.main, options, catch_exceptions=False)
        assert result.exit_code == 0
        pages.append(output.with_suffix(".md").read_text())
    assert pages[0] == pages[1]
    (line,) = json.loads(output.read_text())["lines"]
    assert [each["order"] for each in line["orders"]] == [2, 3]
    assert line["error"]["value"] < 0.95
    assert len(list(tmp_path.glob("grok-order-*/cells-*/*.npz"))) == 4


def test_large_weights_can_count_for_more() -> None:
    """Their errors become smaller, and those of all others larger."""
    x = np.random.default_rng(5).standard_t(4, (6, 512)).astype(np.float32)

    def errors(blocks: np.ndarray) -> tuple[float, float]:
        error = np.square(x - weightcast.dequantize(blocks, "Q3_K"))
        return float(error.sum()), float((error * np.square(x)).sum())

    plain = errors(weightcast.quantize(x, "Q3_K", search="least-error"))
    of_large = errors(objectives.large_one(x, "Q3_K", None))
    assert of_large[0] > plain[0]
    assert of_large[1] < plain[1]


def test_rows_without_outliers_stay_as_they_are() -> None:
    x = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float32)
    x[2, 300] = 25
    plain = weightcast.quantize(x, "IQ2_S", search="least-error")
    found = objectives.outliers(x, "IQ2_S", None)
    assert [bool(changed) for changed in (found != plain).any(-1)] == [False, False, True, False]
    before, after = (weightcast.dequantize(blocks, "IQ2_S")[2, 300] for blocks in (plain, found))
    assert abs(after - 25) < 1 < abs(before - 25)
    np.testing.assert_array_equal(objectives.outliers(x[:2], "IQ2_S", None), plain[:2])
