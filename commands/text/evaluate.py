"""Describe an evaluation: the lines that `evaluate` prints."""

from __future__ import annotations

from collections.abc import Iterator

from weightcast.commands.text.table import aligned
from weightcast.errors import visible
from weightcast.evaluation.report import text
from weightcast.evaluation.report.schema import Artifact, EvaluationReport

_TOKENS = 10


def evaluation_lines(report: EvaluationReport, *, everything: bool = False) -> Iterator[str]:
    """Sum a source and its artifacts up in a few lines each.

    `everything` adds the layers, the worst tokens, and all lines of llama-perplexity.
    """
    source = report.source
    yield visible(text.model_text(source))
    yield f"  perplexity {text.perplexity(source.ppl, source.ppl_se)}"
    yield visible(text.text_line(report))
    for artifact in report.artifacts:
        yield visible(text.model_text(artifact))
        yield from (f"  {line}" for line in _losses(artifact))
        if everything:
            yield from _details(artifact)
    if report.artifacts:
        yield f"note: {text.WEIGHTS_ONLY}"
        yield f"note: {text.STANDARD_ERRORS}"


def _losses(artifact: Artifact) -> Iterator[str]:
    found = artifact.statistics
    losses = text.perplexity(found.ppl_q, found.ppl_q_se)
    yield f"perplexity {losses}, {text.ratio(found)} times the source's"
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
        yield from aligned(list(_token_rows(artifact)), left=(5,))
    yield from (f"  {line}" for line in text.llama_lines(artifact.statistics))


def _token_rows(artifact: Artifact) -> Iterator[list[str]]:
    yield ["KL", "log p", "source's", "chunk", "position", "token"]
    for token in artifact.tokens[:_TOKENS]:
        losses = [text.log_probability(each) for each in (token.nll_q, token.nll_base)]
        place = [f"{token.chunk:,}", f"{token.position:,}"]
        yield [text.number(token.kld), *losses, *place, text.token_text(token)]
