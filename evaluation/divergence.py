"""Compare what two models predict, token by token, and sum it up as llama-perplexity does.

Two ways to the same records: logits beside logits, exact in float64, so that equal models differ by
0; and the log-probabilities of a KL base file beside logits, in the arithmetic of llama-perplexity
(float32, terms below exp(-16) left out), whose figures they reproduce. Formulas: kl_divergence in
tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.kl_base import DEPTH, KLBase, first_scored

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
# Values of logits that are worked on at a time: with a vocabulary of 262,144, one position.
_BLOCK: Final = 1 << 18
# Fewer tokens have no standard error, as in llama-perplexity.
_FEWEST: Final = 11


@dataclass(frozen=True, slots=True)
class TokenRecords:
    """What is known of each scored token [n]; float64 but for `same_top`, which is bool.

    `nll_base` and `nll_q` are negative log-probabilities of the token by the base and by the
    artifact, in nats; `kld` the divergence of the base from the artifact; `dp` what the token's
    probability gained; `same_top` whether both find the same token likeliest, the first of equals.
    """

    nll_base: F64
    nll_q: F64
    kld: F64
    dp: F64
    same_top: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kld)


def join_records(parts: Sequence[TokenRecords]) -> TokenRecords:
    """Put records one after the other."""
    names = ("nll_base", "nll_q", "kld", "dp", "same_top")
    return TokenRecords(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def compare_logits(base: F32, logits: F32, targets: NDArray[np.integer[Any]]) -> TokenRecords:
    """Compare logits [n, vocab] with those of the base by the next tokens [n], in float64."""
    _check(base, logits, targets)
    return join_records(
        [_of_logits(base[rows], logits[rows], targets[rows]) for rows in _blocks(logits)]
    )


def compare_log_probs(
    log_probs: F32, logits: F32, targets: NDArray[np.integer[Any]]
) -> TokenRecords:
    """Compare logits [n, vocab] with log-probabilities of a base file, as llama-perplexity does."""
    _check(log_probs, logits, targets)
    return join_records(
        [_of_log_probs(log_probs[rows], logits[rows], targets[rows]) for rows in _blocks(logits)]
    )


def compare_with_base(base: KLBase, chunk: int, logits: F32, start: int = 0) -> TokenRecords:
    """Compare logits [n, vocab] of scored positions from `start` on with a chunk of a base file.

    The file is read in blocks, so that it takes little memory beside the logits.
    """
    targets = base.targets(chunk)[start : start + len(logits)]
    if logits.shape != (len(targets), base.n_vocab):
        expected = f"[up to {base.positions - start}, {base.n_vocab}]"
        raise LayoutError(f"{base.path}: logits {list(logits.shape)}, expected {expected}")
    parts = []
    for rows in _blocks(logits):
        log_probs = base.log_probs(chunk, start + rows.start, start + rows.stop)
        parts.append(_of_log_probs(log_probs, logits[rows], targets[rows]))
    return join_records(parts)


def token_losses(logits: F32, targets: NDArray[np.integer[Any]]) -> F64:
    """Give the negative log-probability [n] of the next tokens [n] by logits [n, vocab], in nats.

    Exponentials in float32, their sum and its logarithm in float64, as in llama-perplexity.
    """
    _check(logits, logits, targets)
    found = np.empty(len(targets))
    for rows in _blocks(logits):
        block = logits[rows]
        largest = block.max(axis=1)
        total = np.exp(block - largest[:, None]).sum(axis=1, dtype=np.float64)
        found[rows] = np.log(total) - (_picked(block, targets[rows]) - largest)
    return found


def _check(base: F32, logits: F32, targets: NDArray[np.integer[Any]]) -> None:
    n, n_vocab = logits.shape
    if base.shape != logits.shape or targets.shape != (n,) or not n:
        shapes = ", ".join(str(list(each.shape)) for each in (base, logits, targets))
        raise LayoutError(f"logits of two models and tokens of shapes {shapes}")
    if targets.min() < 0 or targets.max() >= n_vocab:
        raise LayoutError(f"tokens {targets.min()} to {targets.max()}, logits of {n_vocab:,}")


def _blocks(logits: F32) -> Iterator[slice]:
    n, n_vocab = logits.shape
    rows = max(1, _BLOCK // n_vocab)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _picked(values: NDArray[Any], targets: NDArray[np.integer[Any]]) -> NDArray[Any]:
    found: NDArray[Any] = values[np.arange(len(targets)), targets]
    return found


def _log_softmax(logits: F32) -> F64:
    found = logits.astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    return found


def _of_logits(base: F32, logits: F32, targets: NDArray[np.integer[Any]]) -> TokenRecords:
    log_p, log_q = _log_softmax(base), _log_softmax(logits)
    p = np.exp(log_p)
    nll_base, nll_q = -_picked(log_p, targets), -_picked(log_q, targets)
    with np.errstate(invalid="ignore"):  # 0 * inf, of tokens that a base rules out
        terms = p * (log_p - log_q)
    kld = np.where(p > 0, terms, 0).sum(axis=1)
    same = base.argmax(axis=1) == logits.argmax(axis=1)
    return TokenRecords(nll_base, nll_q, kld, np.exp(-nll_q) - np.exp(-nll_base), same)


def _of_log_probs(log_p: F32, logits: F32, targets: NDArray[np.integer[Any]]) -> TokenRecords:
    largest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)
    log_total = largest + np.log(total).astype(np.float32)
    nll_q = log_total[:, 0] - _picked(logits, targets)
    nll_base = -_picked(log_p, targets)
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - logits + log_total)
    kld = np.where(log_p > -DEPTH, terms, np.float32(0)).sum(axis=1, dtype=np.float64)
    same = log_p.argmax(axis=1) == logits.argmax(axis=1)
    dp = np.exp(-nll_q) - np.exp(-nll_base)
    return TokenRecords(nll_base.astype(float), nll_q.astype(float), kld, dp.astype(float), same)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean loss of n tokens, and its standard error."""

    ppl: float
    ppl_se: float
    n: int


