"""Show error reports as one HTML page that works offline: charts, tables and data in one file.

Charts are drawn by Vega-Lite, whose JavaScript comes with vl-convert-python and is put into the
page. What the reports say reaches the page as JSON in which nothing can end a script, and is shown
as text; the content security policy lets only the page's own two scripts run and nothing be loaded.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters.report import limits, text, verdict
from weightcast.converters.report.records import values_of
from weightcast.converters.report.schema import Limit, Metrics, Report, RoleErrors, TensorErrors
from weightcast.errors import CheckpointError
from weightcast.text import size_text

_TEMPLATE: Final = Path(__file__).with_name("template")
# Parts of the page's script, in order.
_SCRIPTS: Final = ("data.js", "charts.js", "labels.js", "table.js", "difference.js", "page.js")
_DIGITS: Final = 6
# The extra `report`: modules and the packages that bring them.
_PACKAGES: Final = {"jinja2": "jinja2", "vl_convert": "vl-convert-python"}
# Columns of the table of tensors, in order.
_COLUMNS: Final = (
    "name", "kind", "layer", "type", "shape", "bytes", "bits_per_weight", "sqnr_db",
    "relative_rms", "largest_error", "mean_error", "cosine", "share_exact", "share_zeroed",
    "share_clipped",
)  # fmt: skip
_Json = dict[str, Any]


def page(reports: Sequence[Report]) -> str:
    """Make the page. Raises CheckpointError without the packages of the extra `report`."""
    check_packages()
    import jinja2
    from markupsafe import Markup

    scripts = [library(), "\n".join(_part(name) for name in _SCRIPTS)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    entries = text.entries(reports)
    shown = _Shown.of(entries)
    data = {
        "columns": [_column(key) for key in _COLUMNS],
        "gain": text.title("gained_db"),
        "outputs": [_entry(entry) for entry in entries],
    }
    return environment.get_template("page.html").render(
        policy=_policy(scripts),
        style=Markup(_part("page.css")),
        scripts=[Markup(script) for script in scripts],
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
        data=data,
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


def check_packages() -> None:
    """Import what makes pages. Raises CheckpointError without the extra `report`."""
    for module, package in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise CheckpointError(
                f"{package} is not installed: pip install 'weightcast[report]' for HTML pages "
                "(JSON and Markdown need nothing)"
            ) from None


@functools.cache
def library() -> str:
    """Bundle Vega, Vega-Lite and Vega-Embed; takes seconds."""
    import vl_convert

    # In JavaScript only strings and regular expressions can have this, and it means the same there.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", r"<\/script"
    )
    return f"/*\n{_part('vega-licence.txt')}*/\n{script}"


def _unbroken(sentence: str) -> str:
    """Keep numbers on one line with their units."""
    return re.sub(r"(?<=\d) (?=%|dB|GB|MB|kB|bytes\b)", "\u00a0", sentence)


def _part(name: str) -> str:
    return (_TEMPLATE / name).read_text()


def _policy(scripts: Sequence[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # Vega's tooltip brings a style element of its own.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'"


def _column(key: str) -> _Json:
    about = text.COLUMNS[key]
    return {"key": key, "label": about.label, "title": text.title(key), "unit": about.unit}


def _entry(entry: text.Entry) -> _Json:
    output = entry.output
    return {
        "label": entry.label,
        "file": text.file_name(output),
        "bytes": output.bytes,
        "bits_per_weight": _rounded(output.bits_per_weight),
        "total": _values(output.total),
        "kinds": [_values(role) for role in output.roles],
        "tensors": [_tensor(tensor) for tensor in output.tensors],
    }


def _tensor(tensor: TensorErrors) -> _Json:
    values = _values(replace(tensor, experts=(), worst_rows=()))
    del values["histogram"]  # two thirds of the page's size
    return {
        **values,
        "experts": [
            [_rounded(each.relative_rms), _rounded(each.sqnr_db)] for each in tensor.experts
        ],
        "worst_rows": [
            [row.expert, row.row, _rounded(row.relative_rms)] for row in tensor.worst_rows
        ],
    }


def _values(record: RoleErrors | TensorErrors | Metrics) -> _Json:
    """Turn errors into JSON values as in a report, rounded, with their metrics beside them."""
    values: _Json = _rounded(values_of(record))
    metrics = values.pop("metrics", {})
    return {**values, **metrics}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value
