"""Words and numbers that pages, summaries and printed evaluations share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, inf, log10
from typing import Final

from weightcast.evaluation.report.schema import (
    Artifact,
    EvaluationReport,
    Layer,
    SourceModel,
    Statistics,
    WorstToken,
)
from weightcast.text import count, size_text

WEIGHTS_ONLY: Final = (
    "Weights only: llama.cpp also rounds activations, and loses a little more than this."
)
STANDARD_ERRORS: Final = "± is one standard error, taking tokens as independent."
NOT_FINITE: Final = "not finite"
_MOST_DECIMALS: Final = 7
_SHOWN: Final = 3  # digits


@dataclass(frozen=True, slots=True)
class Entry:
    """An artifact of an evaluation under a label that no other has."""

    label: str
    artifact: Artifact


def entries(report: EvaluationReport) -> list[Entry]:
    """Label each artifact by its name, with a number where several have the same."""
    labelled, seen = [], Counter[str]()
    for artifact in report.artifacts:
        seen[artifact.name] += 1
        number = seen[artifact.name]
        label = artifact.name if number == 1 else f"{artifact.name} ({number})"
        labelled.append(Entry(label, artifact))
    return labelled


def text_line(report: EvaluationReport) -> str:
    """Say what models ran over, and how."""
    text = report.text
    chunks = f"{count(text.chunks, 'chunk')} of {text.context:,} tokens"
    return (
        f"{text.name}: {chunks}, {report.source.n:,} tokens scored, "
        f"{report.precision} products on {report.device}"
    )


def number(value: float | None, digits: int = _SHOWN) -> str:
    """Write a number with so many digits that count."""
    if value is None:
        return NOT_FINITE
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:.{decimals}f}"


def plus_minus(value: float | None, error: float | None, unit: str = "") -> str:
    """Write a number with its standard error, and as many decimals as two digits of that need."""
    if value is None or error is None:
        return NOT_FINITE
    after = f" {unit}" if unit else ""
    if error == 0:
        return f"{number(value)}{after}"
    decimals = max(0, 1 - floor(log10(error)))
    if decimals > _MOST_DECIMALS:
        return f"{value:.2e} ± {error:.1e}{after}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{after}"


def perplexity(value: float | None, error: float | None) -> str:
    """Write a perplexity in five digits: paired differences are smaller than its error."""
    if value is None or error is None:
        return NOT_FINITE
    decimals = max(0, 4 - floor(log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def share(value: float | None) -> str:
    """Write a share of 1 in percent."""
    return NOT_FINITE if value is None else f"{100 * value:.2f} %"


def ratio(found: Statistics) -> str:
    """Write an artifact's perplexity by that of the source."""
    return plus_minus(found.ppl_ratio, found.ppl_ratio_se)


def mean_kld(found: Statistics) -> str:
    """Write the mean divergence, in nats."""
    return plus_minus(found.kld_mean, found.kld_mean_se)


def same_top(found: Statistics) -> str:
    """Write how often both models find the same token likeliest."""
    if found.same_top_p is None or found.same_top_p_se is None:
        return NOT_FINITE
    return plus_minus(100 * found.same_top_p, 100 * found.same_top_p_se, "%")


def is_equal(found: Statistics) -> bool:
    """Tell whether an artifact predicts exactly what its source does."""
    return found.kld_max == found.kld_min == found.dp_rms == 0


def worst_layer_text(layers: Sequence[Layer]) -> str:
    """Say which layer is worst, alone if that was measured and any is, and how bad."""
    is_alone = any(layer.alone for layer in layers)

    def error(layer: Layer) -> float | None:
        return layer.alone if is_alone else layer.relative

    def badness(layer: Layer) -> float:
        found = error(layer)
        return inf if found is None else found

    worst = max(layers, key=badness, default=None)
    if worst is None or badness(worst) == 0:
        return "none"
    return f"{worst.layer}{' alone' if is_alone else ''}, {share(error(worst))}"


