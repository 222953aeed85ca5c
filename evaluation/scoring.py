"""Score what networks predict: the losses of each, and how artifacts diverge from the source.

Scored are the positions that llama-perplexity scores, the second half of each chunk but its last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from weightcast.evaluation.arithmetic import F32, F64
from weightcast.evaluation.divergence import (
    TokenRecords,
    compare_logits,
    compare_with_base,
    join_records,
    token_losses,
)
from weightcast.evaluation.networks import Ids, Network
from weightcast.evaluation.workers import BLOCK_TOKENS, Pool
from weightcast.formats.kl_base import KLBase, first_scored, scored_positions

OnLogits = Callable[[F32], None]
# Bytes of logits that are held at a time, of all networks together, unless a budget says less.
USUAL_BYTES: Final = 1 << 30
_TINY: Final = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class Scored:
    """Positions of one chunk that are scored at once: the first of them and their number."""

    chunk: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Losses [n] of the source in nats, and what is known of each token beside it by artifact."""

    losses: F64
    records: tuple[TokenRecords, ...]


def scored_parts(n_chunks: int, context: int) -> list[Scored]:
    """List the positions that are scored, in parts that do not depend on the memory."""
    first, n = first_scored(context), scored_positions(context)
    return [
        Scored(chunk, first + start, min(BLOCK_TOKENS, n - start))
        for chunk in range(n_chunks)
        for start in range(0, n, BLOCK_TOKENS)
    ]


def score(
    networks: Sequence[Network],
    states: Sequence[F32],
    tokens: Ids,
    pool: Pool,
    *,
    memory: int | None = None,
    on_logits: OnLogits = lambda logits: None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Run the heads on states [tokens, emb]; the first network is the source.

    `on_logits` gets the source's logits [positions, vocab] in order. Heads are decoded once for as
    many positions as `memory` bytes hold the logits of.
    """
    context = tokens.shape[1]
    parts = scored_parts(len(tokens), context)
    losses: list[F64] = []
    records: list[list[TokenRecords]] = [[] for _ in networks[1:]]
    done = 0
    for group in _groups(parts, networks, memory):
        on_part(done, len(parts))
        targets = [_targets(tokens, part) for part in group]
        rows = _rows(group)
        logits = [
            _logits(*each, group, rows, context) for each in zip(networks, states, strict=True)
        ]
        base = logits[0]
        on_logits(base)
        pairs = list(zip(rows, targets, strict=True))
        losses += pool.each(pairs, partial(_losses, base))
        for found, other in zip(records, logits[1:], strict=True):
            found += pool.each(pairs, partial(_records, base, other))
        done += len(group)
    on_part(done, len(parts))
    return Scores(np.concatenate(losses), tuple(map(join_records, records)))


def divergences(
    network: Network, final: F32, others: Sequence[F32], tokens: Ids, memory: int | None = None
) -> list[float]:
    """Average the KL of what states [tokens, emb] predict from what each of some others does.

    The head is decoded once for as many of them as `memory` bytes hold the logits of.
    """
    parts = scored_parts(*tokens.shape)
    targets = np.concatenate([_targets(tokens, part) for part in parts])
    rows, n = _rows(parts), len(targets)

    def logits(of: Sequence[F32]) -> F32:
        gathered = np.concatenate([_gathered(states, parts, tokens.shape[1]) for states in of])
        moved = [slice(k * n + r.start, k * n + r.stop) for k in range(len(of)) for r in rows]
        return network.logits(gathered, moved)

    base = logits([final])
    size = max(1, (memory or USUAL_BYTES) // base.nbytes)
    found = []
    for start in range(0, len(others), size):
        group = others[start : start + size]
        for other in np.split(logits(group), len(group)):
            found.append(float(compare_logits(base, other, targets).kld.mean()))
    return found


def head_effect(network: Network, other: Network, states: F32, tokens: Ids) -> float:
    """Average |l' - l|^2 / |l|^2 of logits less their mean, as predictions depend on no constant.

    Both heads get the states [tokens, emb] of a network's last layer; positions are the first that
    are scored, as many as are worked on at once.
    """
    part = scored_parts(*tokens.shape)[0]
    rows = [slice(0, part.count)]
    own, changed = (
        each.logits(_gathered(states, [part], tokens.shape[1]), rows).astype(np.float64)
        for each in (network, other)
    )
    difference = changed - own
    for logits in (own, difference):
        logits -= logits.mean(axis=1, keepdims=True)
    squares = np.square(own).sum(axis=1)
    return float((np.square(difference).sum(axis=1) / np.maximum(squares, _TINY)).mean())


def score_against(
    base: KLBase,
    network: Network,
    states: F32,
    *,
    memory: int | None = None,
) -> TokenRecords:
    """Compare a network's predictions with those in a KL base file, as llama-perplexity does."""
    first = first_scored(base.n_ctx)
    found = []
    for group in _groups(scored_parts(base.n_chunks, base.n_ctx), [network], memory):
        rows = _rows(group)
        logits = _logits(network, states, group, rows, base.n_ctx)
        found += [
            compare_with_base(base, part.chunk, logits[own], part.start - first)
            for part, own in zip(group, rows, strict=True)
        ]
    return join_records(found)


def _groups(
    parts: Sequence[Scored], networks: Sequence[Network], memory: int | None
) -> Iterator[Sequence[Scored]]:
    row_bytes = 4 * networks[0].vocab_size * len(networks)
    largest = max((part.count for part in parts), default=1)
    size = max(1, (memory or USUAL_BYTES) // (row_bytes * largest))
    return (parts[start : start + size] for start in range(0, len(parts), size))


def _logits(
    network: Network, states: F32, group: Sequence[Scored], rows: Sequence[slice], context: int
) -> F32:
    return network.logits(_gathered(states, group, context), rows)


def _gathered(states: F32, parts: Sequence[Scored], context: int) -> F32:
    at = [part.chunk * context + part.start for part in parts]
    return np.concatenate(
        [states[first : first + part.count] for first, part in zip(at, parts, strict=True)]
    )


def _rows(group: Sequence[Scored]) -> list[slice]:
    cuts = accumulate((part.count for part in group), initial=0)
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _losses(logits: F32, pair: tuple[slice, Ids]) -> F64:
    rows, targets = pair
    return token_losses(logits[rows], targets)


def _records(base: F32, other: F32, pair: tuple[slice, Ids]) -> TokenRecords:
    rows, targets = pair
    return compare_logits(base[rows], other[rows], targets)


def _targets(tokens: Ids, part: Scored) -> Ids:
    return tokens[part.chunk, part.start + 1 : part.start + 1 + part.count]
