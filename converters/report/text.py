"""Words, labels and numbers that pages, summaries and printed comparisons share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.report.records import About, fields_of
from weightcast.converters.report.schema import (
    Metrics,
    OutputErrors,
    Report,
    SearchGain,
    TensorErrors,
    Weighted,
)

BASELINE_TEXTS: Final = {
    "stored": "the stored values exactly (int8 x scale, or the floats as they are)",
    "bf16": "the stored values rounded to bfloat16, which the reference multiplies with",
}
LOSSLESS: Final = "no error"
NOT_FINITE: Final = "not finite"
# Fields of tensors and of their metrics that tables show, by their keys in JSON.
COLUMNS: Final[dict[str, About]] = {
    field.key: field.about
    for record in (TensorErrors, Metrics, SearchGain)
    for field in fields_of(record).values()
    if field.about.label
}


def title(key: str) -> str:
    """Give a column's label as a title."""
    label = COLUMNS[key].label
    return label[0].upper() + label[1:]


@dataclass(frozen=True, slots=True)
class Entry:
    """An output in one of several reports, under a label that no other output has."""

    label: str
    report: Report
    output: OutputErrors


def entries(reports: Sequence[Report]) -> list[Entry]:
    """Label each output by its type, and by its file name where several have the same type."""
    pairs = [(report, output) for report in reports for output in report.outputs]
    types = Counter(output.type for _, output in pairs)
    labelled: list[Entry] = []
    taken: set[str] = set()
    for report, output in pairs:
        label = output.type if types[output.type] == 1 else f"{output.type} {file_name(output)}"
        free, number = label, 2
        while free in taken:
            free, number = f"{label} ({number})", number + 1
        taken.add(free)
        labelled.append(Entry(free, report, output))
    return labelled


def file_name(output: OutputErrors) -> str:
    """Give the last part of an output's path, whichever system it was written on."""
    return last_part(output.path)


def last_part(path: str) -> str:
    """Give the name at the end of a path, or all of it if there is none."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def warnings(reports: Sequence[Report]) -> list[str]:
    """Say what makes outputs hard to compare."""
    told = []
    outputs = [output for report in reports for output in report.outputs]
    if len({report.baseline for report in reports}) > 1:
        told.append("The reports have different baselines, so their errors differ in meaning.")
    sources = [report.source for report in reports]
    if len({(source.family, source.parameters) for source in sources}) > 1:
        told.append("The reports are of different models.")
    elif len({source.path for source in sources}) > 1:
        told.append("The reports name different sources.")
    if any(metrics.relative_rms is None for output in outputs for metrics in _all(output)):
        told.append("Some errors are not finite: NaN or infinity in an output or its source.")
    return told


def _all(output: OutputErrors) -> list[Metrics]:
    return [output.total, *(tensor.metrics for tensor in output.tensors)]


def is_lossless(metrics: Metrics) -> bool:
    """Tell whether every weight is unchanged."""
    return metrics.relative_rms == 0


def worst_tensors(output: OutputErrors, count: int) -> list[TensorErrors]:
    """Find the tensors with the largest relative errors, worst first; none without an error."""
    lossy = [tensor for tensor in output.tensors if not is_lossless(tensor.metrics)]
    return sorted(lossy, key=_badness, reverse=True)[:count]


def _badness(tensor: TensorErrors) -> float:
    relative_rms = tensor.metrics.relative_rms
    return float("inf") if relative_rms is None else relative_rms


def metric_text(metrics: Metrics | Weighted, key: str) -> str:
    """Write a metric in its unit: percent, decibels, or three digits."""
    if key == "sqnr_db":
        return sqnr_text(metrics)
    number: float | None = getattr(metrics, key)
    return _TEXTS[COLUMNS[key].unit](number)


def sqnr_text(metrics: Metrics | Weighted) -> str:
    """Write an SQNR in dB, or why there is none."""
    if metrics.sqnr_db is not None:
        return f"{metrics.sqnr_db:.2f} dB"
    return LOSSLESS if metrics.relative_rms == 0 else NOT_FINITE


def gain_text(metrics: Metrics) -> str:
    """Write what a search gains on ggml's rule by what it minimizes; nothing without a search."""
    gained = None if metrics.search is None else gain_of(metrics.search)
    return "" if gained is None else f"{round(gained, 2) + 0.0:+.2f} dB"


def search_text(output: OutputErrors) -> str:
    """Say how much better a search is, by importance first if that was minimized; or nothing."""
    search = output.total.search
    gained = None if search is None else gain_of(search)
    if search is None or gained is None:
        return ""
    than = "ggml's rule" if output.container == "gguf" else "the plain rule"
    told = _better(gained, than)
    if search.weighted_gained_db is not None:
        told += " by importance"
        if search.gained_db is not None:
            told += f", {_better(search.gained_db)} by plain squares"
    return told


def _better(decibels: float, than: str = "") -> str:
    """Say how much better something is, in hundredths of a dB."""
    size = f"{abs(decibels):.2f}"
    if float(size) == 0:
        return f"as good as {than}" if than else "as good"
    better = "better" if decibels > 0 else "worse"
    return f"{size} dB {better} than {than}" if than else f"{size} dB {better}"


def gain_of(search: SearchGain) -> float | None:
    """Give the gain by importance where that is what was minimized, else by plain squares."""
    weighted = search.weighted_gained_db
    return search.gained_db if weighted is None else weighted


def _percent_text(share: float | None) -> str:
    if share is None:
        return NOT_FINITE
    return "0" if share == 0 else f"{100 * share:#.3g} %".replace(". %", " %")


def _cosine_text(cosine: float | None) -> str:
    return NOT_FINITE if cosine is None else f"{cosine:.6f}".rstrip("0").rstrip(".")


def _number_text(number: float | None) -> str:
    return NOT_FINITE if number is None else "0" if number == 0 else f"{number:.3g}"


_TEXTS: Final = {"share": _percent_text, "cosine": _cosine_text, "number": _number_text}


def recipe_text(output: OutputErrors) -> str:
    """Sum up a recipe in a few words."""
    recipe = output.recipe
    words = [recipe.base]
    if recipe.pure:
        words.append("pure")
    if recipe.rules:
        words.append(f"{len(recipe.rules)} own rule{'' if len(recipe.rules) == 1 else 's'}")
    return ", ".join(words)


def types_of(output: OutputErrors) -> dict[str, tuple[int, int]]:
    """Count tensors and bytes of each type, most bytes first."""
    counts: dict[str, tuple[int, int]] = {}
    for tensor in output.tensors:
        tensors, nbytes = counts.get(tensor.type, (0, 0))
        counts[tensor.type] = tensors + 1, nbytes + tensor.bytes
    return dict(sorted(counts.items(), key=lambda item: -item[1][1]))
