"""Outputs of the least-error search: what is asked for, made, recorded and verified."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import weightcast
from tests import imatrices
from tests.support import GOLDEN
from weightcast.converters.convert import plan_conversion
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.search_record import SEARCH_KEYS, recorded_search
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, RequestError
from weightcast.formats.safetensors import read_header_metadata
from weightcast.quant.cpu import library
from weightcast.quant.search import GGML, Search

WIDE = GOLDEN / "wide"
LEAST_ERROR = {"no_tokenizer": True, "search": "least-error"}
SAID = "scales and codes were searched for the least error"


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Change a bit of each row that is searched; (type, effort, whether weighted) of each call."""
    real: Callable[..., int] = library.load().weightcast_quantize_least_error
    calls = []

    def quantize(source: Any, factors: Any, kind: int, effort: int, dst: int, *rest: Any) -> int:
        calls.append((kind, effort, factors is not None))
        status = real(source, factors, kind, effort, dst, *rest)
        if library.load().weightcast_block_elements(kind) > 1:
            stride = rest[0]
            for row in range(source._obj.n_out):
                ctypes.c_uint8.from_address(dst + (row + 1) * stride - 1).value ^= 1
        return status

    monkeypatch.setattr(library.load(), "weightcast_quantize_least_error", quantize)
    return calls


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = dict(shapes_of(open_graph(WIDE)))
    path = tmp_path_factory.mktemp("imatrix") / "wide.gguf"
    return imatrices.write_gguf(path, imatrices.model_entries(shapes))


