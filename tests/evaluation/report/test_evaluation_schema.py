"""Evaluations are read and written as the schema says; anything else is refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.evaluation.report.evaluations import CONTEXT, Json, evaluation
from weightcast.errors import CheckpointError, FormatError
from weightcast.evaluation.divergence import KLStatistics
from weightcast.evaluation.report import json_text, json_values, read_evaluation, report_of
from weightcast.evaluation.report.json_schema import schema_text
from weightcast.evaluation.report.schema import Statistics

SCHEMA = Path(__file__).parents[3] / "docs/evaluation.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


@pytest.fixture(scope="module")
def valid() -> Json:
    return json_values(report_of(evaluation(isolated=True), lambda token: f"<{token}>"))


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "evaluation.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_schema_is_generated_from_the_model() -> None:
    """Else run: python -m weightcast.evaluation.report.json_schema > docs/evaluation.schema.json"""
    assert SCHEMA.read_text() == schema_text()


def test_statistics_are_all_of_them() -> None:
    assert [each.name for each in fields(Statistics)] == [
        each.name for each in fields(KLStatistics)
    ]


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("routed", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, routed: bool, isolated: bool) -> None:
    found = evaluation(routed=routed, isolated=isolated)
    report = report_of(found)
    VALIDATOR.validate(json_values(report))
    assert read_evaluation(written(tmp_path, json_text(report))) == report
    layer = json_values(report)["artifacts"][0]["layers"][0]
    assert ("same_experts" in layer, "alone" in layer) == (routed, isolated)


def test_an_evaluation_is_told_in_full(valid: Json) -> None:
    found = evaluation(isolated=True)
    assert valid["source"]["ppl"] == found.perplexity.ppl
    assert valid["text"] == {"name": "wiki.test", "chunks": 6, "context": CONTEXT}
    for artifact, told in zip(found.artifacts, valid["artifacts"], strict=True):
        assert told["name"] == artifact.model.name
        assert told["statistics"] == artifact.statistics.as_json()
        assert [each["relative"] for each in told["layers"]] == [
            each.relative for each in artifact.layers
        ]
        assert [each["token"] for each in told["tokens"]] == [t.token for t in artifact.worst]


def test_agreement_of_none_is_kept_apart_from_no_agreement(tmp_path: Path) -> None:
    found = evaluation({"x.gguf": (1.5, 1.0)}, n_layers=2)
    assert found.artifacts[0].layers[1].same_experts == 0
    report = read_evaluation(written(tmp_path, json_text(report_of(found))))
    assert report.artifacts[0].layers[1].same_experts == 0


def test_tokens_have_their_text_with_some_before_it() -> None:
    found = evaluation()
    ids = found.text.tokens
    token = report_of(found, lambda each: f"<{each}>").artifacts[0].tokens[0]
    assert token.piece == f"<{token.token}>"
    before = ids[token.chunk, token.position - 12 : token.position].tolist()
    assert token.before == "".join(f"<{each}>" for each in before)
    by_mapping = report_of(found, {n: f"<{n}>" for n in range(100)}).artifacts[0].tokens[0]
    assert by_mapping == token
    assert report_of(found).artifacts[0].tokens[0].piece is None


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    found = evaluation()
    first = found.artifacts[0]
    statistics = replace(first.statistics, kld_mean=float("nan"), ppl_q=float("inf"))
    broken = replace(found, artifacts=(replace(first, statistics=statistics),))
    report = report_of(broken)
    VALIDATOR.validate(json_values(report))
    read = read_evaluation(written(tmp_path, json_text(report))).artifacts[0].statistics
    assert (read.kld_mean, read.ppl_q) == (None, None)
    assert read.ppl_base == first.statistics.ppl_base


def _put(value: Any, place: str, new: object) -> None:
    *way, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    for key in way:
        value = value[key]
    if new is ...:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    ("place", "new", "problem"),
    [
        ("source", ..., "evaluation: source is missing"),
        ("more", 1, "evaluation: unknown key 'more'"),
        ("weightcast", 3, "weightcast is 3, not text"),
        ("precision", "f8", "precision is 'f8'; known: float32, bfloat16"),
        ("differs_in", "all", "differs_in is 'all'; known: weights only"),
        ("text/context", -1, "text.context is -1, not a count"),
        ("source/ppl", -1.0, "source.ppl is -1.0, not a number of 0 or more"),
        ("source/n", 1.5, "source.n is 1.5, not a count"),
        ("artifacts", {}, "artifacts is {}, not a list"),
        ("artifacts/1/nbytes", True, "artifacts[1].nbytes is True, not a count"),
        ("artifacts/1/statistics/kld_mean", "0", "artifacts[1].statistics.kld_mean is '0', not a"),
        ("artifacts/1/statistics/kld_p99", ..., "artifacts[1].statistics: kld_p99 is missing"),
        ("artifacts/0/statistics/same_top_p", 1.5, "same_top_p is 1.5, not a share of 1"),
        ("artifacts/0/layers/2/same_experts", -0.1, "layers[2].same_experts is -0.1, not a"),
        ("artifacts/0/layers/2/layer", "2", "artifacts[0].layers[2].layer is '2', not a count"),
        ("artifacts/0/tokens/0/piece", 5, "artifacts[0].tokens[0].piece is 5, not text"),
        ("artifacts/0/tokens/0/kld", ..., "artifacts[0].tokens[0]: kld is missing"),
    ],
)
def test_what_the_schema_forbids_is_refused_by_place(
    valid: Json, tmp_path: Path, place: str, new: object, problem: str
) -> None:
    value = copy.deepcopy(valid)
    _put(value, place, new)
    assert not VALIDATOR.is_valid(value)
    path = written(tmp_path, value)
    with pytest.raises(FormatError) as error:
        read_evaluation(path)
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


def test_schema_and_reader_refuse_the_same(valid: Json, tmp_path: Path) -> None:
    value = copy.deepcopy(valid)
    del value["artifacts"][1:]
    for key in ("layers", "tokens"):
        del value["artifacts"][0][key][1:]
    refused = 0
    for place in list(places(value))[1:]:
        *way, last = place
        holder = value
        for step in way:
            holder = holder[step]
        before = holder[last]
        for new in (None, True, -2, 0, 1.5, "x", [], {}):
            holder[last] = new
            is_valid = VALIDATOR.is_valid(value)
            try:
                read_evaluation(written(tmp_path, value))
            except FormatError:
                assert not is_valid, (place, new)
                refused += 1
            else:
                assert is_valid, (place, new)
        holder[last] = before
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-1], "not valid JSON"),
        (lambda text: text.replace('"chunk": ', '"chunk": NaN, "x": ', 1), "not valid JSON"),
        (lambda text: "[]", "not an evaluation"),
        (lambda text: '{"format": "weightcast-report", "x": [', "an error report of weightcast"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "reads 1: upgrade it"),
        (lambda text: text.replace('"version": 1', '"version": 0'), "version 0 of evaluations"),
        (lambda text: text.replace('"version": 1', '"version": true'), "version True of"),
    ],
)
def test_other_files(
    valid: Json, tmp_path: Path, change: Callable[[str], str], problem: str
) -> None:
    path = written(tmp_path, change(json.dumps(valid)))
    with pytest.raises(FormatError, match=problem):
        read_evaluation(path)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightcast.evaluation.report.schema.MAX_BYTES", 100)
    with pytest.raises(FormatError, match="larger than 100 bytes"):
        read_evaluation(written(tmp_path, " " * 101))
    with pytest.raises(CheckpointError, match="no such file"):
        read_evaluation(tmp_path / "none.json")
