"""Divergence of models: llama-perplexity's figures, by its base file and by plain arithmetic."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support import DATA
from weightcast.errors import LayoutError
from weightcast.evaluation import divergence
from weightcast.evaluation.divergence import (
    KLStatistics,
    TokenRecords,
    compare_log_probs,
    compare_logits,
    compare_with_base,
    join_records,
    kl_statistics,
    perplexity,
    token_losses,
)
from weightcast.formats.kl_base import KLBaseWriter, read_kl_base

FOLDER = DATA / "kl_base"
F32 = NDArray[np.float32]
# Lines of llama-perplexity and the figures in them, with their standard errors where it gives some.
LINES = {
    "Mean PPL(Q)": "ppl_q",
    "Mean PPL(base)": "ppl_base",
    "Cor(ln(PPL(Q)), ln(PPL(base)))": "cor_ln_ppl",
    "Mean ln(PPL(Q)/PPL(base))": "ln_ppl_ratio",
    "Mean PPL(Q)/PPL(base)": "ppl_ratio",
    "Mean PPL(Q)-PPL(base)": "ppl_difference",
    "Mean KLD": "kld_mean",
    "Maximum KLD": "kld_max",
    "99.9% KLD": "kld_p999",
    "99.0% KLD": "kld_p99",
    "95.0% KLD": "kld_p95",
    "90.0% KLD": "kld_p90",
    "Median KLD": "kld_median",
    "10.0% KLD": "kld_p10",
    "5.0% KLD": "kld_p05",
    "1.0% KLD": "kld_p01",
    "0.1% KLD": "kld_p001",
    "Minimum KLD": "kld_min",
    "Mean Δp": "dp_mean",
    "Maximum Δp": "dp_max",
    "99.9% Δp": "dp_p999",
    "99.0% Δp": "dp_p99",
    "95.0% Δp": "dp_p95",
    "90.0% Δp": "dp_p90",
    "75.0% Δp": "dp_p75",
    "Median Δp": "dp_median",
    "25.0% Δp": "dp_p25",
    "10.0% Δp": "dp_p10",
    "5.0% Δp": "dp_p05",
    "1.0% Δp": "dp_p01",
    "0.1% Δp": "dp_p001",
    "Minimum Δp": "dp_min",
    "RMS Δp": "dp_rms",
    "Same top p": "same_top_p",
}


def some_logits(n: int, n_vocab: int, seed: int, spread: float = 3) -> F32:
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((n, n_vocab))).astype(np.float32)


def some_targets(n: int, n_vocab: int) -> NDArray[np.int64]:
    return np.random.default_rng(99).integers(0, n_vocab, n)


def log_softmax(row: F32) -> list[float]:
    largest = float(max(row))
    total = math.fsum(math.exp(float(x) - largest) for x in row)
    return [float(x) - largest - math.log(total) for x in row]


def test_figures_are_those_that_llama_perplexity_prints() -> None:
    """To the last digit printed, or 2 of it: its logits are those of another build."""
    base, logits = read_kl_base(FOLDER / "base.kld"), np.load(FOLDER / "logits.npy")
    records = join_records([compare_with_base(base, n, logits[n]) for n in range(base.n_chunks)])
    found = kl_statistics(records, base.n_ctx, base.n_chunks).as_json()
    printed = {}
    for line in (FOLDER / "printed.txt").read_text().splitlines():
        if "=====" not in line:
            label, _, figures = line.rpartition(":")
            printed[" ".join(label.split())] = re.findall(r"-?\d+\.\d+", figures), "%" in figures
    assert printed.keys() == LINES.keys()
    for label, (figures, percent) in printed.items():
        names = [LINES[label], f"{LINES[label]}_se"][: len(figures)]
        for name, figure in zip(names, figures, strict=True):
            digits = len(figure.partition(".")[2])
            value = found.pop(name) * (100 if percent else 1)
            size = 1300 if "difference" in name else abs(value)  # of perplexities of that size
            assert abs(value - float(figure)) <= 2 * 10**-digits + 2e-6 * size, label
    assert found == {"n": 105, "n_ctx": 16, "first": 8, "chunks": 15}


def test_exact_records_by_plain_arithmetic() -> None:
    base, logits, targets = some_logits(6, 11, 1), some_logits(6, 11, 2), some_targets(6, 11)
    logits[3] = base[3]
    found = compare_logits(base, logits, targets)
    for n, target in enumerate(targets):
        p, q = log_softmax(base[n]), log_softmax(logits[n])
        expected = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        assert found.kld[n] == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert found.nll_base[n] == pytest.approx(-p[target], rel=1e-12)
        assert found.nll_q[n] == pytest.approx(-q[target], rel=1e-12)
        gained = math.exp(q[target]) - math.exp(p[target])
        assert found.dp[n] == pytest.approx(gained, rel=1e-9, abs=1e-15)
        assert found.same_top[n] == (p.index(max(p)) == q.index(max(q)))
    assert found.kld[3] == 0


def test_records_of_a_base_file_by_plain_arithmetic() -> None:
    """In float32 number by number, terms up to exp(-16) left out."""
    f = np.float32
    targets = some_targets(5, 9)
    log_p = np.array([log_softmax(row) for row in some_logits(5, 9, 1, 9)], f)
    assert (log_p < -16).any()
    logits = some_logits(5, 9, 2, 9)
    found = compare_log_probs(log_p, logits, targets)
    for n, target in enumerate(targets):
        total = math.fsum(float(np.exp(f(x - max(logits[n])))) for x in logits[n])
        log_total = f(max(logits[n]) + f(math.log(total)))
        terms = [
            float(f(np.exp(a) * f(f(a - x) + log_total)))
            for a, x in zip(log_p[n], logits[n], strict=True)
            if a > -16
        ]
        assert found.kld[n] == pytest.approx(math.fsum(terms), rel=1e-5, abs=1e-6)
        assert found.nll_q[n] == pytest.approx(float(f(log_total - logits[n][target])), rel=1e-6)
        assert found.nll_base[n] == float(-log_p[n][target])


def test_both_forms_agree(tmp_path: Path) -> None:
    """But for the 16 bits of the file."""
    tokens = some_targets(3 * 16, 50).reshape(3, 16).astype(np.int32)
    base, logits = some_logits(21, 50, 1).reshape(3, 7, 50), some_logits(21, 50, 2)
    logits = (base + 0.1 * logits.reshape(3, 7, 50)).astype(np.float32)
    with (tmp_path / "b").open("wb") as file:
        writer = KLBaseWriter(file, tokens, 50)
        for chunk in base:
            writer.add(chunk)
        writer.finish()
    stored = read_kl_base(tmp_path / "b")
    for chunk in range(3):
        of_file = compare_with_base(stored, chunk, logits[chunk])
        exact = compare_logits(base[chunk], logits[chunk], tokens[chunk, 9:])
        np.testing.assert_allclose(of_file.kld, exact.kld, atol=1e-4)
        np.testing.assert_allclose(of_file.nll_base, exact.nll_base, atol=2e-4)
        np.testing.assert_allclose(of_file.nll_q, exact.nll_q, atol=1e-5)
        part = compare_with_base(stored, chunk, logits[chunk, 2:5], 2)
        np.testing.assert_array_equal(part.kld, of_file.kld[2:5])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, logits, targets = some_logits(20, 8, 1), some_logits(20, 8, 2), some_targets(20, 8)
    compared = [f(base, logits, targets) for f in (compare_logits, compare_log_probs)]
    losses = token_losses(logits, targets)
    monkeypatch.setattr(divergence, "_BLOCK", 25)
    again = [f(base, logits, targets) for f in (compare_logits, compare_log_probs)]
    for one, other in zip(compared, again, strict=True):
        np.testing.assert_array_equal(one.kld, other.kld)
        np.testing.assert_array_equal(one.same_top, other.same_top)
    np.testing.assert_array_equal(token_losses(logits, targets), losses)


@given(seed=st.integers(0, 99), spread=st.floats(0, 60), n_vocab=st.integers(1, 30))
def test_divergences_are_not_negative_and_equal_models_have_none(
    seed: int, spread: float, n_vocab: int
) -> None:
    base, targets = some_logits(12, n_vocab, seed, spread), some_targets(12, n_vocab)
    other = some_logits(12, n_vocab, seed + 1, spread)
    assert compare_logits(base, other, targets).kld.min() >= -1e-12
    same = compare_logits(base, base.copy(), targets)
    assert not same.kld.any()
    assert not same.dp.any()
    found = kl_statistics(same, 512, 1)
    assert (found.same_top_p, found.ppl_ratio, found.dp_rms, found.dp_rms_se) == (1, 1, 0, 0)
    assert (found.ln_ppl_ratio_se, found.ppl_difference_se) == (0, 0)


def test_tokens_that_a_base_rules_out() -> None:
    """Their terms are 0, whatever the other says of them."""
    base = np.array([[0, 0, -np.inf]], np.float32)
    for last in (-np.inf, 0):
        logits = np.array([[1, 1, last]], np.float32)
        found = compare_logits(base, logits, np.array([0]))
        expected = math.log(2 + math.exp(last - 1)) - math.log(2)
        assert found.kld[0] == pytest.approx(expected, abs=1e-15)
        assert np.isfinite(compare_log_probs(base, logits, np.array([0])).kld).all()


def test_losses_and_perplexity() -> None:
    logits, targets = some_logits(40, 13, 3), some_targets(40, 13)
    losses = token_losses(logits, targets)
    exact = [-log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    found = perplexity(losses)
    mean = math.fsum(exact) / 40
    square = math.fsum(x * x for x in exact) / 40
    assert found.ppl == pytest.approx(math.exp(mean), rel=1e-6)
    assert found.ppl_se == pytest.approx(found.ppl * math.sqrt((square - mean**2) / 39), rel=1e-6)
    assert found.n == 40


def of(kld: list[float], *, dp: float = 0.1) -> TokenRecords:
    n = len(kld)
    losses = np.arange(n) / 7.0
    same = np.arange(n) % 4 != 0
    return TokenRecords(losses, losses + 0.5, np.array(kld), np.full(n, dp), same)


def test_percentiles_lie_between_sorted_values() -> None:
    found = kl_statistics(of([3, 1, 2, 0]), 8, 2)
    assert (found.kld_min, found.kld_median, found.kld_max) == (0, 1.5, 3)
    assert found.kld_p90 == pytest.approx(2.7)
    assert found.kld_p001 == pytest.approx(0.003)
    values = list(found.as_json().items())
    for prefix in ("kld", "dp"):
        order = [v for name, v in values if re.fullmatch(prefix + r"_(max|p\d+|median|min)", name)]
        assert all(a >= b for a, b in pairwise(order))


@pytest.mark.parametrize(("n", "has_errors"), [(1, False), (10, False), (11, True)])
def test_few_tokens_have_no_standard_errors(n: int, has_errors: bool) -> None:
    found = kl_statistics(of([float(k) for k in range(n)]), 8, 1)
    for name in ("ppl_q_se", "ppl_base_se", "kld_mean_se"):
        assert (getattr(found, name) > 0) == has_errors
    assert found.cor_ln_ppl == pytest.approx(1.0 if has_errors else 0.0)
    assert found.ln_ppl_ratio == pytest.approx(0.5)
    assert found.dp_rms == pytest.approx(0.1)


def test_json() -> None:
    found = kl_statistics(of([0.5] * 30), 8, 10)
    assert KLStatistics(**json.loads(json.dumps(found.as_json()))) == found
    assert list(found.as_json())[:2] == ["ppl_q", "ppl_q_se"]
    assert (found.n, found.n_ctx, found.first, found.chunks) == (30, 8, 4, 10)


def test_what_does_not_fit() -> None:
    logits = some_logits(3, 5, 1)
    for base, targets in ((logits[:2], [0, 1, 2]), (logits, [0, 1]), (logits[:, :4], [0, 1, 2])):
        with pytest.raises(LayoutError, match="logits of two models and tokens of shapes"):
            compare_logits(base, logits, np.array(targets))
    for wrong in (-1, 5):
        with pytest.raises(LayoutError, match="logits of 5"):
            token_losses(logits, np.array([0, wrong, 1]))
    with pytest.raises(LayoutError, match="shapes"):
        compare_logits(logits[:0], logits[:0], np.array([], int))
    with pytest.raises(LayoutError, match="no tokens are scored"):
        perplexity(np.array([]))
    with pytest.raises(LayoutError, match="no tokens are scored"):
        kl_statistics(of([]), 8, 0)
    base = read_kl_base(FOLDER / "base.kld")
    with pytest.raises(LayoutError, match=re.escape("logits [3, 5], expected [up to 7, 320]")):
        compare_with_base(base, 0, logits)
    with pytest.raises(LayoutError, match=re.escape("[8, 320], expected [up to 7, 320]")):
        compare_with_base(base, 0, some_logits(8, 320, 1))


def test_a_large_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    """Beside logits of 16 MB: blocks of two positions, some megabytes each."""
    n_vocab, tokens = 131_072, np.zeros((1, 64), np.int32)
    base, logits = some_logits(31, n_vocab, 1), some_logits(31, n_vocab, 2)
    tracemalloc.start()
    try:
        with (tmp_path / "b").open("wb") as file:
            writer = KLBaseWriter(file, tokens, n_vocab)
            writer.add(base)
            writer.finish()
        of_file = compare_with_base(read_kl_base(tmp_path / "b"), 0, logits)
        exact = compare_logits(base, logits, tokens[0, 33:])
        token_losses(logits, tokens[0, 33:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    np.testing.assert_allclose(of_file.kld, exact.kld, rtol=1e-3)
