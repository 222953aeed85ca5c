"""Show an evaluation as one HTML page that works offline, in the style of error reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from weightcast.converters.report.pages import Template, rounded
from weightcast.converters.report.records import values_of
from weightcast.errors import visible
from weightcast.evaluation.report import text
from weightcast.evaluation.report.schema import EvaluationReport
from weightcast.text import size_text

_TEMPLATE: Final = Template(
    Path(__file__).with_name("template"),
    "evaluation.html",
    ("words.js", "labels.js", "draw.js", "frame.js", "evaluation.js"),
)


def page(report: EvaluationReport) -> str:
    """Make the page. Raises CheckpointError without the packages of the extra `report`."""
    entries = text.entries(report)
    layers = [layer for entry in entries for layer in entry.artifact.layers]
    routing = text.has_routing(layers)
    sections = (
        ("artifacts-section", "Artifacts", True),
        ("scatter-section", "Size", True),
        ("layers-section", "Layers", bool(layers)),
        ("routing-section", "Routers", routing),
        ("details-section", "Tokens", True),
    )
    return _TEMPLATE.render(
        {"artifacts": [_entry(entry) for entry in entries]},
        report=report,
        entries=entries,
        text=text,
        size_text=size_text,
        visible=visible,
        has_layers=bool(layers),
        has_routing=routing,
        has_alone=text.has_alone(layers),
        sections=[(name, title) for name, title, is_there in sections if is_there],
    )


def _entry(entry: text.Entry) -> dict[str, Any]:
    """Give what the charts show of an artifact."""
    artifact, found = entry.artifact, entry.artifact.statistics
    values = {
        "bits_per_weight": artifact.bits_per_weight,
        "kld": found.kld_mean,
        "kld_se": found.kld_mean_se or 0.0,
        "layers": [values_of(layer) for layer in artifact.layers],
    }
    return {
        "label": entry.label,
        "bytes": artifact.nbytes,
        "kldText": text.mean_kld(found),
        "topText": text.same_top(found),
        **rounded(values),
    }