def metadata(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {key: fields[key].contents() for key in fields if key.startswith("weightcast.")}


def test_a_file_says_how_it_was_made(searched: list[Any], tmp_path: Path) -> None:
    plain, made = tmp_path / "p-Q4_K_M.gguf", tmp_path / "m-Q4_K_M.gguf"
    weightcast.convert(WIDE, plain, no_tokenizer=True)
    assert not searched
    assert metadata(plain) == {}
    weightcast.convert(WIDE, made, **LEAST_ERROR, effort=3)
    assert {effort for _, effort, _ in searched} == {3}
    assert metadata(made) == dict(zip(SEARCH_KEYS, ("least-error", 3), strict=True))
    for path in (plain, made):
        found = weightcast.verify(path, WIDE)
        assert (found.is_good, set(found.matrices)) == (True, {"same"})
        assert any(SAID in note for note in found.notes) == (path == made)
        assert "metadata: every value is what weightcast writes" in found.checked
    assert any("least-error, effort 3" in note for note in weightcast.verify(made).notes)


def test_rows_by_another_rule_are_no_damage(tmp_path: Path) -> None:
    """A file of two rules is verified tensor by tensor; a changed byte is found as ever."""
    made = tmp_path / "m-Q4_K_M.gguf"
    weightcast.convert(WIDE, made, **LEAST_ERROR)
    assert weightcast.verify(made, WIDE).is_good
    raw = bytearray(made.read_bytes())
    raw[-200] ^= 16
    made.write_bytes(raw)
    assert [p.mistake for p in weightcast.verify(made, WIDE).problems] == ["damaged"]


def test_what_the_search_makes_is_not_taken_for_damage_of_ggmls(
    searched: list[Any], tmp_path: Path
) -> None:
    """The rows differ from ggml's in a bit each, and are the same again when verified."""
    plain, made = tmp_path / "p-Q8_0.gguf", tmp_path / "m-Q8_0.gguf"
    weightcast.convert(WIDE, plain, no_tokenizer=True, tensor_types=".*=Q4_0")
    weightcast.convert(WIDE, made, **LEAST_ERROR, tensor_types=".*=Q4_0")
    assert searched
    both = [gguf.GGUFReader(path).tensors for path in (plain, made)]
    unlike = [a.name for a, b in zip(*both, strict=True) if a.data.tobytes() != b.data.tobytes()]
    assert unlike == [tensor.name for tensor in both[1] if tensor.tensor_type.name == "Q4_0"]
    assert weightcast.verify(made, WIDE).is_good


def test_importance_weighs_types_that_ignore_it_by_ggmls_rule(
    searched: list[Any], imatrix: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{name}-MXFP4.gguf" for name in "ab"]
    by_ggml = weightcast.convert(WIDE, paths[0], no_tokenizer=True, imatrix=imatrix)
    made = weightcast.convert(WIDE, paths[1], **LEAST_ERROR, imatrix=imatrix)
    weighted = [
        {t.tensor.name for t in summary.plan.outputs[0].tensors if t.importance is not None}
        for summary in (by_ggml, made)
    ]
    assert weighted[0] < weighted[1]
    assert (39, 2, True) in searched
    found = weightcast.verify(paths[1], WIDE, imatrix=imatrix)
    assert (found.is_good, set(found.matrices)) == (True, {"same"})


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4-g32", "fp8"])
def test_directories(name: str, searched: list[Any], imatrix: Path, tmp_path: Path) -> None:
    made, plain = tmp_path / f"m-{name}", tmp_path / f"p-{name}"
    weightcast.convert(WIDE, plain, no_tokenizer=True)
    weightcast.convert(WIDE, made, **LEAST_ERROR, effort=1, imatrix=imatrix)
    assert bool({c for c in searched if c[0] in (39, 40)}) == name.endswith("fp4")
    for folder, search in ((made, Search(1)), (plain, GGML)):
        for path in folder.glob("*.safetensors"):
            assert recorded_search(read_header_metadata(path)) == search
    found = weightcast.verify(made, WIDE, imatrix=imatrix)
    assert (found.is_good, set(found.matrices)) == (True, {"same"})
    assert any(SAID in note for note in found.notes)
    assert "headers: every byte is what weightcast writes" in found.checked


def test_copies_keep_the_record_and_others_renew_it(tmp_path: Path) -> None:
    floats, made = tmp_path / "m-F32.gguf", tmp_path / "m-Q4_K_M.gguf"
    weightcast.convert(WIDE, floats, no_tokenizer=True)
    weightcast.convert(floats, made, search="least-error")
    assert weightcast.verify(made, floats).is_good
    copy, parts, again = (tmp_path / f"{n}.gguf" for n in ("m-COPY", "parts", "m-Q8_0"))
    weightcast.convert(made, copy)
    weightcast.split(made, parts, max_tensors=20)
    weightcast.convert(made, again, allow_requantize=True)
    first = next(tmp_path.glob("parts-00001-*"))
    assert metadata(copy) == metadata(first) == metadata(made) != {}
    assert metadata(again) == {}
    assert weightcast.verify(copy, made).is_good
    assert weightcast.verify(first, floats).is_good


def test_nothing_is_recorded_where_nothing_is_searched(searched: list[Any], tmp_path: Path) -> None:
    made = tmp_path / "m-F16.gguf"
    weightcast.convert(WIDE, made, **LEAST_ERROR)
    assert metadata(made) == {}
    assert all(kind in (0, 1) for kind, _, _ in searched)  # casts


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("m-bf16", {"search": "least-error"}, "search, effort: of use for GGUF or packed outputs"),
        ("m-Q4_K_M.gguf", {"effort": 2}, "effort: of use with search='least-error' only"),
        (
            "m-Q4_K_M.gguf",
            {"search": "least"},
            "search: 'least' is no rule for scales; use ggml or least-error",
        ),
        ("m-Q4_K_M.gguf", {"search": 3}, "search: give a text, not 3"),
        ("m-int8", {"search": "least-error", "effort": 7}, "effort: 7 is no effort; use 1, 2 or 3"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        weightcast.convert(WIDE, tmp_path / name, no_tokenizer=True, **options)
    assert not list(tmp_path.iterdir())


def test_plain_outputs_beside_others_are_left_alone(tmp_path: Path) -> None:
    outputs = [tmp_path / "m-bf16", tmp_path / "m-Q4_0.gguf"]
    done = weightcast.convert(WIDE, *outputs, **LEAST_ERROR)
    described = [output["search"]["name"] for output in done.describe()["outputs"]]
    assert described == ["ggml", "least-error"]


def test_an_interrupted_run_is_not_finished_by_another_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "m-Q4_0.gguf"

    def gate(report: object) -> None:
        raise weightcast.LimitError("closed")

    measured = ConvertOptions(**LEAST_ERROR, baseline="stored")
    conversion = plan_conversion(WIDE, [made], measured)
    with pytest.raises(weightcast.LimitError):
        conversion.run(gate=gate)
    for options, said in (
        ({"no_tokenizer": True}, "search was least-error and is ggml"),
        ({**LEAST_ERROR, "effort": 3}, "effort was 2 and is 3"),
    ):
        with pytest.raises(CheckpointError, match=said):
            weightcast.convert(WIDE, made, **options)
    weightcast.convert(WIDE, made, **LEAST_ERROR, effort=2)  # the same, which is gone on with
    assert weightcast.verify(made, WIDE).is_good


def test_bundles_tell_the_rule(tmp_path: Path) -> None:
    made = tmp_path / "m-Q4_0.gguf"
    weightcast.convert(WIDE, made, **LEAST_ERROR, bundle=True)
    statement = json.loads((tmp_path / "m-Q4_0.intoto.json").read_text())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert (parameters["search"], parameters["effort"]) == ("least-error", 2)
    assert "--search least-error --effort 2" in (tmp_path / "m-Q4_0.README.md").read_text()
    plain = tmp_path / "p-Q4_0.gguf"
    weightcast.convert(WIDE, plain, no_tokenizer=True, bundle=True)
    statement = json.loads((tmp_path / "p-Q4_0.intoto.json").read_text())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert (parameters["search"], parameters["effort"]) == ("ggml", None)
    assert "--search" not in (tmp_path / "p-Q4_0.README.md").read_text()


@pytest.mark.parametrize(
    "raw",
    [{}, {SEARCH_KEYS[0]: 5}, {SEARCH_KEYS[0]: "best"}, {SEARCH_KEYS[0]: "ggml"}]
    + [{SEARCH_KEYS[0]: "least-error", SEARCH_KEYS[1]: n} for n in (0, 9, "x", "²", 1.5, [2])],
)
def test_records_that_say_nothing_known_are_ggmls(raw: dict[str, Any]) -> None:
    assert recorded_search(raw) == GGML


def test_values_that_llama_cpp_reads(tmp_path: Path) -> None:
    """Another reader opens the file and finds blocks that mean what weightcast says."""
    made = tmp_path / "m-Q4_K_M.gguf"
    weightcast.convert(WIDE, made, **LEAST_ERROR)
    values = weightcast.open(made)
    for tensor in gguf.GGUFReader(made).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = values[tensor.name].numpy()
        np.testing.assert_array_equal(theirs.reshape(ours.shape), ours)
