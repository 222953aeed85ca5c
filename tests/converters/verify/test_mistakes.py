"""Known mistakes, planted in artifacts of the golden checkpoints, are found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import weightcast
from tests import gguf_files
from tests.grok1 import places
from tests.support import Golden
from weightcast.commands.text.verify import verification_lines
from weightcast.converters.graph.read import load_float32
from weightcast.converters.sources import open_graph
from weightcast.converters.verify.result import Verification

Floats = NDArray[np.float32]
Weights = dict[str, Floats]


# A mistake is found by comparing with the source, whatever the type: one that loses much stands for
# all, and right weights are tried in each.
@pytest.fixture(
    scope="module",
    params=[
        "wide-Q4_K_M",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("deep-Q8_0", "wide-BF16")),
    ],
)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    golden, _, type_name = request.param.partition("-")
    path = tmp_path_factory.mktemp("mistakes") / f"m-{type_name}.gguf"
    return Planted(Golden(golden), path)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(Golden("deep"), tmp_path_factory.mktemp("deep") / "m-Q8_0.gguf")


class Planted:
    """A right artifact, and others made of it with changed weights."""

    def __init__(self, golden: Golden, path: Path) -> None:
        self.golden = golden
        self.source = source = golden.path
        weightcast.convert(source, path, no_tokenizer=True)
        self.path = path
        self.file = gguf_files.read(path)
        graph = open_graph(source)
        self.spec: Any = graph.spec
        self.weights = {
            place.gguf: load_float32(graph[place.name]) for place in places(graph.spec.num_layers)
        }

    def verify(self, change: Callable[[Weights], Weights]) -> Verification:
        """Verify with the weights that `change` gives, each in the type that it had."""
        tensors = dict(self.file.tensors)
        for name, values in change(self.weights).items():
            kind = GGMLQuantizationType(tensors[name].kind).name
            rows = weightcast.quantize(np.ascontiguousarray(values), kind)
            tensors[name] = replace(tensors[name], data=rows.tobytes())
        changed = self.path.with_name("changed.gguf")
        gguf_files.write(changed, self.file.metadata, tensors)
        return weightcast.verify(changed, self.source, jobs=2)


def only(found: Verification, mistake: str, count: int = 1) -> list[str]:
    """The lines of the problems, all of which are of one kind."""
    lines = list(verification_lines(found))
    assert {problem.mistake for problem in found.problems} == {mistake}, lines
    assert len(found.problems) == count, lines
    return [problem.line for problem in found.problems]


@pytest.mark.parametrize("artifact", ["deep-Q8_0", "wide-Q4_K_M", "wide-BF16"], indirect=True)
def test_the_right_weights_are_good(artifact: Planted) -> None:
    assert artifact.verify(lambda weights: {}).is_good


def test_layers_in_the_order_of_strings(deep: Planted) -> None:
    def by_position(weights: Weights) -> Weights:
        order = sorted(range(11), key=str)
        return {
            name: weights[f"blk.{order[int(name.split('.')[1])]}.{name.split('.', 2)[2]}"]
            for name in weights
            if name.startswith("blk.")
        }

    lines = only(deep.verify(by_position), "layer order", 9)
    assert "blk.2.ffn_gate_exps.weight and 11 more tensors of the layer" in lines[0]
    assert "holds layer 10's" in lines[0]
    assert lines[0].endswith("shards are sorted as strings: 0, 1, 10, 11, ..., 2; number layers so")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ffn_gate_exps", "ffn_up_exps"),
        ("attn_k", "attn_v"),
        ("attn_q", "attn_output"),
        ("attn_norm", "ffn_norm"),
        ("attn_output_norm", "post_ffw_norm"),
    ],
)
def test_exchanged_tensors(artifact: Planted, one: str, other: str) -> None:
    def exchange(weights: Weights) -> Weights:
        names = [f"blk.1.{name}.weight" for name in (one, other)]
        return {names[0]: weights[names[1]], names[1]: weights[names[0]]}

    lines = only(artifact.verify(exchange), "exchanged", 2)
    assert f"blk.1.{one}.weight" in lines[0] or f"blk.1.{one}.weight" in lines[1]
    assert any(f"holds {other}, not {one}" in line for line in lines)


def test_experts_in_another_order(artifact: Planted) -> None:
    def rotate(weights: Weights) -> Weights:
        return {"blk.0.ffn_up_exps.weight": np.roll(weights["blk.0.ffn_up_exps.weight"], 1, axis=0)}

    lines = only(artifact.verify(rotate), "expert order", 8)
    assert "blk.0.ffn_up_exps.weight, expert 3: holds expert 2's" in "\n".join(lines)


def test_one_expert_repeated(artifact: Planted) -> None:
    def repeat(weights: Weights) -> Weights:
        values = weights["blk.0.ffn_down_exps.weight"]
        return {"blk.0.ffn_down_exps.weight": np.repeat(values[2:3], 8, axis=0)}

    (line,) = only(artifact.verify(repeat), "expert repeated")
    assert "experts 0, 1, 3, 4, 5, 6, 7: holds expert 2's" in line


@pytest.mark.parametrize("name", ["attn_q", "attn_k"])
@pytest.mark.parametrize("how", ["interleaved", "split"])
def test_rope_permutation(artifact: Planted, name: str, how: str) -> None:
    tensor = f"blk.1.{name}.weight"

    def permute(weights: Weights) -> Weights:
        values, half = weights[tensor], artifact.spec.key_size // 2
        pairs = (2, half) if how == "interleaved" else (half, 2)
        heads = values.reshape(-1, *pairs, values.shape[1]).swapaxes(1, 2)
        return {tensor: heads.reshape(values.shape)}

    (line,) = only(artifact.verify(permute), "RoPE permutation")
    assert f"{tensor}: the halves of each head are {how}" in line


@pytest.mark.parametrize("name", ["attn_q", "attn_output", "ffn_gate_inp", "ffn_up_exps"])
def test_transposed(artifact: Planted, name: str) -> None:
    tensor = f"blk.0.{name}.weight"

    def transpose(weights: Weights) -> Weights:
        values = weights[tensor]
        return {tensor: np.swapaxes(values, -1, -2).reshape(values.shape)}

    (line,) = only(artifact.verify(transpose), "transposed")
    assert tensor in line


@pytest.mark.parametrize(
    ("name", "factor", "text"),
    [
        ("token_embd", "embedding_multiplier_scale", "(embedding_multiplier_scale"),
        ("token_embd", "output_multiplier_scale", "(output_multiplier_scale"),
        ("blk.0.attn_q", "attn_output_multiplier", "(attn_output_multiplier"),
        ("blk.0.attn_k", "1/attn_output_multiplier", "(1 / attn_output_multiplier"),
        ("blk.0.attn_q", "sqrt attn_output_multiplier", "(sqrt(attn_output_multiplier)"),
        ("blk.0.ffn_norm", "3", "is scaled by 3;"),
        ("blk.1.ffn_gate_exps", "0.5", "is scaled by 0.5"),
    ],
)
def test_folded_multipliers(artifact: Planted, name: str, factor: str, text: str) -> None:
    tensor = f"{name}.weight"
    words = factor.replace("1/", "").split()
    value = getattr(artifact.spec, words[-1], None) or float(words[-1])
    value = 1 / value if factor.startswith("1/") else value
    value = value**0.5 if words[0] == "sqrt" else value
    found = artifact.verify(lambda weights: {tensor: weights[tensor] * np.float32(value)})
    (line,) = only(found, "scaled")
    assert tensor in line
    assert text in line


def test_scales_lost(artifact: Planted) -> None:
    name = "blk.0.attn_output.weight"
    leaf = "transformer/decoder_layer_0/multi_head_attention/linear/w"
    codes = artifact.golden.codes()[leaf].T.astype(np.float32)
    only(artifact.verify(lambda weights: {name: codes}), "scales lost")


def test_zeros_and_not_finite(artifact: Planted) -> None:
    name = "blk.0.ffn_gate_exps.weight"

    def zeros(weights: Weights) -> Weights:
        values = weights[name].copy()
        values[3] = 0
        return {name: values, "output_norm.weight": np.full_like(weights["output_norm.weight"], 0)}

    lines = only(artifact.verify(zeros), "zeros", 2)
    assert f"{name}, expert 3: is all zeros" in "\n".join(lines)


def test_norms_that_were_rounded_or_shifted(artifact: Planted) -> None:
    def change(weights: Weights) -> Weights:
        rounded = weights["blk.0.ffn_norm.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
        return {
            "blk.0.ffn_norm.weight": rounded,
            "blk.1.attn_norm.weight": weights["blk.1.attn_norm.weight"] - 1,
        }

    found = artifact.verify(change)
    assert {p.mistake: p.tensor for p in found.problems} == {
        "rounded": "blk.0.ffn_norm.weight",
        "shifted norm": "blk.1.attn_norm.weight",
    }


def test_rows_in_another_order(artifact: Planted) -> None:
    name = "blk.1.ffn_gate_inp.weight"
    found = artifact.verify(lambda weights: {name: weights[name][::-1]})
    (line,) = only(found, "row order")
    assert "row 0 is row 7" in line


def test_noise_is_told_by_its_size(artifact: Planted) -> None:
    name = "blk.1.attn_q.weight"

    def noisy(weights: Weights) -> Weights:
        values = weights[name]
        noise = np.random.default_rng(5).standard_normal(values.shape, np.float32)
        return {name: values + noise * np.float32(0.5 * values.std())}

    found = artifact.verify(noisy)
    (problem,) = found.problems
    assert problem.mistake in ("error", "damaged")
    assert "relative error 0.4" in problem.line or "relative error 0.5" in problem.line