def has_routing(layers: Sequence[Layer]) -> bool:
    """Tell whether the model routes tokens to experts."""
    return any(layer.same_experts is not None for layer in layers)


def has_alone(layers: Sequence[Layer]) -> bool:
    """Tell whether layers were measured alone."""
    return any(layer.alone is not None for layer in layers)


def layer_cells(layers: Sequence[Layer]) -> Iterator[list[str]]:
    """Make a table of layers, its head first: numbers as they are shown."""
    routing, alone = has_routing(layers), has_alone(layers)
    head = ["layer", "states differ by", "cosine"]
    yield head + ["alone"] * alone + ["same experts", "same first expert"] * routing
    for layer in layers:
        cosine = NOT_FINITE if layer.cosine is None else f"{layer.cosine:.6f}"
        cells = [str(layer.layer), share(layer.relative), cosine]
        cells += [share(layer.alone)] * alone
        yield cells + [share(layer.same_experts), share(layer.same_first)] * routing


def log_probability(loss: float | None) -> str:
    """Write the logarithm of a token's probability, in nats."""
    return NOT_FINITE if loss is None else f"{0.0 - loss:.2f}"


def model_text(model: SourceModel | Artifact) -> str:
    """Name a model and its size; of a KL base file the size is not known."""
    if not model.nbytes:
        return model.name
    bits = f"{model.bits_per_weight:.3f} bits per weight"
    return f"{model.name}: {size_text(model.nbytes)}, {bits}"


def token_text(token: WorstToken) -> str:
    """Write a token: as text with some before it if that is known, or else as its id."""
    if token.piece is None:
        return f"token {token.token}"
    return f"{token.before or ''}[{token.piece}]"


# Lines of llama-perplexity: percentiles by their names in it, and fields.
_KLD: Final = {
    "Maximum": "max", "99.9%  ": "p999", "99.0%  ": "p99", "95.0%  ": "p95", "90.0%  ": "p90",
    "Median ": "median", "10.0%  ": "p10", " 5.0%  ": "p05", " 1.0%  ": "p01", " 0.1%  ": "p001",
    "Minimum": "min",
}  # fmt: skip
_DP: Final = {
    "Maximum": "max", "99.9%  ": "p999", "99.0%  ": "p99", "95.0%  ": "p95", "90.0%  ": "p90",
    "75.0%  ": "p75", "Median ": "median", "25.0%  ": "p25", "10.0%  ": "p10", " 5.0%  ": "p05",
    " 1.0%  ": "p01", " 0.1%  ": "p001", "Minimum": "min",
}  # fmt: skip


def llama_lines(found: Statistics) -> Iterator[str]:
    """Write every line that llama-perplexity --kl-divergence prints at its end, as it does."""
    # What is not finite is written as C does.
    values = {name: _or_nan(getattr(found, name)) for name in Statistics.__slots__}

    def six(name: str) -> str:
        return f"{values[name]:10.6f} ± {values[f'{name}_se']:10.6f}"

    def percent(name: str) -> str:
        return f"{100 * values[name]:6.3f} ± {100 * values[f'{name}_se']:5.3f} %"

    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {six('ppl_q')}"
    yield f"Mean PPL(base)                : {six('ppl_base')}"
    yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * values['cor_ln_ppl']:6.2f}%"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {six('ln_ppl_ratio')}"
    yield f"Mean PPL(Q)/PPL(base)         : {six('ppl_ratio')}"
    yield f"Mean PPL(Q)-PPL(base)         : {six('ppl_difference')}"
    yield "====== KL divergence statistics ======"
    yield f"Mean    KLD: {six('kld_mean')}"
    for label, name in _KLD.items():
        yield f"{label} KLD: {values[f'kld_{name}']:10.6f}"
    yield "====== Token probability statistics ======"
    yield f"Mean    Δp: {percent('dp_mean')}"
    for label, name in _DP.items():
        yield f"{label} Δp: {100 * values[f'dp_{name}']:6.3f}%"
    yield f"RMS Δp    : {percent('dp_rms')}"
    yield f"Same top p: {percent('same_top_p')}"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
