"""Arguments of other kinds than a call takes: one line that names the argument."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weightcast
from weightcast.converters.sources import parse_size

QUERY = "blk.0.attn_q.weight"
convert: Callable[..., Any] = weightcast.convert


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"types": 4}, "types: give a text, a list of texts, not 4"),
        ({"types": ["Q8_0", 4]}, "types: give a text, a list of texts, not ['Q8_0', 4]"),
        ({"types": b"Q8_0"}, "types: give a text, a list of texts, not b'Q8_0'"),
        ({"tensor_types": 4}, "tensor_types: give a text, a list of texts or a dict, not 4"),
        ({"tensor_types": {"a": 4}}, "tensor_types a=4: unknown type '4'"),
        ({"split": True}, "True is not a size"),
        ({"split": -1}, "-1 is not a size"),
        ({"split": 1.5}, "1.5 is not a size"),
        ({"split": float("nan")}, "nan is not a size"),
        ({"split": float("inf")}, "inf is not a size"),
        ({"split": ["1M"]}, "['1M'] is not a size"),
        ({"split": 0}, "'0B' is not a sensible size"),
        ({"memory": b"1G"}, "b'1G' is not a size"),
        ({"spec": 4}, "spec: give a path as text or a Path, not 4"),
        ({"spec": ""}, "spec: an empty path; name a file or directory"),
        ({"imatrix": b"a"}, "imatrix: give a path as text or a Path, not b'a'"),
        ({"recipe": []}, "recipe: give a path as text or a Path, not []"),
        ({"report": 4}, "report: give a path as text or a Path, not 4"),
        ({"device": 0}, "device: give a text, not 0"),
        ({"baseline": True}, "baseline: give a text, not True"),
        ({"jobs": 2.5}, "2.5 jobs; 1 to 512 are possible"),
        ({"on_progress": 3}, "on_progress: give a function of a weightcast.Progress, not 3"),
    ],
)
def test_keywords_of_another_kind(
    keywords: dict[str, Any], said: str, tiny: Path, tmp_path: Path
) -> None:
    for call in (convert, weightcast.plan):
        if call is weightcast.plan and "on_progress" in keywords:
            continue
        with pytest.raises(weightcast.RequestError) as caught:
            call(tiny, tmp_path / "a-Q8_0.gguf", **{"no_tokenizer": True, **keywords})
        assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_none_is_the_default_of_every_option(tiny: Path, tmp_path: Path) -> None:
    names = weightcast.convert.__kwdefaults__ or {}
    keywords = {**dict.fromkeys(names), "no_tokenizer": True}
    made = convert(tiny, tmp_path / "a-Q4_0.gguf", **keywords)
    plain = convert(tiny, tmp_path / "b-Q4_0.gguf", no_tokenizer=True)
    assert made.outputs[0].path.read_bytes() == plain.outputs[0].path.read_bytes()


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [(1e6, 10**6), (1.5e9, 1_500_000_000), (np.int64(7), 7), (np.float32(4096), 4096)],
)
def test_whole_numbers_are_bytes(size: Any, nbytes: int) -> None:
    assert parse_size(size) == nbytes


def test_a_conversion_with_numbers_as_sizes(tiny: Path, tmp_path: Path) -> None:
    summary = weightcast.convert(
        tiny, tmp_path / "a-Q8_0.gguf", split=1e6, memory=1.5e9, no_tokenizer=True, bundle=True
    )
    assert len(summary.outputs[0].files) == 9
    card = next(path for path in summary.outputs[0].bundle if path.suffix == ".md")
    assert "--split 1M" in card.read_text()


def test_rules_for_tensors_as_a_dict(tiny: Path, tmp_path: Path) -> None:
    rules = {"attn_(?=q)": "Q6_K", "ffn=?": "Q5_K"}
    texts = [f"{pattern}={name}" for pattern, name in rules.items()]
    made = [
        weightcast.convert(tiny, tmp_path / f"{n}-Q8_0.gguf", tensor_types=given, no_tokenizer=True)
        for n, given in enumerate((rules, texts))
    ]
    first, second = (summary.outputs[0] for summary in made)
    assert first.types == second.types
    assert set(first.types) >= {"Q6_K", "Q5_K"}


CALLS: dict[str, Callable[[Any], object]] = {
    "path": weightcast.open,
    "source": lambda path: weightcast.plan(path, "a-Q8_0.gguf"),
    "artifact": weightcast.verify,
    "a": lambda path: weightcast.compare(path, "b"),
    "b": lambda path: weightcast.compare("a", path),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", [b"tg", 7, None, "", ["a"]])
def test_paths_that_are_none(name: str, given: Any) -> None:
    said = "an empty path" if given == "" else "give a path as text or a Path, not"
    with pytest.raises(weightcast.RequestError, match=f"^{name}: {said}"):
        CALLS[name](given)


def test_an_output_without_a_name(tiny: Path) -> None:
    with pytest.raises(weightcast.RequestError, match=r"^output: an empty path"):
        weightcast.plan(tiny, "", types="bf16")


@pytest.mark.parametrize("sample", ["x", None, True, 0, -3, 1.5, float("nan"), [1], 2j])
def test_samples_that_are_none(sample: Any, made: dict[str, Path]) -> None:
    verified = made["m-Q8_0.gguf"], made["shards"]
    if sample is None:
        assert weightcast.verify(*verified, sample=np.int64(3)).is_good  # type: ignore[arg-type]
        return
    with pytest.raises(weightcast.RequestError, match="give a number of rows, or a share below 1"):
        weightcast.verify(*verified, sample=sample)


@pytest.mark.parametrize("call", ["verify", "compare", "run"])
def test_callbacks_that_cannot_be_called(call: str, made: dict[str, Path], tmp_path: Path) -> None:
    both: tuple[Any, Any] = made["m-Q8_0.gguf"], made["shards"]
    calls: dict[str, Callable[..., object]] = {
        "verify": lambda told: weightcast.verify(*both, on_progress=told),
        "compare": lambda told: weightcast.compare(*both, on_progress=told),
        "run": weightcast.plan(both[0], tmp_path / "b-Q8_0.gguf").run,
    }
    with pytest.raises(weightcast.RequestError, match=r"^on_progress: give a function"):
        calls[call]("print")


@pytest.mark.parametrize("size", [None, 0, -1, "x", "0M", True, 1.5])
def test_chunks_of_no_size(size: Any, tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    with pytest.raises(weightcast.RequestError, match=r"is not a (sensible )?size"):
        tensor.chunks(size)


def test_chunks_of_a_size_in_words(tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    sizes = [values.nbytes for _, values in tensor.chunks("64KiB")]
    assert sizes == [values.nbytes for _, values in tensor.chunks(65536)]
    assert len(sizes) == 4


def test_dtypes_of_torch(tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    assert torch.equal(tensor.torch("bfloat16"), tensor.torch(torch.bfloat16))
    wrong: list[Any] = [np.float32, "nothing", "Tensor", 4, float, torch.complex64, torch.int8]
    wrong += [getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name)]
    for dtype in wrong:
        with pytest.raises(weightcast.LayoutError, match=f"^{QUERY}: .*(not a dtype|cannot be)"):
            tensor.torch(dtype)


@pytest.mark.parametrize("name", ["path", "source", "artifact", "a", "b", "spec", "imatrix"])
def test_what_is_not_there_is_of_one_class(name: str, tiny: Path, tmp_path: Path) -> None:
    gone, output = tmp_path / "gone", tmp_path / "a-Q4_0.gguf"
    calls: dict[str, Callable[[Any], object]] = {
        **CALLS,
        "b": lambda path: weightcast.compare(tiny, path),
        "spec": lambda path: weightcast.open(tiny, path),
        "imatrix": lambda path: weightcast.plan(tiny, output, no_tokenizer=True, imatrix=path),
    }
    with pytest.raises(weightcast.MissingTensorError, match=f"^{gone}: "):
        calls[name](gone)


def test_signatures_and_help_show_nothing_internal() -> None:
    functions = [getattr(weightcast, name) for name in weightcast.__all__]
    functions += [weightcast.Conversion.run, weightcast.Tensor.chunks]
    for function in functions:
        if callable(function) and not isinstance(function, type):
            assert " at 0x" not in str(inspect.signature(function))
    assert pydoc.plain(pydoc.render_doc(weightcast.types)).splitlines()[2].startswith("types() ->")
    assert weightcast.types() is weightcast.types()
    names = set(dir(weightcast))
    assert {name for name in names if not name.startswith("__")} == set(weightcast.__all__)


@pytest.mark.parametrize(
    "kind",
    [weightcast.Errors, weightcast.Metrics, weightcast.OutputErrors, weightcast.TensorErrors,
     weightcast.Tensor, weightcast.Problem, weightcast.TypeInfo, weightcast.OutputSummary],
)  # fmt: skip
def test_every_field_is_told_of(kind: Any) -> None:
    own = inspect.getdoc(kind) or ""
    for field in dataclasses.fields(kind):
        if not field.name.startswith("_"):
            assert f"`{field.name}`" in own, field.name
