"""Say what an importance matrix holds: how large and how uneven inputs are, which experts saw few.

Of tensors and layers these are the figures of llama-imatrix --show-statistics (compute_statistics
and compute_cossim in tools/imatrix/imatrix.cpp of llama.cpp), but summed in float64: theirs, in
float32, are off by some thousandths where a tensor has millions of columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums

_LAYER: Final = re.compile(r"blk\.(\d+)\.")
# Mean squared inputs up to this count as none.
_INACTIVE: Final = 1e-5
# Columns of an expert are known to a tenth with some hundred tokens (a chi-square's deviation).
FEWEST_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Figures of mean squared inputs over all columns of a tensor's matrices that tokens reached.

    `layer` is None outside layers. `active` is the share of columns that are more than nothing,
    `entropy` in bits of their shares of the sum, `entropy_norm` that by its maximum, `zd` the share
    of columns more than a deviation above the mean. `cosine` compares the sums with those of the
    same tensor a layer before; 0 without one. `active_columns` has a share for each matrix, NaN for
    those that no token reached.
    """

    name: str
    layer: int | None
    total: float
    least: float
    largest: float
    mean: float
    deviation: float
    active: float
    columns: int
    entropy: float
    entropy_norm: float
    zd: float
    cosine: float
    active_columns: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Means over the tensors of a layer, weighted by their columns."""

    layer: int
    total: float
    zd: float
    cosine: float


@dataclass(frozen=True, slots=True)
class RarelyUsed:
    """An expert that few tokens reached; `more_text` estimates the tokens of text it still needs.

    That takes its share of tokens to stay as it is: None for an expert that none reached.
    """

    expert: int
    tokens: int
    more_text: int | None


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """How the tokens of a text were spread over the experts of a layer.

    `tensors` are those that saw the same tokens, `tokens` int64 [experts], `shares` of all tokens
    that experts got, float64 [experts]; `rare` those with fewer tokens than were asked for.
    """

    layer: int | None
    tensors: tuple[str, ...]
    tokens: NDArray[np.int64]
    shares: NDArray[np.float64]
    rare: tuple[RarelyUsed, ...]


def tensor_statistics(sums: ImportanceSums) -> list[TensorStatistics]:
    """Give the figures of every tensor that tokens reached, by layer and name."""
    entries = {name: entry for name, entry in sums.entries.items() if entry.counts.any()}
    found = [_statistics(name, entry, entries) for name, entry in entries.items()]
    return sorted(found, key=lambda each: (-1 if each.layer is None else each.layer, each.name))


def layer_statistics(tensors: Iterable[TensorStatistics]) -> list[LayerStatistics]:
    """Average the figures of tensors by layer; those outside layers are left out."""
    by_layer: dict[int, list[TensorStatistics]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            by_layer.setdefault(tensor.layer, []).append(tensor)
    return [_layer(layer, by_layer[layer]) for layer in sorted(by_layer)]


def expert_use(sums: ImportanceSums, fewest: int = FEWEST_TOKENS) -> list[ExpertUse]:
    """Give the use of experts by layer; `fewest` are the tokens that each should have.

    The length of the text is the largest count of any tensor: dense ones see every token.
    """
    text = max((int(entry.counts.max(initial=0)) for entry in sums.entries.values()), default=0)
    groups: dict[tuple[int | None, bytes], list[str]] = {}
    for name, entry in sums.entries.items():
        if entry.counts.size > 1:
            groups.setdefault((_layer_of(name), entry.counts.tobytes()), []).append(name)
    found = [
        _use(layer, tuple(sorted(names)), sums.entries[names[0]].counts, text, fewest)
        for (layer, _), names in groups.items()
    ]
    return sorted(found, key=lambda use: (-1 if use.layer is None else use.layer, use.tensors))


def _layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return None if match is None else int(match[1])


def _means(entry: TensorSums) -> NDArray[np.float64]:
    """Give mean squared inputs float64 [matrices, in]; NaN where no token was."""
    counts = np.where(entry.counts > 0, entry.counts, np.nan)[:, None]
    return entry.squares.reshape(len(counts), -1) / counts


def _statistics(
    name: str, entry: TensorSums, entries: Mapping[str, TensorSums]
) -> TensorStatistics:
    means = _means(entry)
    reached = entry.counts > 0
    a = means[reached].reshape(-1)
    total, mean, deviation = float(a.sum()), float(a.mean()), float(a.std())
    shares = a[a > 0] / total if total else a[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    above = (a - mean) / deviation > 1 if deviation else np.zeros(1, bool)
    active = np.where(reached, (means > _INACTIVE).mean(axis=1), np.nan)
    return TensorStatistics(
        name=name,
        layer=_layer_of(name),
        total=total,
        least=float(a.min()),
        largest=float(a.max()),
        mean=mean,
        deviation=deviation,
        active=float((a > _INACTIVE).mean()),
        columns=a.size,
        entropy=entropy,
        entropy_norm=entropy / log2(a.size) if a.size > 1 else 0.0,
        zd=float(above.mean()),
        cosine=_cosine(name, entry, entries),
        active_columns=active,
    )


def _cosine(name: str, entry: TensorSums, entries: Mapping[str, TensorSums]) -> float:
    """Compare raw sums with those of the same tensor in the layer before."""
    match = _LAYER.search(name)
    if match is None or match[1] == "0":
        return 0.0
    before = entries.get(f"{name[: match.start(1)]}{int(match[1]) - 1}{name[match.end(1) :]}")
    if before is None or before.squares.size != entry.squares.size:
        return 0.0
    a, b = (each.squares.reshape(-1).astype(np.float64) for each in (entry, before))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def _layer(layer: int, tensors: list[TensorStatistics]) -> LayerStatistics:
    weights = [tensor.columns for tensor in tensors]
    figures = ([t.total for t in tensors], [t.zd for t in tensors], [t.cosine for t in tensors])
    return LayerStatistics(layer, *(float(np.average(f, weights=weights)) for f in figures))


def _use(
    layer: int | None, tensors: tuple[str, ...], counts: NDArray[np.int64], text: int, fewest: int
) -> ExpertUse:
    rare = []
    for expert in np.flatnonzero(counts < fewest).tolist():
        tokens = int(counts[expert])
        more = ceil(text * (fewest / tokens - 1)) if tokens else None
        rare.append(RarelyUsed(expert, tokens, more))
    return ExpertUse(layer, tensors, counts, counts / max(int(counts.sum()), 1), tuple(rare))
