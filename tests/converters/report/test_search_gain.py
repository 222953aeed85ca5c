"""What a search gains, measured against ggml's rule and told in every form of a report."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import weightcast
from tests import imatrices
from tests.support import DATA, GOLDEN
from weightcast.commands.text.summary import summary_lines
from weightcast.converters.convert import plan_conversion
from weightcast.converters.report import json_values, read_report, search_text, summary
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import LimitError
from weightcast.quant.cpu import library
from weightcast.quant.types import IQ4_NL, MXFP4, NVFP4, Q4_0, Q5_0

WIDE = GOLDEN / "wide"
SCHEMA = json.loads((DATA.parents[1] / "docs" / "report.schema.json").read_text())
# Whose last byte has codes.
CHANGED = {t.ggml_id for t in (Q4_0, Q5_0, IQ4_NL, MXFP4, NVFP4)}


@pytest.fixture
def other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the search change a code of each row, so that its errors are others than ggml's."""
    real: Callable[..., int] = library.load().weightcast_quantize_least_error

    def quantize(source: Any, factors: Any, kind: int, effort: int, dst: int, *rest: Any) -> int:
        status = real(source, factors, kind, effort, dst, *rest)
        for row in range(source._obj.n_out if kind in CHANGED else 0):
            ctypes.c_uint8.from_address(dst + (row + 1) * rest[0] - 1).value ^= 0x11
        return status

    monkeypatch.setattr(library.load(), "weightcast_quantize_least_error", quantize)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = dict(shapes_of(open_graph(WIDE)))
    path = tmp_path_factory.mktemp("imatrix") / "wide.gguf"
    return imatrices.write_gguf(path, imatrices.model_entries(shapes))


def convert(output: Path, report: Path, **options: Any) -> dict[str, Any]:
    """Convert, and give the output's part of the report, which follows the schema."""
    weightcast.convert(WIDE, output, no_tokenizer=True, report=report, **options)
    values = json.loads(report.read_text())
    jsonschema.validate(values, SCHEMA)
    assert json_values(read_report(report)) == values
    return values["outputs"][0]


def check_gain(searched: dict[str, Any], by_ggml: dict[str, Any]) -> None:
    """Hold the gain of some weights to the errors of both rules."""
    gain = searched["search"]
    assert gain["ggml_error_squares"] == by_ggml["error_squares"]
    assert gain["gained_db"] == decibels(by_ggml["error_squares"], searched["error_squares"])
    weighted = searched["weighted"], by_ggml["weighted"]
    if weighted[0] is None:
        assert gain["ggml_weighted_error_squares"] is gain["weighted_gained_db"] is None
    elif weighted[1] is not None:
        squares = [each["error_squares"] for each in weighted]
        assert gain["ggml_weighted_error_squares"] == squares[1]
        assert gain["weighted_gained_db"] == decibels(squares[1], squares[0])


def replaced(by_ggml: dict[str, Any], searched: dict[str, Any]) -> dict[str, Any]:
    """Take the errors of ggml's rule from where it has the same global scale."""
    gain = searched["search"]
    weighted = by_ggml["weighted"]
    if weighted is not None:
        weighted = {**weighted, "error_squares": gain["ggml_weighted_error_squares"]}
    return {**by_ggml, "error_squares": gain["ggml_error_squares"], "weighted": weighted}


def decibels(before: float, after: float) -> float | None:
    return 10 * math.log10(before / after) if before and after else None


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.usefixtures("other_bytes")
def test_gains_are_those_of_two_conversions(
    jobs: int, is_weighted: bool, imatrix: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"imatrix": imatrix} if is_weighted else {}
    by_ggml = convert(tmp_path / "g-Q4_0.gguf", tmp_path / "g.json", **given)
    searched = convert(
        tmp_path / "s-Q4_0.gguf", tmp_path / "s.json", search="least-error", jobs=jobs, **given
    )
    pairs = list(zip(searched["tensors"], by_ggml["tensors"], strict=True))
    for tensor, other in pairs:
        is_made = tensor["type"] != "F32"
        assert ("search" in tensor["metrics"]) == is_made
        if is_made:
            check_gain(tensor["metrics"], other["metrics"])
        for expert, its in zip(tensor["experts"], other["experts"], strict=True):
            check_gain(expert, its)
    assert any(tensor["experts"] for tensor, _ in pairs)
    changed = [t for t, _ in pairs if t["type"] == "Q4_0"]
    assert changed
    assert all(tensor["metrics"]["search"]["gained_db"] != 0 for tensor in changed)
    total = searched["total"]
    assert total["search"]["gained_db"] == pytest.approx(
        decibels(by_ggml["total"]["error_squares"], total["error_squares"]), rel=1e-9
    )
    roles = {role["kind"]: role["metrics"] for role in searched["kinds"]}
    assert "search" in roles["attn_q"]
    assert "search" not in roles["attn_norm"]


