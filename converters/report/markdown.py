"""Sum error reports up in Markdown, for a pull request or the page of a CI job.

Names come from strangers' files and are kept from being Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from weightcast.converters.report.limits import badness, bound_text, violations
from weightcast.converters.report.schema import Limit, OutputErrors, Report
from weightcast.converters.report.text import (
    BASELINE_TEXTS,
    COLUMNS,
    Entry,
    entries,
    file_name,
    gain_text,
    is_lossless,
    metric_text,
    recipe_text,
    search_text,
    sqnr_text,
    warnings,
    worst_tensors,
)
from weightcast.converters.report.upgrades import Proposal
from weightcast.converters.report.verdict import (
    ESTIMATED_MEANS,
    KEPT_MEANS,
    OPTIONS_MEAN,
    Sentence,
    Verdict,
    proposal_text,
    verdicts,
)
from weightcast.errors import visible
from weightcast.text import count, size_text

_WORST: Final = 5
_OFFENDERS: Final = 10
# Text that is safe between backticks, table cells included.
_PLAIN: Final = re.compile(r"[\w./\\:()+=,*\[\]^$?{}#@!-]+( [\w./\\:()+=,*\[\]^$?{}#@!-]+)*")


def summary(reports: Sequence[Report]) -> str:
    """Sum reports up: a table of outputs, then the roles and the worst tensors of each output."""
    return "\n".join(_lines(reports)) + "\n"


def card_lines(report: Report, number: int) -> list[str]:
    """Sum one output of a report up for its model card: in total, and a table of roles."""
    output = report.outputs[number]
    baseline = BASELINE_TEXTS[report.baseline]
    against = f"Measured against {baseline}, on every weight as it was written:"
    if is_lossless(output.total):
        return [f"{against} no error."]
    told = (
        f"{COLUMNS[key].label} {metric_text(output.total, key)}"
        for key in ("relative_rms", "sqnr_db", "cosine")
    )
    gain = search_text(output)
    searched = f" Least-error search: {gain}." if gain else ""
    return [f"{against} {', '.join(told)}.{searched}", "", *_roles(output)]


def _lines(reports: Sequence[Report]) -> Iterator[str]:
    labelled = entries(reports)
    yield "## Quantization errors"
    yield ""
    sources = (report.source for report in reports)
    for path, family in dict.fromkeys((source.path, source.family) for source in sources):
        yield f"Source: {code(path)} ({code(family)})."
    for baseline in dict.fromkeys(report.baseline for report in reports):
        yield f"Errors are differences from {BASELINE_TEXTS[baseline]}."
    yield ""
    for warning in warnings(reports):
        yield f"> **{warning}**"
        yield ""
    judged = verdicts(labelled)
    for verdict in judged:
        yield f"- {' '.join(map(_sentence, verdict.sentences))}"
    yield ""
    for report in reports:
        yield from _limits(report)
    yield from _outputs(labelled)
    for verdict in judged:
        yield ""
        yield from _details(verdict)
    yield ""
    has_proposals = any(verdict.proposals for verdict in judged)
    yield " ".join((KEPT_MEANS, ESTIMATED_MEANS, OPTIONS_MEAN) if has_proposals else (KEPT_MEANS,))


def _sentence(pieces: Sentence) -> str:
    return "".join(code(piece.text) if piece.is_name else piece.text for piece in pieces)


def _limits(report: Report) -> Iterator[str]:
    """Say of each limit that was set whether it is kept, and what is beyond it."""
    for limit in report.limits:
        yield from _limit(report, limit)
    if report.limits:
        yield ""


def _limit(report: Report, limit: Limit) -> Iterator[str]:
    beyond = sorted(violations(report, limit), key=badness, reverse=True)
    asked = f"Limit {code(limit.name)} {bound_text(limit)}"
    if not beyond:
        yield f"- {asked}: passed."
        return
    yield f"- {asked}: **failed**, {count(len(beyond), 'value')} beyond:"
    several = len(report.outputs) > 1
    for each in beyond[:_OFFENDERS]:
        output = f" in {code(each.output)}" if several else ""
        yield f"  - {code(each.name)}{output}: {each.value:.6g}"
    if len(beyond) > _OFFENDERS:
        yield f"  - and {len(beyond) - _OFFENDERS:,} more"


def _outputs(labelled: Sequence[Entry]) -> Iterator[str]:
    has_weighted = any(entry.output.total.weighted for entry in labelled)
    has_search = any(entry.output.total.search for entry in labelled)
    columns = ["output", "type", "size", "bits/weight"]
    columns += _labels("sqnr_db", "relative_rms", "cosine")
    if has_weighted:
        columns.append("SQNR, weighted")
    if has_search:
        columns.append(COLUMNS["gained_db"].label)
    yield row([*columns, "worst tensor"])
    yield row(["---"] * 2 + ["---:"] * (len(columns) - 2) + [":---"])
    for entry in labelled:
        output, total = entry.output, entry.output.total
        cells = [
            code(file_name(output)),
            code(output.type),
            size_text(output.bytes),
            f"{output.bits_per_weight:.3f}",
            f"**{sqnr_text(total)}**",
            metric_text(total, "relative_rms"),
            metric_text(total, "cosine"),
        ]
        if has_weighted:
            cells.append(sqnr_text(total.weighted) if total.weighted else "")
        if has_search:
            cells.append(gain_text(total))
        worst = worst_tensors(output, 1)
        cells.append(f"{code(worst[0].name)}, {sqnr_text(worst[0].metrics)}" if worst else "none")
        yield row(cells)


def _details(verdict: Verdict) -> Iterator[str]:
    entry, output = verdict.entry, verdict.entry.output
    yield f"<details><summary>{code(entry.label, html=True)} in detail</summary>"
    yield ""
    imatrix = "none" if output.imatrix is None else code(output.imatrix)
    feedback = "" if output.hessian is None else f" Error feedback: {code(output.hessian)}."
    yield f"Recipe: {code(recipe_text(output))}. Importance matrix: {imatrix}.{feedback}"
    for rule in output.recipe.rules:
        yield f"- {code(rule.pattern)} is {code(rule.type)} ({code(rule.origin)})"
    yield ""
    yield from _roles(output)
    yield ""
    if is_lossless(output.total):
        yield "Every weight is what it was."
    else:
        yield from _worst(output)
    for proposal in verdict.proposals:
        yield ""
        yield from _proposed(proposal)
    yield ""
    yield "</details>"


def _proposed(proposal: Proposal) -> Iterator[str]:
    """Describe a proposal, and write its options in a block of code."""
    yield proposal_text(proposal)
    yield ""
    # Names from files may end a block of code or a line; those of real tensors do not.
    if "`" in proposal.command or not proposal.command.replace("\n", "").isprintable():
        yield code(proposal.command)
        return
    yield "```sh"
    yield from proposal.command.split("\n")
    yield "```"


def _roles(output: OutputErrors) -> Iterator[str]:
    keys = ("sqnr_db", "relative_rms")
    has_search = output.total.search is not None
    gains = _labels("gained_db") if has_search else []
    yield from header(["kind", "size", "bits/weight", *_labels(*keys), "share of error", *gains])
    whole = output.total.error_squares
    for role in output.roles:
        part = role.metrics.error_squares
        share = f"{100 * part / whole:.1f} %" if whole and part is not None else ""
        cells = [code(role.role), size_text(role.bytes), f"{role.bits_per_weight:.3f}"]
        gain = [gain_text(role.metrics)] if has_search else []
        yield row([*cells, *(metric_text(role.metrics, key) for key in keys), share, *gain])


def _worst(output: OutputErrors) -> Iterator[str]:
    keys = ("sqnr_db", "relative_rms", "largest_error")
    yield from header(["worst tensors", "type", *_labels(*keys), "bits/weight"], left=2)
    for tensor in worst_tensors(output, _WORST):
        cells = [code(tensor.name), code(tensor.type)]
        cells += [metric_text(tensor.metrics, key) for key in keys]
        yield row([*cells, f"{tensor.bits_per_weight:.3f}"])


def _labels(*keys: str) -> list[str]:
    return [COLUMNS[key].label for key in keys]


def header(columns: Sequence[str], left: int = 1) -> Iterator[str]:
    """Write the head of a table, so many columns aligned to the left and all others right."""
    yield row(columns)
    yield row(["---"] * left + ["---:"] * (len(columns) - left))


def row(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"


def code(text: str, *, html: bool = False) -> str:
    """Quote printable text unchanged: between backticks, or in entities if that is not safe."""
    if not html and _PLAIN.fullmatch(text):
        return f"`{text}`"
    plain = " .-_" if html else " .-"  # in an HTML block nothing is emphasized
    spelled = "".join(c if c.isalnum() or c in plain else f"&#{ord(c)};" for c in visible(text))
    return f"<code>{spelled}</code>"
