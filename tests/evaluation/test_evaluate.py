"""Evaluations beside what llama.cpp predicts, and KL base files that either can judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.evaluation.running import EXAMPLE
from weightcast.commands import llama_cpp
from weightcast.evaluation.divergence import compare_logits, kl_statistics
from weightcast.formats.kl_base import read_kl_base

CONTEXT, CHUNKS = 64, 4
# Relative, of means over 124 tokens.
MAX_ERROR = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact and its values in F32, the source in F32, and tokens."""
    folder = tmp_path_factory.mktemp("evaluate")
    weightcast.convert(EXAMPLE, folder / "grok-Q3_K_M.gguf", types="Q3_K_M")
    weightcast.convert(
        folder / "grok-Q3_K_M.gguf", folder / "values-F32.gguf", types="F32", allow_requantize=True
    )
    weightcast.convert(EXAMPLE, folder / "grok-F32.gguf", types="F32")
    vocabulary = weightcast.open(EXAMPLE).spec.vocab_size
    tokens = np.random.default_rng(11).integers(4, vocabulary, CONTEXT * CHUNKS)
    np.save(folder / "tokens.npy", tokens)
    return folder


def evaluate(folder: Path, *artifacts: str, **options: object) -> weightcast.Evaluation:
    paths = [folder / name for name in artifacts]
    return weightcast.evaluate(
        EXAMPLE, *paths, text=folder / "tokens.npy", context=CONTEXT, **options
    )


def test_divergence_is_that_of_llama_cpp_with_the_same_values(folder: Path) -> None:
    found = evaluate(folder, "grok-Q3_K_M.gguf")
    tokens = np.load(folder / "tokens.npy").reshape(CHUNKS, CONTEXT)
    scored = slice(CONTEXT // 2, CONTEXT - 1)
    base, other = (
        llama_cpp.logits(folder / name, tokens.tolist())[:, scored].reshape(-1, 2048)
        for name in ("grok-F32.gguf", "values-F32.gguf")
    )
    targets = tokens[:, CONTEXT // 2 + 1 :].reshape(-1)
    expected = kl_statistics(compare_logits(base, other, targets), CONTEXT, CHUNKS)
    statistics = found.artifacts[0].statistics
    assert statistics.n == CHUNKS * (CONTEXT // 2 - 1)
    for name in ("kld_mean", "kld_mean_se", "kld_max", "kld_median", "ppl_q", "ppl_base", "dp_rms"):
        measured, wanted = getattr(statistics, name), getattr(expected, name)
        assert measured == pytest.approx(wanted, rel=MAX_ERROR), name
    assert statistics.same_top_p == expected.same_top_p
    assert found.perplexity.ppl == pytest.approx(expected.ppl_base, rel=MAX_ERROR)


def test_a_source_loses_nothing_beside_itself(folder: Path) -> None:
    statistics = (
        weightcast.evaluate(EXAMPLE, EXAMPLE, text=folder / "tokens.npy", context=CONTEXT)
        .artifacts[0]
        .statistics.as_json()
    )
    ones = {"cor_ln_ppl", "ppl_ratio", "same_top_p"}
    kept = {"ppl_q", "ppl_q_se", "ppl_base", "ppl_base_se", "n", "n_ctx", "first", "chunks"}
    for name, value in statistics.items():
        if name not in kept:
            assert value == (1 if name in ones else 0), name
    assert statistics["ppl_q"] == statistics["ppl_base"]


def test_base_files_judge_other_models(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "source.kld"
    exact = evaluate(folder, "grok-Q3_K_M.gguf", save_base=base).artifacts[0].statistics
    stored = read_kl_base(base)
    assert (stored.n_chunks, stored.n_ctx, stored.n_vocab) == (CHUNKS, CONTEXT, 2048)
    judged = weightcast.evaluate(folder / "grok-Q3_K_M.gguf", base=base)
    statistics = judged.artifacts[0].statistics
    # 16 bits for the 16 nats below the likeliest token.
    assert statistics.kld_mean == pytest.approx(exact.kld_mean, rel=0.01)
    assert statistics.ppl_q == pytest.approx(exact.ppl_q, rel=1e-5)
    assert judged.artifacts[0].layers == ()


def test_worst_tokens_are_those_that_diverge_most(folder: Path) -> None:
    found = evaluate(folder, "grok-Q3_K_M.gguf").artifacts[0]
    tokens = np.load(folder / "tokens.npy").reshape(CHUNKS, CONTEXT)
    divergences = [token.kld for token in found.worst]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] == pytest.approx(found.statistics.kld_max, rel=1e-6)
    for token in found.worst:
        assert tokens[token.chunk, token.position] == token.token
        assert CONTEXT // 2 < token.position < CONTEXT


def test_isolated_layers_are_measured(folder: Path) -> None:
    layers = evaluate(folder, "grok-Q3_K_M.gguf", isolated=True).artifacts[0].layers
    assert len(layers) == weightcast.open(EXAMPLE).spec.num_layers
    # The first layer gets the same states either way, but for the embedding's own rounding.
    assert all(layer.alone is not None and 0 < layer.alone < layer.relative for layer in layers)
    assert all(
        layer.alone is None for layer in evaluate(folder, "grok-Q3_K_M.gguf").artifacts[0].layers
    )


def test_what_is_not_given_is_asked_for() -> None:
    with pytest.raises(weightcast.RequestError, match="give a text"):
        weightcast.evaluate(EXAMPLE)
