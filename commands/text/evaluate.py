"""Describe an evaluation: the lines that `evaluate` prints."""

from __future__ import annotations

from collections.abc import Iterator

from weightcast.commands.text.table import aligned
from weightcast.errors import visible
from weightcast.evaluation.report import text
from weightcast.evaluation.report.schema import Artifact, EvaluationReport
from weightcast.text import size_text

_TOKENS = 10


def evaluation_lines(report: EvaluationReport, *, everything: bool = False) -> Iterator[str]:
    """Sum a source and its artifacts up in a few lines each.

    `everything` adds the layers, the worst tokens, and the lines of llama-perplexity.
    """
    source = report.source
    yield visible(_model(source.name, source.nbytes, source.bits_per_weight))
    yield f"  perplexity {text.plus_minus(source.ppl, source.ppl_se)}"
    yield visible(text.text_line(report))
    for artifact in report.artifacts:
        yield visible(_model(artifact.name, artifact.nbytes, artifact.bits_per_weight))
        yield from (f"  {line}" for line in _losses(artifact))
        if everything:
            yield from _details(artifact)
    if report.artifacts:
        yield f"note: {text.WEIGHTS_ONLY}"
        yield f"note: {text.STANDARD_ERRORS}"


def _model(name: str, nbytes: int, bits_per_weight: float) -> str:
    if not nbytes:  # predictions in a file, whose model is not here
        return name
    return f"{name}: {size_text(nbytes)}, {bits_per_weight:.3f} bits per weight"


def _losses(artifact: Artifact) -> Iterator[str]:
    found = artifact.statistics
    yield f"perplexity {text.perplexity(found)}, {text.ratio(found)} times the source's"
    if text.is_equal(found):
        yield "KL divergence 0: every prediction is the source's"
        return
    quantiles = (
        ("median", found.kld_median),
        ("99 %", found.kld_p99),
        ("max", found.kld_max),
    )
    others = ", ".join(f"{name} {text.number(value)}" for name, value in quantiles)
    yield f"KL divergence {text.mean_kld(found)} nats; {others}"
    yield f"same top token {text.same_top(found)}"
    if artifact.layers:
        yield f"worst layer {text.worst_layer_text(artifact.layers)}"


def _details(artifact: Artifact) -> Iterator[str]:
    if artifact.layers:
        yield from aligned(list(text.layer_cells(artifact.layers)), left=())
    if artifact.tokens:
        yield "  tokens that diverge most:"
    rows = [["KL", "log p", "source's", "chunk", "position", "token"]] if artifact.tokens else []
    for token in artifact.tokens[:_TOKENS]:
        losses = [text.log_probability(each) for each in (token.nll_q, token.nll_base)]
        place = [f"{token.chunk:,}", f"{token.position:,}"]
        rows.append([text.number(token.kld), *losses, *place, text.token_text(token)])
    yield from aligned(rows, left=(5,)) if rows else ()
    yield from (f"  {line}" for line in text.llama_lines(artifact.statistics))
