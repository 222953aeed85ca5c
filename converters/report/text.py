"""What error reports say, in words and labels that the page and the Markdown summary share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.report.schema import (
    Metrics,
    OutputErrors,
    Report,
    TensorErrors,
    Weighted,
)

BASELINES: Final = {
    "stored": "the stored values exactly (int8 x scale, or the floats as they are)",
    "bf16": "the stored values rounded to bfloat16, which the reference multiplies with",
}
LOSSLESS: Final = "no error"
NOT_FINITE: Final = "not finite"


@dataclass(frozen=True, slots=True)
class Entry:
    """An output among all those of the reports, under a label that no other has."""

    label: str
    report: Report
    output: OutputErrors


def entries(reports: Sequence[Report]) -> list[Entry]:
    """Label every output by its type; where several have the same, by file name as well."""
    pairs = [(report, output) for report in reports for output in report.outputs]
    types = Counter(output.type for _, output in pairs)
    found: list[Entry] = []
    taken: set[str] = set()
    for report, output in pairs:
        label = output.type if types[output.type] == 1 else f"{output.type} {file_name(output)}"
        free, number = label, 2
        while free in taken:
            free, number = f"{label} ({number})", number + 1
        taken.add(free)
        found.append(Entry(free, report, output))
    return found


def file_name(output: OutputErrors) -> str:
    """The last part of an output's path, on whichever system it was written."""
    return re.split(r"[/\\]", output.path.rstrip("/\\"))[-1] or output.path


def warnings(reports: Sequence[Report]) -> list[str]:
    """Say what makes outputs hard to compare."""
    found = []
    outputs = [output for report in reports for output in report.outputs]
    if len({report.baseline for report in reports}) > 1:
        found.append("The reports have different baselines, so their errors differ in meaning.")
    if len({(report.family, report.parameters) for report in reports}) > 1:
        found.append("The reports are of different models.")
    elif len({report.source for report in reports}) > 1:
        found.append("The reports name different sources.")
    if any(metrics.relative_rms is None for output in outputs for metrics in _all(output)):
        found.append("Some errors are not finite: NaN or infinity in an output or its source.")
    return found


def _all(output: OutputErrors) -> list[Metrics]:
    return [output.total, *(tensor.metrics for tensor in output.tensors)]


def is_lossless(metrics: Metrics) -> bool:
    """Whether every weight is what it was."""
    return metrics.relative_rms == 0


def worst_tensors(output: OutputErrors, count: int) -> list[TensorErrors]:
    """Find the tensors with the largest relative errors, worst first; only those with one."""
    lossy = [tensor for tensor in output.tensors if not is_lossless(tensor.metrics)]
    return sorted(lossy, key=_badness, reverse=True)[:count]


def _badness(tensor: TensorErrors) -> float:
    relative_rms = tensor.metrics.relative_rms
    return float("inf") if relative_rms is None else relative_rms


def sqnr_text(metrics: Metrics | Weighted) -> str:
    """An SQNR in dB, or why there is none."""
    if metrics.sqnr_db is not None:
        return f"{metrics.sqnr_db:.2f} dB"
    return LOSSLESS if metrics.relative_rms == 0 else NOT_FINITE


def relative_text(relative_rms: float | None) -> str:
    """A relative error in percent, three digits."""
    if relative_rms is None:
        return NOT_FINITE
    return "0" if relative_rms == 0 else f"{100 * relative_rms:#.3g} %".replace(". %", " %")


def cosine_text(cosine: float | None) -> str:
    """A cosine; more digits than are there for nothing lost."""
    return NOT_FINITE if cosine is None else f"{cosine:.6f}".rstrip("0").rstrip(".")


def number_text(number: float | None) -> str:
    """Any other number, three digits."""
    return NOT_FINITE if number is None else "0" if number == 0 else f"{number:.3g}"


def size_text(nbytes: int) -> str:
    """Bytes in the unit that people know their disks by."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}"
    return f"{nbytes} bytes"


def recipe_text(output: OutputErrors) -> str:
    """A recipe in a few words."""
    rules = f", {len(output.rules)} own rule{'s' * (len(output.rules) != 1)}" * bool(output.rules)
    return f"{output.base}{', pure' if output.pure else ''}{rules}"


def types_of(output: OutputErrors) -> dict[str, tuple[int, int]]:
    """Count tensors and bytes of each type, most bytes first."""
    counts: dict[str, tuple[int, int]] = {}
    for tensor in output.tensors:
        tensors, nbytes = counts.get(tensor.type, (0, 0))
        counts[tensor.type] = tensors + 1, nbytes + tensor.bytes
    return dict(sorted(counts.items(), key=lambda item: -item[1][1]))
