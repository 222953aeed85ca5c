"""Evaluations as a run gives them, with losses drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightcast.evaluation.divergence import TokenRecords, kl_statistics, perplexity
from weightcast.evaluation.evaluate import (
    ArtifactEvaluation,
    Evaluation,
    Judged,
    Text,
    worst_tokens,
)
from weightcast.evaluation.layers import LayerErrors
from weightcast.evaluation.settings import Settings
from weightcast.evaluation.text import Chunks
from weightcast.formats.kl_base import scored_positions

Json = dict[str, Any]
CHUNKS, CONTEXT, VOCABULARY = 6, 64, 100
# bits per weight and how far artifacts are off
ARTIFACTS = {"x-Q8_0.gguf": (8.5, 0.01), "x-Q4_K_M.gguf": (4.8, 0.1), "x-Q2_K.gguf": (2.9, 0.4)}


def records(error: float, seed: int = 0) -> TokenRecords:
    """Losses of a source, and of an artifact whose losses differ by about `error`."""
    rng = np.random.default_rng(seed)
    n = CHUNKS * scored_positions(CONTEXT)
    base = rng.exponential(2.0, n)
    q = np.abs(base + error * rng.standard_normal(n))
    kld = (error * rng.standard_normal(n)) ** 2
    top = rng.random(n) > error / 4
    return TokenRecords(base, q, kld, np.exp(-q) - np.exp(-base), top)


def layers(
    error: float, count: int, *, routed: bool, isolated: bool = False
) -> tuple[LayerErrors, ...]:
    return tuple(
        LayerErrors(
            n,
            error * (1 + n) ** 0.5,
            1 - error**2,
            max(0.0, 1 - error - n / 100) if routed else None,
            1 - error / 2 if routed else None,
            error / (1 + n) if isolated else None,
        )
        for n in range(count)
    )


def evaluation(
    names: dict[str, tuple[float, float]] = ARTIFACTS,
    *,
    n_layers: int = 4,
    routed: bool = True,
    isolated: bool = False,
) -> Evaluation:
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (CHUNKS, CONTEXT), np.int32)
    text = Text("wiki.test", Chunks(tokens))
    artifacts = []
    for name, (bits, error) in names.items():
        found = records(error)
        artifacts.append(
            ArtifactEvaluation(
                Judged(name, int(bits * 1e6 / 8), bits),
                kl_statistics(found, CONTEXT, CHUNKS),
                layers(error, n_layers, routed=routed, isolated=isolated),
                worst_tokens(text.tokens, found),
            )
        )
    source = Judged("grok-1", 1_000_000, 8.0)
    losses = perplexity(records(0).nll_base)
    return Evaluation(source, text, Settings(), losses, tuple(artifacts))
