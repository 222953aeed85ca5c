"""Error reports as Markdown, for a pull request or the page of a CI job.

Names come from strangers' files and are kept from being Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from weightcast.converters.report.schema import OutputErrors, Report
from weightcast.converters.report.text import (
    BASELINES,
    Entry,
    cosine_text,
    entries,
    file_name,
    is_lossless,
    number_text,
    recipe_text,
    relative_text,
    size_text,
    sqnr_text,
    warnings,
    worst_tensors,
)

_WORST: Final = 5
# What means nothing in Markdown between backticks, table cells included.
_PLAIN: Final = re.compile(r"[\w./\\:()+=,*\[\]^$?{}#@!-]+( [\w./\\:()+=,*\[\]^$?{}#@!-]+)*")


def markdown(reports: Sequence[Report]) -> str:
    """Sum reports up: a table of outputs, then for each its kinds and its worst tensors."""
    return "\n".join(_lines(reports)) + "\n"


def card_lines(report: Report, number: int) -> list[str]:
    """Sum one output of a report up for its model card: the whole, and a table of its kinds."""
    output = report.outputs[number]
    against = f"Measured against {BASELINES[report.baseline]}, on every weight as it was written:"
    if is_lossless(output.total):
        return [f"{against} no error."]
    total = (
        f"relative RMS {relative_text(output.total.relative_rms)}, SQNR {sqnr_text(output.total)}"
    )
    return [f"{against} {total}, cosine {cosine_text(output.total.cosine)}.", "", *_kinds(output)]


def _lines(reports: Sequence[Report]) -> Iterator[str]:
    found = entries(reports)
    yield "## Quantization errors"
    yield ""
    for source in dict.fromkeys((report.source, report.family) for report in reports):
        yield f"Source: {_code(source[0])} ({_code(source[1])})."
    for baseline in dict.fromkeys(report.baseline for report in reports):
        yield f"Errors are differences from {BASELINES[baseline]}."
    yield ""
    for warning in warnings(reports):
        yield f"> **{warning}**"
        yield ""
    yield from _outputs(found)
    for entry in found:
        yield ""
        yield from _details(entry)


def _outputs(found: Sequence[Entry]) -> Iterator[str]:
    weighed = any(entry.output.total.weighted for entry in found)
    columns = ["output", "type", "size", "bits/weight", "SQNR", "relative RMS", "cosine"]
    columns += ["SQNR, weighted"] * weighed
    yield _row([*columns, "worst tensor"])
    yield _row(["---"] * 2 + ["---:"] * (len(columns) - 2) + [":---"])
    for entry in found:
        output, total = entry.output, entry.output.total
        cells = [
            _code(file_name(output)),
            _code(output.type),
            size_text(output.bytes),
            f"{output.bits_per_weight:.3f}",
            f"**{sqnr_text(total)}**",
            relative_text(total.relative_rms),
            cosine_text(total.cosine),
        ]
        if weighed:
            cells.append(sqnr_text(total.weighted) if total.weighted else "")
        worst = worst_tensors(output, 1)
        cells.append(f"{_code(worst[0].name)}, {sqnr_text(worst[0].metrics)}" if worst else "none")
        yield _row(cells)


def _details(entry: Entry) -> Iterator[str]:
    output = entry.output
    yield f"<details><summary>{_code(entry.label, html=True)} in detail</summary>"
    yield ""
    imatrix = "none" if output.imatrix is None else _code(output.imatrix)
    yield f"Recipe: {_code(recipe_text(output))}. Importance matrix: {imatrix}."
    for rule in output.rules:
        yield f"- {_code(rule.pattern)} is {_code(rule.type)} ({_code(rule.origin)})"
    yield ""
    yield from _kinds(output)
    yield ""
    if is_lossless(output.total):
        yield "Every weight is what it was."
    else:
        yield from _worst(output)
    yield ""
    yield "</details>"


def _kinds(output: OutputErrors) -> Iterator[str]:
    yield from _header(["kind", "size", "bits/weight", "SQNR", "relative RMS", "share of error"])
    whole = output.total.error_squares
    for kind in output.kinds:
        part = kind.metrics.error_squares
        share = f"{100 * part / whole:.1f} %" if whole and part is not None else ""
        cells = [_code(kind.kind), size_text(kind.bytes), f"{kind.bits_per_weight:.3f}"]
        metrics = kind.metrics
        yield _row([*cells, sqnr_text(metrics), relative_text(metrics.relative_rms), share])


def _worst(output: OutputErrors) -> Iterator[str]:
    columns = ["worst tensors", "type", "SQNR", "relative RMS", "largest error", "bits/weight"]
    yield from _header(columns, left=2)
    for tensor in worst_tensors(output, _WORST):
        metrics = tensor.metrics
        cells = [
            _code(tensor.name),
            _code(tensor.type),
            sqnr_text(metrics),
            relative_text(metrics.relative_rms),
            number_text(metrics.largest_error),
            f"{tensor.bits_per_weight:.3f}",
        ]
        yield _row(cells)


def _header(columns: Sequence[str], left: int = 1) -> Iterator[str]:
    yield _row(columns)
    yield _row(["---"] * left + ["---:"] * (len(columns) - left))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str, *, html: bool = False) -> str:
    """Show text as it is: between backticks, or spelled in entities if it is odd."""
    if not html and _PLAIN.fullmatch(text):
        return f"`{text}`"
    plain = " .-_" if html else " .-"  # in an HTML block nothing is emphasized
    spelled = "".join(c if c.isalnum() or c in plain else f"&#{ord(c)};" for c in text)
    return f"<code>{spelled}</code>"
