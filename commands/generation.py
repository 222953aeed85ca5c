"""Write text and measure perplexity with a model that llama.cpp runs."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.commands.llama_cpp import Model

_TEMPERATURE: Final = 0.5

# Tokens that a perplexity's window has.
WINDOW: Final = 256


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the log-softmax over the last axis, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


def token_losses(model: Model, text: str) -> NDArray[np.float64]:
    """Measure the negative log-probability of each token [tokens], in windows of 256 of them.

    Windows do not overlap. Each token but the first of a window is predicted from all that precede
    it there. exp of the mean is the perplexity.
    """
    tokens = model.tokenize(text)
    losses: list[float] = []
    for start in range(0, len(tokens) - 1, WINDOW):
        window = tokens[start : start + WINDOW]
        with model.context(len(window)) as add:
            found = log_probabilities(add(window))
        losses += [-found[n, token] for n, token in enumerate(window[1:])]
    return np.array(losses)


def continue_text(model: Model, prompt: str, n_tokens: int, seed: int) -> str:
    """Continue a text by `n_tokens` tokens, drawn at a temperature of 0.5; without the prompt.

    A token is the one of the largest logit with noise added (Gumbel's, which makes it a draw from
    the softmax). The noise is the same for each model, so texts differ only where models do.
    """
    tokens = model.tokenize(prompt)
    rng = np.random.default_rng(seed)
    with model.context(len(tokens) + n_tokens) as add:
        logits = add(tokens)[-1]
        for _ in range(n_tokens):
            noise = rng.gumbel(size=len(logits))
            tokens.append(int(np.argmax(logits / _TEMPERATURE + noise)))
            logits = add(tokens[-1:])[-1]
    return model.detokenize(tokens).strip()[len(prompt) :]