def perplexity(losses: F64) -> Perplexity:
    """Sum up losses [n] in nats. Raises LayoutError without any."""
    if not losses.size:
        raise LayoutError("no tokens are scored")
    mean, error = _mean(losses)
    return Perplexity(exp(mean), exp(mean) * error, len(losses))


@dataclass(frozen=True, slots=True)
class KLStatistics:
    """What llama-perplexity prints of two models, by the names of a JSON file.

    `_se` are standard errors, taking tokens as independent; 0 for up to 10 tokens. Divergences are
    in nats. Probabilities (`dp_*`, `same_top_p`) and the correlation are shares of 1, not percent.
    """

    ppl_q: float
    ppl_q_se: float
    ppl_base: float
    ppl_base_se: float
    cor_ln_ppl: float
    ln_ppl_ratio: float
    ln_ppl_ratio_se: float
    ppl_ratio: float
    ppl_ratio_se: float
    ppl_difference: float
    ppl_difference_se: float
    kld_mean: float
    kld_mean_se: float
    kld_max: float
    kld_p999: float
    kld_p99: float
    kld_p95: float
    kld_p90: float
    kld_median: float
    kld_p10: float
    kld_p05: float
    kld_p01: float
    kld_p001: float
    kld_min: float
    dp_mean: float
    dp_mean_se: float
    dp_max: float
    dp_p999: float
    dp_p99: float
    dp_p95: float
    dp_p90: float
    dp_p75: float
    dp_median: float
    dp_p25: float
    dp_p10: float
    dp_p05: float
    dp_p01: float
    dp_p001: float
    dp_min: float
    dp_rms: float
    dp_rms_se: float
    same_top_p: float
    same_top_p_se: float
    n: int
    n_ctx: int
    first: int
    chunks: int

    def as_json(self) -> dict[str, float | int]:
        """Give names and values in the order of llama-perplexity's lines."""
        return asdict(self)


_QUANTILES: Final = {
    "max": 1.0,
    "p999": 0.999,
    "p99": 0.99,
    "p95": 0.95,
    "p90": 0.9,
    "p75": 0.75,
    "median": 0.5,
    "p25": 0.25,
    "p10": 0.1,
    "p05": 0.05,
    "p01": 0.01,
    "p001": 0.001,
    "min": 0.0,
}


def kl_statistics(records: TokenRecords, n_ctx: int, chunks: int) -> KLStatistics:
    """Sum records [n] up, of chunks of n_ctx tokens. Raises LayoutError without any."""
    n = len(records)
    if not n:
        raise LayoutError("no tokens are scored")
    kld_mean, kld_se = _mean(records.kld)
    dp_mean, dp_se = _mean(records.dp)
    square_mean, square_se = _mean(records.dp**2)
    rms = sqrt(square_mean)
    same = float(records.same_top.mean())
    kld = _quantiles(records.kld)
    del kld["p75"], kld["p25"]
    return KLStatistics(
        **_perplexities(records),
        kld_mean=kld_mean,
        kld_mean_se=kld_se,
        **{f"kld_{name}": value for name, value in kld.items()},
        dp_mean=dp_mean,
        dp_mean_se=dp_se,
        **{f"dp_{name}": value for name, value in _quantiles(records.dp).items()},
        dp_rms=rms,
        dp_rms_se=0.5 / rms * square_se if rms else 0.0,
        same_top_p=same,
        same_top_p_se=sqrt(same * (1 - same) / (n - 1)) if n > 1 else 0.0,
        n=n,
        n_ctx=n_ctx,
        first=first_scored(n_ctx),
        chunks=chunks,
    )


def _perplexities(records: TokenRecords) -> dict[str, float]:
    q, base = perplexity(records.nll_q), perplexity(records.nll_base)
    (mean_q, u_q), (mean_base, u_base) = _mean(records.nll_q), _mean(records.nll_base)
    n = len(records)
    products = (records.nll_q - mean_q) * (records.nll_base - mean_base)
    covariance = float(products.mean()) / (n - 1) if n >= _FEWEST else 0.0
    # The same as of sums of variances and covariance, but exactly 0 for equal models.
    _, ratio_se = _mean(records.nll_q - records.nll_base)
    _, difference_se = _mean(q.ppl * records.nll_q - base.ppl * records.nll_base)
    ratio = exp(mean_q - mean_base)
    return {
        "ppl_q": q.ppl,
        "ppl_q_se": q.ppl_se,
        "ppl_base": base.ppl,
        "ppl_base_se": base.ppl_se,
        "cor_ln_ppl": covariance / (u_q * u_base) if u_q and u_base else 0.0,
        "ln_ppl_ratio": mean_q - mean_base,
        "ln_ppl_ratio_se": ratio_se,
        "ppl_ratio": ratio,
        "ppl_ratio_se": ratio * ratio_se,
        "ppl_difference": q.ppl - base.ppl,
        "ppl_difference_se": difference_se,
    }


def _mean(values: F64) -> tuple[float, float]:
    """Give the mean of values [n] and its standard error."""
    n = len(values)
    error = sqrt(float(values.var()) / (n - 1)) if n >= _FEWEST else 0.0
    return float(values.mean()), error


def _quantiles(values: F64) -> dict[str, float]:
    """Interpolate between sorted values [n], rounded to float32 as llama-perplexity keeps them."""
    rounded = values.astype(np.float32).astype(np.float64)
    found = np.quantile(rounded, list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, found.tolist(), strict=True))
