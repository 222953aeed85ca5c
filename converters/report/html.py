"""Error reports as one HTML page that works offline: charts, tables and all data in one file.

Charts are drawn by Vega-Lite, whose JavaScript comes with vl-convert-python and is put into the
page. What the reports say reaches the page as JSON in which nothing can end a script, and is shown
as text; the content security policy lets only the page's own two scripts run and nothing be loaded.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from weightcast.converters.report import text as words
from weightcast.converters.report.schema import KindErrors, Metrics, Report, TensorErrors
from weightcast.errors import CheckpointError

_TEMPLATE: Final = Path(__file__).with_name("template")
# What the scripts are made of, concatenated in this order.
_SCRIPTS: Final = ("data.js", "charts.js", "table.js", "page.js")
_DIGITS: Final = 6
_Json = dict[str, Any]


def page(reports: Sequence[Report]) -> str:
    """Make the page. Raises CheckpointError without the packages of the extra `report`."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise CheckpointError(_MISSING.format("jinja2")) from None
    scripts = [library(), "\n".join(_part(name) for name in _SCRIPTS)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found = words.entries(reports)
    return environment.get_template("page.html").render(
        policy=_policy(scripts),
        style=Markup(_part("page.css")),
        scripts=[Markup(script) for script in scripts],
        reports=reports,
        entries=found,
        warnings=words.warnings(reports),
        words=words,
        weighed=any(entry.output.total.weighted for entry in found),
        data={"outputs": [_entry(entry) for entry in found]},
    )


_MISSING: Final = (
    "{} is not installed: pip install 'weightcast[report]' for HTML pages (Markdown needs nothing)"
)


@functools.cache
def library() -> str:
    """Bundle Vega, Vega-Lite and Vega-Embed; takes seconds."""
    try:
        import vl_convert
    except ImportError:
        raise CheckpointError(_MISSING.format("vl-convert-python")) from None
    # In JavaScript only strings and regular expressions can have this, and it means the same there.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", r"<\/script"
    )
    return f"/*\n{_part('vega-licence.txt')}*/\n{script}"


def _part(name: str) -> str:
    return (_TEMPLATE / name).read_text()


def _policy(scripts: Sequence[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # Vega's tooltip brings a style element of its own.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'"


def _entry(entry: words.Entry) -> _Json:
    output = entry.output
    return {
        "label": entry.label,
        "file": words.file_name(output),
        "bytes": output.bytes,
        "bits": _rounded(output.bits_per_weight),
        "total": _metrics(output.total),
        "kinds": [_kind(kind) for kind in output.kinds],
        "tensors": [_tensor(tensor) for tensor in output.tensors],
    }


def _kind(kind: KindErrors) -> _Json:
    return {
        "kind": kind.kind,
        "bytes": kind.bytes,
        "bits": _rounded(kind.bits_per_weight),
        **_metrics(kind.metrics),
    }


def _tensor(tensor: TensorErrors) -> _Json:
    values = _metrics(tensor.metrics)
    del values["histogram"]  # two thirds of the page's size
    return {
        "name": tensor.name,
        "kind": tensor.kind,
        "layer": tensor.layer,
        "type": tensor.type,
        "shape": tensor.shape,
        "bytes": tensor.bytes,
        "bits": _rounded(tensor.bits_per_weight),
        **values,
        "experts": [
            [_rounded(each.relative_rms), _rounded(each.sqnr_db)] for each in tensor.experts
        ],
        "rows": [[row.expert, row.row, _rounded(row.relative_rms)] for row in tensor.worst_rows],
    }


def _metrics(metrics: Metrics) -> _Json:
    return {
        "weights": metrics.weights,
        "errorSquares": _rounded(metrics.error_squares),
        "sourceSquares": _rounded(metrics.source_squares),
        "relative": _rounded(metrics.relative_rms),
        "sqnr": _rounded(metrics.sqnr_db),
        "cosine": _rounded(metrics.cosine),
        "mean": _rounded(metrics.mean_error),
        "largest": _rounded(metrics.largest_error),
        "at": metrics.largest_at,
        "exact": _rounded(metrics.share_exact),
        "zeroed": _rounded(metrics.share_zeroed),
        "clipped": _rounded(metrics.share_clipped),
        "weighted": metrics.weighted
        and {
            "relative": _rounded(metrics.weighted.relative_rms),
            "sqnr": _rounded(metrics.weighted.sqnr_db),
        },
        "histogram": metrics.histogram,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{_DIGITS}g}")
