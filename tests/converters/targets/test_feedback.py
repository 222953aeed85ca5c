"""Conversions with second moments: what is made by them, what is told, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import hessians, imatrices
from tests.support import GOLDEN
from weightcast.converters.convert import prepare
from weightcast.converters.engine import memory_estimate
from weightcast.converters.output.fingerprint import fingerprint
from weightcast.converters.plan import choose_workers
from weightcast.converters.plan.estimate import estimate
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, LayoutError, RequestError

WIDE = GOLDEN / "wide"
SHAPES = dict(shapes_of(open_graph(WIDE)))
ENTRIES = hessians.model_entries(SHAPES)
GATE = "blk.0.ffn_gate_exps.weight"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hessians.write(tmp_path_factory.mktemp("h") / "h.safetensors", ENTRIES)


def convert(*outputs: Path, **options: Any) -> weightcast.Summary:
    return weightcast.convert(WIDE, *outputs, no_tokenizer=True, **options)


def values(path: Path, name: str) -> np.ndarray:
    return np.asarray(weightcast.open(path)[name][...], np.float64)


def cost(path: Path, name: str, of: str = GATE, experts: Sequence[int] = range(8)) -> float:
    """The cost of the errors of some experts, by their second moments."""
    found, true = values(path, name), values(WIDE, of)
    errors = found - true
    return sum(
        float(np.einsum("oi,ij,oj", e, h, e))
        for e, h in ((errors[n], ENTRIES[of][n].astype(float)) for n in experts)
    )


def test_gguf_costs_less_and_is_verified(tmp_path: Path, file: Path) -> None:
    made, plain = tmp_path / "m-Q4_K_S.gguf", tmp_path / "p-Q4_K_S.gguf"
    convert(made, hessian=file)
    convert(plain)
    assert made.stat().st_size == plain.stat().st_size
    assert cost(made, GATE) < 0.5 * cost(plain, GATE)
    assert weightcast.verify(made, WIDE, hessian=file).is_good
    assert weightcast.verify(made, WIDE, hessian=file, sample=7).is_good
    found = weightcast.verify(made, WIDE)
    assert found.problems
    hint = "if it was made with a Hessian, give hessian=FILE; or else convert again from the "
    assert all(hint in problem.line for problem in found.problems)


def test_bytes_are_those_of_arrays(tmp_path: Path, file: Path) -> None:
    """The scales are those of the diagonal, whatever scales it."""
    path = tmp_path / "m-Q4_K_S.gguf"
    convert(path, hessian=file)
    tensor = weightcast.open(WIDE)[GATE]
    expected = weightcast.quantize(
        np.asarray(tensor[...], np.float32), "Q4_K", hessian=ENTRIES[GATE]
    )
    found = values(path, GATE)
    np.testing.assert_array_equal(found, weightcast.dequantize(expected, "Q4_K"))


@pytest.mark.parametrize(
    "name", ["int4-g128", "int4-g128-gptq", "int4-g128-asym-gptq_v2", "int4-g128-awq", "nvfp4"]
)
def test_directories_are_verified(tmp_path: Path, file: Path, name: str) -> None:
    path = tmp_path / f"m-{name}"
    convert(path, hessian=file)
    assert weightcast.verify(path, WIDE, hessian=file).is_good
    plain = tmp_path / f"p-{name}"
    convert(plain)
    assert cost(path, GATE) < 0.6 * cost(plain, GATE)


def test_names_of_a_directory_are_entries_too(tmp_path: Path, file: Path) -> None:
    graph = open_graph(WIDE)
    entries = {}
    for expert in range(8):
        name = f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"
        entries[name] = ENTRIES[GATE][expert]
    assert GATE in graph
    other = hessians.write(tmp_path / "names", entries)
    made, same = tmp_path / "a-int4-g128", tmp_path / "b-int4-g128"
    convert(made, hessian=other)
    convert(same, hessian=file)
    np.testing.assert_array_equal(values(made, GATE), values(same, GATE))


@pytest.mark.parametrize("jobs", [2, 5])
def test_bytes_do_not_depend_on_workers(tmp_path: Path, file: Path, jobs: int) -> None:
    outputs = [[tmp_path / f"{n}-Q4_K_S.gguf", tmp_path / f"{n}-int4-g64"] for n in (1, jobs)]
    for n, pair in zip((1, jobs), outputs, strict=True):
        convert(*pair, hessian=file, jobs=n)
    (one, folder), (several, other) = outputs
    assert one.read_bytes() == several.read_bytes()
    for part in folder.glob("*.safetensors"):
        assert part.read_bytes() == (other / part.name).read_bytes()


def test_an_importance_matrix_decides_the_scales(tmp_path: Path, file: Path) -> None:
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", imatrices.model_entries(SHAPES))
    for name, given in (("both", {"hessian": file}), ("scales", {})):
        convert(tmp_path / f"{name}-int4-g128", imatrix=imatrix, **given)
    both, scales = (
        {name: array for name, array in weightcast.open(tmp_path / f"{n}-int4-g128").items()}
        for n in ("both", "scales")
    )
    assert both.keys() == scales.keys()
    assert weightcast.verify(
        tmp_path / "both-int4-g128", WIDE, imatrix=imatrix, hessian=file
    ).is_good


def test_what_has_no_entry_or_no_feedback_is_told(tmp_path: Path) -> None:
    down = "blk.1.ffn_down_exps.weight"
    entries = {name: h for name, h in ENTRIES.items() if name != down}
    entries[GATE] = ENTRIES[GATE].copy()
    entries[GATE][3] = 0
    file = hessians.write(tmp_path / "h.safetensors", entries)
    path = tmp_path / "m-Q4_K_S.gguf"
    plan = weightcast.plan(WIDE, path, hessian=file, no_tokenizer=True)
    notes = "\n".join(plan.outputs[0].notes)
    assert re.search(rf"h.safetensors has no entry for 2 quantized tensors, .*{down}", notes)
    assert re.search(r"of types without error feedback: \d+ tensors, for example blk", notes)
    assert f"has zeros for 1 expert, made without feedback: {GATE} [3]" in notes
    summary = plan.run()
    assert summary.outputs[0].path == path
    plain = tmp_path / "p-Q4_K_S.gguf"
    convert(plain)
    np.testing.assert_array_equal(values(path, down), values(plain, down))
    # Of the expert without tokens all columns count the same.
    third = np.asarray(weightcast.open(WIDE)[GATE][3], np.float32)
    alike = weightcast.quantize(third, "Q4_K", np.ones(third.shape[1]))
    np.testing.assert_array_equal(values(path, GATE)[3], weightcast.dequantize(alike, "Q4_K"))
    assert cost(path, GATE, experts=[2]) < 0.5 * cost(plain, GATE, experts=[2])


def test_reports_name_the_file(tmp_path: Path, file: Path) -> None:
    report = tmp_path / "r.json"
    convert(tmp_path / "m-Q4_K_S.gguf", hessian=file, report=report)
    output = json.loads(report.read_text())["outputs"][0]
    assert output["hessian"] == str(file)
    assert output["imatrix"] is None
    assert output["total"]["weighted"]["relative_rms"] > 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: h + np.eye(len(h), k=1, dtype="f4") * h.max(), "not symmetric"),
        (lambda h: np.where(np.eye(len(h), k=2) > 0, np.nan, h), "not symmetric, or NaN"),
        (lambda h: 2 * np.diag(np.diag(h)) - h * 3, "a second moment is|negative, infinite or NaN"),
        (
            lambda h: 2 * np.sqrt(np.outer(np.diag(h), np.diag(h))) - np.diag(np.diag(h)),
            "not positive semidefinite",
        ),
    ],
)
def test_moments_that_are_none_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    name = "blk.0.attn_output.weight"
    entries = {name: change(ENTRIES[name]).astype(np.float32)}
    file = hessians.write(tmp_path / "h.safetensors", entries)
    with pytest.raises(CheckpointError, match=rf"h.safetensors: '{name}': ({problem})"):
        convert(tmp_path / "m-Q4_K_S.gguf", hessian=file)
    assert not (tmp_path / "m-Q4_K_S.gguf").exists()


def test_a_plan_counts_time_and_memory_of_feedback(tmp_path: Path, file: Path) -> None:
    path, workers = tmp_path / "m-Q4_K_S.gguf", choose_workers(1)
    with_it, without = (
        prepare(WIDE, [path], ConvertOptions(no_tokenizer=True, hessian=h)) for h in (file, None)
    )
    more = memory_estimate(with_it, workers).host - memory_estimate(without, workers).host
    widest = max(h.shape[-1] for name, h in ENTRIES.items() if "attn_k" not in name)
    assert more == 3 * 8 * widest**2
    slower = [estimate(plan, workers).compute_s for plan in (with_it, without)]
    assert slower[0] > slower[1]


def test_another_model_is_refused(tmp_path: Path) -> None:
    foreign = hessians.write(
        tmp_path / "f", {"blk.900.attn_q.weight": ENTRIES["blk.0.attn_q.weight"]}
    )
    with pytest.raises(LayoutError, match="belongs to another model: none of its 1 entries is"):
        convert(tmp_path / "m-Q4_K_S.gguf", hessian=foreign)
    small = hessians.write(tmp_path / "s", {"blk.0.attn_q.weight": hessians.drawn(32)})
    with pytest.raises(CheckpointError, match=r"\[32, 32\] values, expected \[\d+, \d+\]"):
        convert(tmp_path / "m-Q4_K_S.gguf", hessian=small)


def test_it_is_of_use_where_weights_are_rounded(tmp_path: Path, file: Path) -> None:
    with pytest.raises(RequestError, match="hessian: of use for"):
        convert(tmp_path / "m-bf16", hessian=file)
    plain = tmp_path / "p-F32.gguf"
    convert(plain)
    with pytest.raises(RequestError, match="prune_layers gives layers other numbers than hessian"):
        weightcast.convert(plain, tmp_path / "m-Q4_K_S.gguf", hessian=file, prune_layers="0")
    with pytest.raises(RequestError, match="hessian: of use with a source only"):
        weightcast.verify(WIDE, hessian=file)


def test_a_run_goes_on_only_with_the_same_moments(tmp_path: Path, file: Path) -> None:
    """Another file makes other bytes, so that nothing of an interrupted run is kept."""
    path = tmp_path / "m-Q4_K_S.gguf"
    prints = []
    other = hessians.write(tmp_path / "o", {name: 2 * h for name, h in ENTRIES.items()})
    for moments in (file, other, None):
        plan = prepare(WIDE, [path], ConvertOptions(hessian=moments, no_tokenizer=True))
        prints.append(fingerprint(plan.inputs, plan.outputs[0])["extras"].get("hessian"))
    assert len(set(prints)) == 3
