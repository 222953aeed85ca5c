"""benchmarks/least_error.py: its arithmetic, its models, and that results are kept and paired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import weightcast
from benchmarks import least_error
from benchmarks import least_error_models as models
from benchmarks.divergence import (
    F32,
    F64,
    cosine_distances,
    divergences,
    log_ratio,
    log_softmax,
    losses,
    mean_of,
    perplexity,
)
from benchmarks.least_error import Cell, Measured, cells, measure, summary
from benchmarks.least_error_models import EXAMPLE, passages
from benchmarks.least_error_table import geometric_mean, markdown
from benchmarks.second_moments import Moments, second_moments
from benchmarks.shuffled_channels import shuffle_bert, shuffle_channels
from tests.adapters import HEADS, KV_HEADS, write_llama
from weightcast.commands import llama_cpp
from weightcast.commands.generation import log_probabilities

RNG_SEED = 5


def drawn(*shape: int) -> F32:
    return np.random.default_rng(RNG_SEED).standard_normal(shape, np.float32)


def test_divergences_are_those_of_float64() -> None:
    p, q = drawn(2, 100, 300) * 4
    exact_p, exact_q = log_probabilities(p), log_probabilities(q)
    exact = (np.exp(exact_p) * (exact_p - exact_q)).sum(-1)
    np.testing.assert_allclose(divergences(log_softmax(p), log_softmax(q)), exact, rtol=1e-5)
    assert not divergences(log_softmax(p), log_softmax(p)).any()
    tokens = np.arange(100)
    np.testing.assert_allclose(losses(log_softmax(p), tokens), -exact_p[tokens, tokens], rtol=1e-5)


def test_distances_are_exact_where_they_are_small() -> None:
    a = np.array([[1, 0], [3, 4]], np.float32)
    b = np.array([[1, 2**-12], [4, -3]], np.float32)
    np.testing.assert_allclose(cosine_distances(a, b), [2**-25, 1], rtol=1e-6)


def test_means_have_standard_errors() -> None:
    samples = np.array([1.0, 2, 3, 6])
    mean = mean_of(samples)
    assert mean.value == 3
    assert mean.error == pytest.approx(np.sqrt(14 / 3 / 4))
    assert mean.z == pytest.approx(3 / mean.error)
    assert mean_of(samples[:1]).error == np.inf
    assert mean_of(np.zeros(4)).z == 0
    whole = perplexity(samples)
    assert whole.value == pytest.approx(np.exp(3))
    assert whole.error == pytest.approx(np.exp(3) * mean.error)


def test_ratios_of_pairs_are_of_most_samples_and_not_of_the_largest() -> None:
    others = np.array([1e-3] * 99 + [10.0])
    samples = others * np.array([0.5] * 99 + [1.2])
    assert mean_of(samples - others).value > 0
    ratio = log_ratio(samples, others)
    assert np.exp(ratio.value) == pytest.approx(0.5 * 2.4**0.01)
    assert ratio.z < -50
    assert log_ratio(np.zeros(3), np.full(3, 1e-9)).value == 0


def test_shuffled_channels_change_no_result(tmp_path: Path) -> None:
    path, tokens = write_llama(tmp_path / "m.gguf"), [list(range(40))]
    before = llama_cpp.logits(path, tokens)
    tensors = {t.name: t.data for t in gguf.GGUFReader(path, "r+").tensors}
    old = {name: tensor.copy() for name, tensor in tensors.items()}
    shuffle_channels(tensors, HEADS, KV_HEADS)
    for name, tensor in tensors.items():
        assert sorted(tensor.reshape(-1)) == sorted(old[name].reshape(-1))
        if tensor.ndim == 2:
            assert (tensor != old[name]).any()
    del tensors
    assert np.abs(llama_cpp.logits(path, tokens) - before).max() < 1e-4


@pytest.mark.parametrize("order", [2, 3])
def test_shuffled_channels_change_no_result_of_experts(tmp_path: Path, order: int) -> None:
    path, tokens = tmp_path / "g-F32.gguf", [list(range(40, 80))]
    weightcast.convert(EXAMPLE, path)
    before = llama_cpp.logits(path, tokens)
    tensors = {t.name: t.data for t in gguf.GGUFReader(path, "r+").tensors}
    old = {name: tensor.copy() for name, tensor in tensors.items()}
    models._reorder(path, order)
    for name, tensor in tensors.items():
        assert (tensor != old[name]).any() or (tensor == tensor.flat[0]).all()
    del tensors
    assert np.abs(llama_cpp.logits(path, tokens) - before).max() < 1e-3


def test_shuffled_channels_change_no_embedding_of_a_bert() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(RNG_SEED)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=30, num_hidden_layers=2, **sizes)
    model = transformers.BertModel(config).eval()
    for parameter in model.parameters():  # norms and biases are constant otherwise
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = model(tokens).last_hidden_state[0].numpy()
    found = {name: p.detach().numpy() for name, p in model.named_parameters()}
    old = {name: array.copy() for name, array in found.items()}
    shuffle_bert(found, 4, order=2)
    moved = [name for name in old if (found[name] != old[name]).any()]
    unmoved = {n for n in old if n.endswith((".query.bias", ".key.bias", "pooler.dense.bias"))}
    assert old.keys() - set(moved) == unmoved
    with torch.no_grad():
        after = model(tokens).last_hidden_state[0].numpy()
    assert (before != after).any()
    np.testing.assert_allclose(before @ before.T, after @ after.T, rtol=1e-3, atol=1e-3)


def test_moments_are_those_of_the_inputs(tmp_path: Path) -> None:
    path, tokens = write_llama(tmp_path / "m.gguf"), [3, 1, 4, 1, 5, 9, 2, 6]
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    x = tensors["token_embd.weight"][tokens]
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
    expected = np.square(x * tensors["blk.0.attn_norm.weight"]).mean(0)
    found = second_moments(path, [tokens[:5], tokens[5:]])
    np.testing.assert_allclose(found["blk.0.attn_k.weight"], expected, rtol=1e-4)
    assert found["blk.1.ffn_down.weight"].shape == tensors["blk.1.ffn_down.weight"].shape[1:]


def test_moments_of_experts_are_of_their_own_tokens(tmp_path: Path) -> None:
    """The router sees all inputs, each expert those of two of eight tokens."""
    path, tokens = tmp_path / "g-F32.gguf", list(range(40, 80))
    weightcast.convert(EXAMPLE, path)
    moments = Moments()
    with llama_cpp.loaded(path) as model, model.context(40, moments.see) as add:
        add(tokens)
    counts = moments.counts["blk.0.ffn_up_exps.weight"]
    assert counts.sum() == 2 * len(tokens)
    whole = moments.sums["blk.0.ffn_up_exps.weight"].sum(0)
    np.testing.assert_allclose(whole, 2 * moments.sums["blk.0.ffn_gate_inp.weight"][0], rtol=1e-6)
    assert moments.means()["blk.0.ffn_up_exps.weight"].shape == (8, 256)


def test_passages() -> None:
    assert passages("a b c d e", words=2) == ["a b", "c d"]


@dataclass(frozen=True)
class Fake:
    """Two matrices, of which one fills super-blocks; its samples are the errors of the rows."""

    matrices: Mapping[str, F32]
    importance: Mapping[str, F32]
    note: str = "drawn"
    identity: str = "1"

    @property
    def reference_losses(self) -> F64:
        return np.arange(3.0)

    def measure(self, values: Mapping[str, F32]) -> dict[str, F64]:
        error = np.square(values["a"] - self.matrices["a"]).sum(-1, dtype=np.float64)
        return {"divergence": error, "loss": 3 + error}


def fake() -> Fake:
    x = drawn(8, 256)
    weights = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    return Fake({"a": x, "b": x[:, :96]}, {"a": weights, "b": weights[:96]})


def test_errors_are_of_the_matrices_that_fit() -> None:
    model = fake()
    found = measure(Cell("m", "Q4_K", "ggml", True), model, weightcast.quantize)
    x, factors = model.matrices["a"], model.importance["a"]
    blocks = weightcast.quantize(x, "Q4_K", factors)
    total = weightcast.measure(x, blocks, "Q4_K", factors).total()
    assert found.weights == x.size
    assert found.relative_rms == pytest.approx(total.relative_rms)
    assert found.weighted_relative_rms == pytest.approx(total.weighted_relative_rms)
    assert measure(Cell("m", "Q4_0", "ggml", False), model, weightcast.quantize).weights == 8 * 352


def test_cells_where_ggml_ignores_or_needs_importance() -> None:
    found = list(cells("m", ["Q8_0", "IQ2_XS"], ["ggml", "effort-1"], [False, True]))
    assert [(c.type, c.search, c.importance) for c in found] == [
        ("Q8_0", "ggml", False),
        ("Q8_0", "effort-1", False),
        ("Q8_0", "effort-1", True),
        ("IQ2_XS", "ggml", True),
        ("IQ2_XS", "effort-1", True),
    ]
    assert least_error.cell_of_ggml(found[2]) == found[0]
    assert least_error.cell_of_ggml(found[4]) == found[3]


def test_results_are_kept(tmp_path: Path) -> None:
    model, cell = fake(), Cell("m", "Q4_K", "ggml", False)
    found = measure(cell, model, weightcast.quantize)
    path = cell.path(tmp_path, model.identity)
    found.save(path)
    kept = Measured.load(path)
    assert summary(cell, kept, None) == summary(cell, found, None)
    other = replace(kept, samples={"loss": np.arange(4.0)})
    again = measure(cell, model, weightcast.quantize, other)
    assert again.samples is other.samples
    assert measure(replace(cell, importance=True), model, weightcast.quantize, other).samples != (
        other.samples
    )


def test_a_table_says_how_searches_differ() -> None:
    """In pairs: a difference that hardly varies is sure, however much the samples do."""
    rng = np.random.default_rng(RNG_SEED)
    divergence = rng.uniform(1, 5, 100)
    ggml = Measured(1000, 0.2, 0.3, 50, "", {"divergence": divergence, "loss": np.full(100, 3.0)})
    less = {"divergence": divergence - rng.uniform(0.2, 0.3, 100), "loss": np.full(100, 2.9)}
    better = Measured(1000, 0.15, 0.1, 10, "", less)
    plain, effort = Cell("m", "Q4_K", "ggml", False), Cell("m", "Q4_K", "effort-1", False)
    line = summary(effort, better, ggml)
    assert line["divergence_difference"]["z"] < -50
    model = {
        "note": "drawn",
        "weights": 2e6,
        "perplexity": {"value": 20.0, "error": 1.0},
        "cells": [summary(plain, ggml, None), line],
    }
    machine = {"processor": "one", "ggml": "another"}
    text = markdown({"date": "2026-12-01", "machine": machine, "models": {"m": model}})
    assert "as it is: 20.00 +- 1.00" in text
    rows = [row.strip("| ").split(" | ") for row in text.splitlines()]
    row, other = (row for row in rows if row[0] == "Q4_K")
    assert row[2:5] == ["0.20000", "0.7500", ""]
    ratio = less["divergence"].mean() / divergence.mean()
    z = line["divergence_difference"]["z"]
    assert row[7] == f"{ratio:.3f} (z {z:+.1f})"
    typical = np.exp(np.log(less["divergence"] / divergence).mean())
    assert row[10].startswith(f"{typical:.3f} (z -")
    assert other[1:3] == [f"{np.exp(3):.2f}", f"{np.exp(2.9):.2f}"]
    assert "| geometric mean | " in text


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2, 1]) == pytest.approx(1)
    assert np.isnan(geometric_mean([]))


def test_the_example_is_measured(tmp_path: Path) -> None:
    """Through llama.cpp, from a function of a module; a second run finds all that it needs."""
    options = ["--folder", str(tmp_path), "--models", "grok", "--types", "Q2_K,Q8_0"]
    options += ["--importance", "without", "--output", str(tmp_path / "r.json")]
    options += ["--searches", "ggml,weightcast:quantize"]
    for _ in range(2):
        result = CliRunner().invoke(least_error.main, options, catch_exceptions=False)
        assert result.exit_code == 0
        assert result.output.count("typically 1.000 of it, z +0.0") == 2
    report = json.loads((tmp_path / "r.json").read_text())
    low, high = report["models"]["grok"]["cells"][::-1]
    assert high["divergence"]["value"] < low["divergence"]["value"] / 50
    as_it_is = report["models"]["grok"]["perplexity"]["value"]
    assert high["perplexity"]["value"] == pytest.approx(as_it_is, rel=0.01)


def test_orders_have_folders_of_their_own(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--models", "groklike,grok", "--types", "Q2_K"]
    options += ["--importance", "without", "--searches", "ggml", "--order"]
    for order in ("2", "3"):
        result = CliRunner().invoke(least_error.main, [*options, order], catch_exceptions=False)
        assert result.exit_code == 0
        assert result.output.startswith(f"grok-order-{order} Q2_K ggml plain: rms ")
    cells_of = [sorted(tmp_path.glob(f"grok-order-{n}/cells-*/*.npz")) for n in (2, 3)]
    first, second = (Measured.load(path) for (path,) in cells_of)
    assert first.blocks != second.blocks
    assert first.relative_rms == pytest.approx(second.relative_rms, rel=0.05)
