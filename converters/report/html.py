"""Show error reports as one HTML page that works offline: charts, tables and data in one file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters.report import limits, text, verdict
from weightcast.converters.report.pages import Template, rounded
from weightcast.converters.report.records import values_of
from weightcast.converters.report.schema import Limit, Metrics, Report, RoleErrors, TensorErrors
from weightcast.text import size_text

_TEMPLATE: Final = Template(
    Path(__file__).with_name("template"),
    "page.html",
    (
        *("words.js", "data.js", "labels.js", "draw.js", "charts.js", "table.js"),
        *("difference.js", "frame.js", "page.js"),
    ),
)
# Columns of the table of tensors, in order.
_COLUMNS: Final = (
    "name", "kind", "layer", "type", "shape", "bytes", "bits_per_weight", "sqnr_db",
    "relative_rms", "largest_error", "mean_error", "cosine", "share_exact", "share_zeroed",
    "share_clipped",
)  # fmt: skip
_Json = dict[str, Any]


def page(reports: Sequence[Report]) -> str:
    """Make the page. Raises CheckpointError without the packages of the extra `report`."""
    entries = text.entries(reports)
    shown = _Shown.of(entries)
    data = {
        "columns": [_column(key) for key in _COLUMNS],
        "gain": text.title("gained_db"),
        "outputs": [_entry(entry) for entry in entries],
    }
    return _TEMPLATE.render(
        data,
        reports=reports,
        entries=entries,
        warnings=text.warnings(reports),
        text=text,
        size_text=size_text,
        verdicts=verdict.verdicts(entries),
        proposal_text=lambda proposal: _unbroken(verdict.proposal_text(proposal)),
        unbroken=_unbroken,
        kept_means=verdict.KEPT_MEANS,
        estimated_means=f"{verdict.ESTIMATED_MEANS} {verdict.OPTIONS_MEAN}",
        limits_of=_limits_of,
        bound_text=limits.bound_text,
        sections=shown.sections,
        has_layers=shown.has_layers,
        has_experts=shown.has_experts,
        has_weighted=any(entry.output.total.weighted for entry in entries),
        has_search=any(entry.output.total.search for entry in entries),
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    """The sections that there is something to show in."""

    is_several: bool
    has_layers: bool
    has_experts: bool

    @classmethod
    def of(cls, entries: Sequence[text.Entry]) -> _Shown:
        tensors = [tensor for entry in entries for tensor in entry.output.tensors]
        layers = {tensor.layer for tensor in tensors} - {None}
        return cls(len(entries) > 1, len(layers) > 1, any(tensor.experts for tensor in tensors))

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Give the ids and short titles of all sections, for the links to them."""
        sections = (
            ("verdict", "Verdict", True),
            ("outputs-section", "Outputs", True),
            ("compare", "Size", self.is_several),
            ("difference", "Compare", self.is_several),
            ("map-section", "Errors", True),
            ("types-section", "Types", True),
            ("layers-section", "Layers", self.has_layers),
            ("kinds-section", "Kinds", True),
            ("histogram-section", "Distribution", True),
            ("experts-section", "Experts", self.has_experts),
            ("worst-section", "Worst", True),
            ("recipes", "Recipes", True),
            ("tensors-section", "Tensors", True),
        )
        return [(name, title) for name, title, is_there in sections if is_there]


def _limits_of(report: Report) -> list[tuple[Limit, list[limits.Violation]]]:
    """Give each limit that was set with what is beyond it, worst first."""
    return [
        (limit, sorted(limits.violations(report, limit), key=limits.badness, reverse=True))
        for limit in report.limits
    ]


def _unbroken(sentence: str) -> str:
    """Keep numbers on one line with their units."""
    return re.sub(r"(?<=\d) (?=%|dB|GB|MB|kB|bytes\b)", "\u00a0", sentence)


def _column(key: str) -> _Json:
    about = text.COLUMNS[key]
    return {"key": key, "label": about.label, "title": text.title(key), "unit": about.unit}


def _entry(entry: text.Entry) -> _Json:
    output = entry.output
    return {
        "label": entry.label,
        "file": text.file_name(output),
        "bytes": output.bytes,
        "bits_per_weight": rounded(output.bits_per_weight),
        "total": _values(output.total),
        "kinds": [_values(role) for role in output.roles],
        "tensors": [_tensor(tensor) for tensor in output.tensors],
    }


def _tensor(tensor: TensorErrors) -> _Json:
    values = _values(replace(tensor, experts=(), worst_rows=()))
    del values["histogram"]  # two thirds of the page's size
    return {
        **values,
        "experts": [[rounded(each.relative_rms), rounded(each.sqnr_db)] for each in tensor.experts],
        "worst_rows": [
            [row.expert, row.row, rounded(row.relative_rms)] for row in tensor.worst_rows
        ],
    }


def _values(record: RoleErrors | TensorErrors | Metrics) -> _Json:
    """Turn errors into JSON values as in a report, rounded, with their metrics beside them."""
    values: _Json = rounded(values_of(record))
    metrics = values.pop("metrics", {})
    return {**values, **metrics}
