"""Sum evaluations up in Markdown, for a pull request, a model card or the page of a CI job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightcast.converters.report.markdown import code, header, row
from weightcast.evaluation.report import text
from weightcast.evaluation.report.schema import EvaluationReport, WorstToken
from weightcast.text import size_text

_TOKENS = 5


def summary(report: EvaluationReport) -> str:
    """Sum an evaluation up: a table of artifacts, then the layers and worst tokens of each."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: EvaluationReport) -> Iterator[str]:
    source, run = report.source, report.text
    yield "## Evaluation"
    yield ""
    size = f", {size_text(source.nbytes)}" if source.nbytes else ""
    losses = text.perplexity(source.ppl, source.ppl_se)
    yield f"Source: {code(source.name)}{size}, perplexity {losses}."
    yield (
        f"Text: {code(run.name)}, {run.chunks:,} x {run.context:,} tokens, {source.n:,} scored; "
        f"{report.precision} products on {code(report.device)}."
    )
    yield ""
    entries = text.entries(report)
    yield from artifact_table(entries)
    yield ""
    yield f"{text.WEIGHTS_ONLY} {text.STANDARD_ERRORS} KL divergence is in nats."
    for entry in entries:
        yield ""
        yield from _details(entry)


def artifact_table(entries: Sequence[text.Entry]) -> Iterator[str]:
    """Write the table of artifacts."""
    yield from header(
        [
            *("artifact", "size", "bits/weight", "perplexity", "ratio to source"),
            *("mean KL", "median", "99 %", "max", "same top", "worst layer"),
        ]
    )
    for entry in entries:
        artifact, found = entry.artifact, entry.artifact.statistics
        yield row(
            [
                code(entry.label),
                size_text(artifact.nbytes),
                f"{artifact.bits_per_weight:.3f}",
                text.perplexity(found.ppl_q, found.ppl_q_se),
                text.ratio(found),
                f"**{text.mean_kld(found)}**",
                text.number(found.kld_median),
                text.number(found.kld_p99),
                text.number(found.kld_max),
                text.same_top(found),
                text.worst_layer_text(artifact.layers),
            ]
        )


def _details(entry: text.Entry) -> Iterator[str]:
    yield f"<details><summary>{code(entry.label, html=True)} in detail</summary>"
    yield ""
    if entry.artifact.layers:
        head, *layers = text.layer_cells(entry.artifact.layers)
        yield from header(head, left=0)
        yield from map(row, layers)
        yield ""
    if entry.artifact.tokens:
        yield from header(
            ["tokens that diverge most", "KL", "log p", "source's", "chunk, position"]
        )
        yield from map(_token, entry.artifact.tokens[:_TOKENS])
        yield ""
    yield "</details>"


def _token(token: WorstToken) -> str:
    losses = [text.log_probability(each) for each in (token.nll_q, token.nll_base)]
    place = f"{token.chunk:,}, {token.position:,}"
    return row([code(text.token_text(token)), text.number(token.kld), *losses, place])
