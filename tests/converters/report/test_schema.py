"""Error reports are read and written as the schema says; anything else is refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.converters.report import error_reports
from weightcast.converters.report.json_schema import schema_text
from weightcast.converters.report.schema import json_values, read_report
from weightcast.converters.report.show import write_report
from weightcast.errors import CheckpointError, FormatError

SCHEMA = Path(__file__).parents[3] / "docs/report.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


@pytest.fixture(scope="module")
def valid() -> error_reports.Json:
    outputs = [
        error_reports.grok1_output("Q8_0", layers=2, experts=2),
        error_reports.grok1_output("Q4_K_M", layers=2, experts=2, imatrix="a.imatrix"),
    ]
    outputs[1]["recipe"]["rules"] = [error_reports.rule("attn_v", "Q8_0", "--tensor-type")]
    report = error_reports.report(outputs)
    report["limits"] = [{"metric": "sqnr_db", "limit": 20.0, "kind": "attn_v"}]
    return {key: report[key] for key in (*list(report)[:5], "limits", "outputs")}


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "report.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_schema_is_generated_from_the_model() -> None:
    """Else run: python -m weightcast.converters.report.json_schema > docs/report.schema.json"""
    assert SCHEMA.read_text() == schema_text()


def test_what_is_read_is_written_again(valid: error_reports.Json, tmp_path: Path) -> None:
    path, again = written(tmp_path, json.dumps(valid, indent=1) + "\n"), tmp_path / "again.json"
    report = read_report(path)
    assert json_values(report) == valid
    write_report(again, report)
    assert again.read_bytes() == path.read_bytes()


def test_reports_without_limits_stay_as_they_were(
    valid: error_reports.Json, tmp_path: Path
) -> None:
    older = {key: value for key, value in valid.items() if key != "limits"}
    VALIDATOR.validate(older)
    report = read_report(written(tmp_path, older))
    assert report.limits == ()
    assert json_values(report) == older


def test_what_the_schema_allows_is_read(valid: error_reports.Json, tmp_path: Path) -> None:
    VALIDATOR.validate(valid)
    report = read_report(written(tmp_path, valid))
    output = report.outputs[1]
    assert (report.source.path, report.baseline) == ("grok-1/ckpt-0", "stored")
    assert (output.type, output.imatrix, output.recipe.rules[0].pattern) == (
        "Q4_K_M",
        "a.imatrix",
        "attn_v",
    )
    assert [role.role for role in output.roles] == [k["kind"] for k in valid["outputs"][1]["kinds"]]
    tensor, expected = output.tensors[8], valid["outputs"][1]["tensors"][8]
    assert (tensor.name, tensor.shape) == ("blk.0.ffn_gate_exps.weight", (2, 32768, 6144))
    assert tensor.metrics.sqnr_db == expected["metrics"]["sqnr_db"]
    assert [each.relative_rms for each in tensor.experts] == [
        each["relative_rms"] for each in expected["experts"]
    ]
    assert tensor.worst_rows[0].row == expected["worst_rows"][0]["row"]
    assert output.total.weighted is not None
    assert report.outputs[0].total.sqnr_db is None


def _put(value: Any, place: str, new: object) -> None:
    *way, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    for key in way:
        value = value[key]
    if new is ...:
        del value[last]
    else:
        value[last] = new


TENSOR = "outputs/1/tensors/8"


@pytest.mark.parametrize(
    ("place", "new", "problem"),
    [
        ("source", ..., "report: source is missing"),
        ("more", 1, "report: unknown key 'more'"),
        ("generator", 3, "generator is 3, not text"),
        ("source/parameters", -1, "source.parameters is -1, not a count"),
        ("source/parameters", 1 << 63, "not a count"),
        ("source/hyperparameters", [], "source.hyperparameters is [], not an object"),
        ("baseline", "f32", "baseline is 'f32'; known: stored, bf16"),
        ("outputs", {}, "outputs is {}, not a list"),
        ("limits", None, "limits is None, not a list"),
        ("limits/0/metric", "rms", "limits[0].metric is 'rms'; known: relative_rms, sqnr_db"),
        ("limits/0/limit", None, "limits[0].limit is None, not a number"),
        ("limits/0/kind", ..., "limits[0]: kind is missing"),
        ("outputs/0", [], "outputs[0] is [], not an object"),
        (
            "outputs/0/kind",
            "onnx",
            "outputs[0].kind is 'onnx'; known: gguf, peft, safetensors, shards",
        ),
        ("outputs/0/recipe/pure", 1, "outputs[0].recipe.pure is 1, not true or false"),
        ("outputs/1/recipe/rules/0/type", None, "outputs[1].recipe.rules[0].type is None"),
        ("outputs/0/bytes", True, "outputs[0].bytes is True, not a count"),
        ("outputs/0/bits_per_weight", -0.5, "outputs[0].bits_per_weight is -0.5"),
        ("outputs/0/bits_per_weight", None, "outputs[0].bits_per_weight is None"),
        (f"{TENSOR}/layer", "0", "outputs[1].tensors[8].layer is '0', not a count"),
        (f"{TENSOR}/shape/1", 0, "outputs[1].tensors[8].shape[1] is 0, not a count of 1 or more"),
        (f"{TENSOR}/metrics/sqnr_db", "22", "tensors[8].metrics.sqnr_db is '22', not a finite"),
        (f"{TENSOR}/metrics/cosine", False, "tensors[8].metrics.cosine is False, not a finite"),
        (f"{TENSOR}/metrics/cosine", -1.5, "cosine is -1.5, not a number of -1 or more"),
        (f"{TENSOR}/metrics/cosine", 1.5, "cosine is 1.5, not a number of 1 or less"),
        (f"{TENSOR}/metrics/mean_error", 10**400, "tensors[8].metrics.mean_error is 1000"),
        (f"{TENSOR}/metrics/share_exact", 1.5, "share_exact is 1.5, not a share of 1"),
        (f"{TENSOR}/metrics/histogram", [1] * 31, "histogram has 31 numbers, not 32"),
        (f"{TENSOR}/experts/1/weighted/sqnr_db", ..., "experts[1].weighted: sqnr_db is missing"),
        (f"{TENSOR}/worst_rows/0/row", 1.5, "tensors[8].worst_rows[0].row is 1.5, not a count"),
    ],
)
def test_what_the_schema_forbids_is_refused_by_place(
    valid: error_reports.Json, tmp_path: Path, place: str, new: object, problem: str
) -> None:
    value = copy.deepcopy(valid)
    _put(value, place, new)
    if new not in (1 << 63, 10**400):  # JSON has no largest number
        assert not VALIDATOR.is_valid(value)
    path = written(tmp_path, value)
    with pytest.raises(FormatError) as error:
        read_report(path)
    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Find every place in a value, but of lists only the first item."""
    yield place
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def test_schema_and_reader_refuse_the_same(valid: error_reports.Json, tmp_path: Path) -> None:
    value = copy.deepcopy(valid)
    del value["outputs"][0]
    output = value["outputs"][0]
    del output["tensors"][:8], output["tensors"][1:], output["kinds"][1:]
    output["tensors"][0]["experts"] = []  # each would be as its tensor
    refused = 0
    for place in list(places(value))[1:]:
        if "hyperparameters" in place[:-1]:
            continue  # anything may be in there
        *way, last = place
        holder = value
        for step in way:
            holder = holder[step]
        before = holder[last]
        more = {**before, "x": 1} if isinstance(before, dict) else {}
        for new in (None, True, -2, 0, 1, 0.5, 1.5, "x", "gguf", [], [-1], [1, 2], {}, more):
            holder[last] = new
            is_valid = VALIDATOR.is_valid(value)
            try:
                read_report(written(tmp_path, value))
            except FormatError:
                assert not is_valid, (place, new)
                refused += 1
            else:
                assert is_valid, (place, new)
        holder[last] = before
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-1], "not valid JSON"),
        (lambda text: text.replace('"sqnr_db": null', '"sqnr_db": NaN', 1), "not valid JSON"),
        (lambda text: "[" * 100_000, "not valid JSON"),
        (lambda text: "[]", "not an error report"),
        (lambda text: '{"tensors": []}', "not an error report"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "reads 1: upgrade it"),
        (lambda text: text.replace('"version": 1', '"version": 0'), "version 0 of reports does"),
        (lambda text: text.replace('"version": 1', '"version": true'), "version True of reports"),
        (lambda text: text.replace('"sqnr_db": null', '"sqnr_db": 1e999', 1), "not a finite"),
        (lambda text: text.replace('"grok-1"', '"\\ud800"', 1), None),
    ],
)
def test_other_files(
    valid: error_reports.Json, tmp_path: Path, change: Callable[[str], str], problem: str | None
) -> None:
    path = written(tmp_path, change(json.dumps(valid)))
    if problem is None:
        assert read_report(path).source.family == "\ud800"
        return
    with pytest.raises(FormatError, match=problem):
        read_report(path)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightcast.converters.report.schema.MAX_REPORT_BYTES", 100)
    with pytest.raises(FormatError, match="larger than 100 bytes"):
        read_report(written(tmp_path, " " * 101))
    with pytest.raises(CheckpointError, match="no such file"):
        read_report(tmp_path / "none.json")
