"""Lay out the demo's tables and texts, 80 characters wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.commands.generation import WINDOW, log_probabilities

_COLUMN: Final = 38
_LIKELY: Final = 0.01


class Table:
    """Lines of the table of differences, against log-probabilities that are expected."""

    HEADER: Final = (
        "Do they compute the same? The next token after 96 random ones, against",
        "weightcast's own forward pass over the shards, in float32 numpy:",
        "",
        f"{'':<22} {'run by':<10} {'mean':>7} {'largest':>8}  likeliest token",
    )
    FOOTER: Final = (
        "",
        "Differences are those of log-probabilities, of tokens above 1 %: 1e-03 turns",
        "10 % into 10.01 %, 1e-01 turns it into 11 %. These are rounding, and fine:",
        "- llama.cpp takes GELU from a table in half precision;",
        "- Q8_0 and bf16 round what the release has in float32, such as the embedding;",
        "- llama.cpp rounds activations to 8 bits to multiply them with Q8_0 weights.",
        "A tensor in the wrong place would make the largest more than 1.",
    )

    def __init__(self, expected: NDArray[np.float32]) -> None:
        self._expected = log_probabilities(expected)
        self._is_likely = self._expected > log(_LIKELY)

    def line(self, name: str, runner: str, logits: NDArray[np.float32]) -> str:
        found = log_probabilities(logits)
        differences = np.abs(found - self._expected)[self._is_likely]
        mean, largest = (
            f"{d:.0e}" if d else "none" for d in (differences.mean(), differences.max())
        )
        same = found.argmax(axis=-1) == self._expected.argmax(axis=-1)
        return (
            f"{name:<22} {runner:<10} {mean:>7} {largest:>8}  "
            f"the same in {same.sum()} of {same.size}"
        )


@dataclass(frozen=True, slots=True)
class Spoken:
    """An output that llama.cpp ran: its size, and what it wrote."""

    type: str
    nbytes: int
    bits_per_weight: float
    losses: NDArray[np.float64]  # of each held-out token
    text: str


def quality(made: Sequence[Spoken]) -> Iterator[str]:
    """Give the table of sizes and perplexities, the latter beside that of the first output."""
    yield f"{'run by llama.cpp':<17} {'MB':>7} {'bits/weight':>12} {'perplexity':>11}"
    for each in made:
        note = "" if each is made[0] else f"  {_change(each.losses - made[0].losses)}"
        yield (
            f"{each.type:<17} {each.nbytes / 1e6:>7.2f} {each.bits_per_weight:>12.2f} "
            f"{np.exp(each.losses.mean()):>11.2f}{note}"
        )
    yield ""
    yield f"Perplexity on {made[0].losses.size:,} tokens of held-out text, in windows of {WINDOW}:"
    yield "between how many tokens the model wavers at each step; less is better. After +-"
    yield "stands the standard error: a change no larger may be chance."


def _change(differences: NDArray[np.float64]) -> str:
    """Say by what share perplexity changes, given the differences of the tokens' losses."""
    mean = differences.mean()
    error = np.exp(mean) * differences.std() / np.sqrt(differences.size)
    return f"{100 * np.expm1(mean):+.2f} % +- {100 * error:.2f}"


def beside(left: Spoken, right: Spoken, first: Spoken) -> Iterator[str]:
    """Set two texts beside each other, each below its type."""
    columns = [[_heading(each, first), *_wrapped(each.text)] for each in (left, right)]
    for a, b in zip_longest(*columns, fillvalue=""):
        yield f"{a:<{_COLUMN}}    {b}".rstrip()


def _heading(spoken: Spoken, first: Spoken) -> str:
    if spoken is first:
        return f"--- {spoken.type}"
    if spoken.text == first.text:
        return f"--- {spoken.type}: the same text"
    pairs = zip(spoken.text.split(), first.text.split(), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f"--- {spoken.type}: parts after {same} word{'s' * (same != 1)}"


def _wrapped(text: str) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, _COLUMN)]
