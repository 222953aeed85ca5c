"""Importance that is collected beside what llama.cpp's own graph multiplies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast
from benchmarks.second_moments import Moments
from tests.evaluation.dense_models import VOCABULARY, write_dense
from tests.evaluation.running import EXAMPLE, draw_tokens
from weightcast.commands.llama_cpp import loaded
from weightcast.converters.sources import open_graph
from weightcast.evaluation.evaluate import Text, collect_importance
from weightcast.evaluation.settings import Settings
from weightcast.evaluation.text import Chunks
from weightcast.formats.gguf.importance_sums import ImportanceSums

# Relative, of means by column: float32 in another order. Measured: 3e-6 and 5e-5.
MAX_DENSE_ERROR, MAX_EXPERT_ERROR = 1e-4, 2e-3


def llama_moments(path: Path, tokens: np.ndarray) -> Moments:
    moments = Moments()
    with loaded(path) as model:
        for row in tokens.tolist():
            with model.context(len(row), moments.see) as add:
                add(row)
            moments.check()
    return moments


def collected(path: Path, tokens: np.ndarray, precision: str = "float32") -> ImportanceSums:
    text = Text("text.txt", Chunks(tokens.astype(np.int32)))
    return collect_importance(open_graph(path), text, Settings(precision), scores=False)[0]


def worst(sums: ImportanceSums, moments: Moments, *, experts: bool) -> float:
    """Give the largest relative error of a tensor's means by column."""
    errors = []
    for name, entry in sums.entries.items():
        if ("_exps" in name) != experts:
            continue
        used = entry.counts > 0
        found = entry.squares[used] / entry.counts[used, None]
        expected = moments.sums[name][used] / moments.counts[name][used, None]
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return float(max(errors))


@pytest.fixture(scope="module")
def grok_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grok") / "grok-F32.gguf"
    weightcast.convert(EXAMPLE, path, types="F32")
    return path


def test_importance_of_grok1_is_that_of_llama_cpp(grok_f32: Path) -> None:
    vocabulary = weightcast.open(EXAMPLE).spec.vocab_size
    tokens = draw_tokens(3, 64, vocabulary)
    moments, sums = llama_moments(grok_f32, tokens), collected(EXAMPLE, tokens)
    assert set(sums.entries) == {n for n in moments.sums if n.startswith("blk.")}
    moved = sum(
        int(np.abs(entry.counts - moments.counts[name]).sum())
        for name, entry in sums.entries.items()
    )
    assert moved == 0
    assert worst(sums, moments, experts=False) < MAX_DENSE_ERROR
    assert worst(sums, moments, experts=True) < MAX_EXPERT_ERROR


def test_importance_of_dense_models_is_that_of_llama_cpp(tmp_path: Path) -> None:
    path = write_dense(tmp_path / "model.gguf", "qwen2")
    tokens = draw_tokens(3, 64, VOCABULARY)
    moments, sums = llama_moments(path, tokens), collected(path, tokens)
    assert set(sums.entries) == {n for n in moments.sums if n.startswith("blk.")}
    assert all(entry.counts.tolist() == [tokens.size] for entry in sums.entries.values())
    assert worst(sums, moments, experts=False) < MAX_DENSE_ERROR


def test_bfloat16_is_ample_for_importance() -> None:
    """Text noise is 3 to 15 %."""
    tokens = draw_tokens(2, 64, weightcast.open(EXAMPLE).spec.vocab_size)
    exact, rounded = (collected(EXAMPLE, tokens, how) for how in ("float32", "bfloat16"))
    errors = [
        np.linalg.norm(rounded.entries[name].squares - entry.squares)
        / np.linalg.norm(entry.squares)
        for name, entry in exact.entries.items()
        if "_exps" not in name
    ]
    assert 0 < max(errors) < 0.02


def test_plain_sums_are_of_the_same_inputs(tmp_path: Path) -> None:
    path = write_dense(tmp_path / "model.gguf", "llama")
    tokens = draw_tokens(2, 8, VOCABULARY)
    entry = collected(path, tokens).entries["blk.0.attn_q.weight"]
    table = weightcast.open(path)["token_embd.weight"].numpy()
    norm = weightcast.open(path)["blk.0.attn_norm.weight"].numpy()
    x = table[tokens.reshape(-1)].astype(float)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5) * norm
    np.testing.assert_allclose(entry.squares[0], np.square(x).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(entry.plain[0], x.sum(axis=0), atol=1e-4)