@pytest.mark.usefixtures("other_bytes")
def test_directories_of_4_bit_floats_are_compared(imatrix: Path, tmp_path: Path) -> None:
    by_ggml = convert(tmp_path / "g-nvfp4", tmp_path / "g.json")
    searched = convert(
        tmp_path / "s-nvfp4", tmp_path / "s.json", search="least-error", imatrix=imatrix
    )
    compared = 0
    for tensor, other in zip(searched["tensors"], by_ggml["tensors"], strict=True):
        assert ("search" in tensor["metrics"]) == (tensor["type"] == "NVFP4")
        if tensor["type"] == "NVFP4":
            # ggml's rule has the same global scale here, and none in a directory of its own.
            squares = tensor["metrics"]["search"]["ggml_error_squares"]
            assert squares == pytest.approx(other["metrics"]["error_squares"], rel=0.02)
            check_gain(tensor["metrics"], replaced(other["metrics"], tensor["metrics"]))
            compared += tensor["metrics"]["search"]["gained_db"] != 0
    assert compared


@pytest.mark.parametrize("name", ["fp8", "fp8-block"])
def test_8_bit_floats_gain(name: str, tmp_path: Path) -> None:
    by_ggml = convert(tmp_path / f"g-{name}", tmp_path / "g.json")
    searched = convert(tmp_path / f"s-{name}", tmp_path / "s.json", search="least-error")
    for tensor, other in zip(searched["tensors"], by_ggml["tensors"], strict=True):
        if tensor["type"] == name.upper():
            check_gain(tensor["metrics"], other["metrics"])
    total = searched["total"]["search"]
    assert total["gained_db"] > 0
    text = summary([read_report(tmp_path / "s.json")])
    assert f"Least-error search: {total['gained_db']:.2f} dB better than the plain rule." in text


@pytest.mark.parametrize("name", ["m-int4-g32", "m-F16.gguf", "m-int8-g32-gptq"])
def test_what_both_rules_make_alike_is_not_compared(name: str, tmp_path: Path) -> None:
    found = convert(tmp_path / name, tmp_path / "r.json", search="least-error")
    assert not any("search" in tensor["metrics"] for tensor in found["tensors"])
    assert "search" not in found["total"]


def test_nothing_is_compared_without_a_report(tmp_path: Path) -> None:
    done = weightcast.convert(
        WIDE, tmp_path / "m-Q4_0.gguf", no_tokenizer=True, search="least-error", baseline="stored"
    )
    assert done.errors is not None
    assert done.errors.outputs[0].total.search is None


@pytest.mark.usefixtures("other_bytes")
def test_a_run_that_goes_on_knows_what_was_compared(tmp_path: Path) -> None:
    made, report = tmp_path / "m-Q4_0.gguf", tmp_path / "r.json"
    options = {"no_tokenizer": True, "search": "least-error"}
    wanted = convert(tmp_path / "w-Q4_0.gguf", tmp_path / "w.json", search="least-error")

    def stop(found: object) -> None:
        raise LimitError("closed")

    for report_of_first in (tmp_path / "first.json", None):
        first = ConvertOptions(**options, report=report_of_first, baseline="stored")
        with pytest.raises(LimitError):
            plan_conversion(WIDE, [made], first).run(gate=stop)
        found = convert(made, report, search="least-error")
        assert [t["metrics"] for t in found["tensors"]] == [t["metrics"] for t in wanted["tensors"]]
        made.unlink()


@pytest.mark.usefixtures("other_bytes")
def test_every_form_tells_the_gain(imatrix: Path, tmp_path: Path) -> None:
    path, report = tmp_path / "s-Q4_0.gguf", tmp_path / "s.json"
    done = weightcast.convert(
        WIDE,
        path,
        no_tokenizer=True,
        report=report,
        search="least-error",
        imatrix=imatrix,
        bundle=True,
    )
    assert done.errors is not None
    told = search_text(done.errors.outputs[0])
    assert "dB worse than ggml's rule by importance, " in told
    assert f"  least-error search: {told}" in list(summary_lines(done))
    text = summary([read_report(report)])
    assert f"Least-error search: {told}." in text
    assert text.count("gain of the search") == 2  # of outputs, and of kinds
    assert f"Least-error search: {told}." in (tmp_path / "s-Q4_0.README.md").read_text()
