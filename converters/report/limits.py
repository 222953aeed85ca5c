"""Limits for pipelines: find the tensors that are worse than they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.report.records import fields_of
from weightcast.converters.report.schema import (
    WEIGHTED,
    Limit,
    Metrics,
    OutputErrors,
    Report,
    TensorErrors,
    Weighted,
)
from weightcast.errors import RequestError
from weightcast.text import option, shown


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that can be limited, and the limits that make sense."""

    more_is_better: bool
    least: float
    most: float


def _metrics_of(record: type, prefix: str = "") -> dict[str, Metric]:
    metrics = {}
    for name, field in fields_of(record).items():
        if field.about.better is not None:
            more = field.about.better == "more"
            # Of a metric that should be small the size is limited, whatever its sign.
            least = field.bounds.least if more else 0
            metrics[f"{prefix}{name}"] = Metric(more, least, field.bounds.most)
    return metrics


METRICS: Final = {
    **_metrics_of(Metrics),
    **_metrics_of(TensorErrors),
    **_metrics_of(Weighted, WEIGHTED),
}
TOTAL: Final = "total"
_LIMIT: Final = re.compile(
    r"(?:(?P<role>[^:=]+):)?(?P<metric>[a-z_.]+)=(?P<limit>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?)",
    re.IGNORECASE,
)


def is_kept(limit: Limit, value: float) -> bool:
    """Tell whether a value is within a limit."""
    if METRICS[limit.metric].more_is_better:
        return value >= limit.limit
    return abs(value) <= limit.limit


def bound_text(limit: Limit) -> str:
    """Say what a limit allows: at most 0.1, at least 20."""
    more = METRICS[limit.metric].more_is_better
    return f"{'at least' if more else 'at most'} {limit.limit:g}"


@dataclass(frozen=True, slots=True)
class Violation:
    """A limit that a tensor, or an output in total, is beyond."""

    output: str
    name: str
    value: float
    limit: Limit

    @property
    def text(self) -> str:
        value = f"{self.limit.metric} is {self.value:.6g}"
        return f"{self.output}: {self.name}: {value}, not {bound_text(self.limit)}"


def parse_limit(text: str) -> Limit:
    """Read [KIND:]METRIC=LIMIT: relative_rms=0.1, attn_q:sqnr_db=30. Raises RequestError."""
    match = _LIMIT.fullmatch(text.strip())
    try:
        limit = float(match["limit"]) if match else math.nan
    except ValueError:
        limit = math.nan
    given = f"{option('fail_over')} {shown(text)[1:-1]}"
    if match is None or not math.isfinite(limit):
        raise RequestError(
            f"{given}: write it as [KIND:]METRIC=LIMIT, such as "
            "relative_rms=0.1, attn_q:sqnr_db=30 or total:cosine=0.99"
        )
    metric = match["metric"].lower()
    if metric not in METRICS:
        raise RequestError(f"{given}: unknown metric; known: {', '.join(METRICS)}")
    known = METRICS[metric]
    if not known.least <= limit <= known.most:
        bound = "" if known.most == math.inf else f" and at most {known.most:g}"
        raise RequestError(
            f"{given}: {metric} is at least {known.least:g}{bound}; no other limit makes sense"
        )
    return Limit(metric, limit, match["role"])


def check_applicable(limits: Iterable[Limit], roles: Iterable[str], *, weighted: bool) -> None:
    """Refuse limits that nothing could be beyond: before hours of work, not after.

    `roles` are those of all tensors; `weighted` says that there is an importance matrix. Raises
    RequestError.
    """
    known = dict.fromkeys(roles)
    for limit in limits:
        given = f"{option('fail_over')} {limit.name}"
        if limit.role not in (None, TOTAL, *known):
            raise RequestError(
                f"{given}: no tensor is of this kind; there are {', '.join(known)} and {TOTAL}"
            )
        if limit.is_weighted and not weighted:
            raise RequestError(f"{given}: without an importance matrix nothing is weighed")


def check_limits(report: Report, limits: Sequence[Limit]) -> list[Violation]:
    """Find everything in a report that is beyond a limit. Raises RequestError if none could be.

    A metric that is not finite is beyond any limit, but for the SQNR where there is no error.
    """
    tensors = [tensor for output in report.outputs for tensor in output.tensors]
    weighted = any(tensor.metrics.weighted is not None for tensor in tensors)
    check_applicable(limits, (tensor.role for tensor in tensors), weighted=weighted)
    return [violation for limit in limits for violation in violations(report, limit)]


def violations(report: Report, limit: Limit) -> list[Violation]:
    """Find everything in a report that is beyond one limit."""
    return [
        Violation(output.path, name, value, limit)
        for output in report.outputs
        for name, value in _values(output, limit)
        if not is_kept(limit, value)
    ]


def badness(violation: Violation) -> float:
    """Order violations of one limit: the further beyond, the more."""
    more = METRICS[violation.limit.metric].more_is_better
    return -violation.value if more else abs(violation.value)


def _values(output: OutputErrors, limit: Limit) -> Iterator[tuple[str, float]]:
    """Give the name and the metric of everything in an output that a limit applies to."""
    if limit.role == TOTAL:
        measured = [(TOTAL, output.bits_per_weight, output.total)]
    else:
        measured = [
            (tensor.name, tensor.bits_per_weight, tensor.metrics)
            for tensor in output.tensors
            if limit.role in (None, tensor.role)
        ]
    for name, bits_per_weight, metrics in measured:
        if limit.metric == "bits_per_weight":
            yield name, bits_per_weight
        elif (value := _value(metrics, limit)) is not None:
            yield name, value


def _value(metrics: Metrics, limit: Limit) -> float | None:
    """Give the metric that is limited; None if it does not apply: not weighted, or no error."""
    part = metrics.weighted if limit.is_weighted else metrics
    if part is None:
        return None
    value: float | None = getattr(part, limit.metric.removeprefix(WEIGHTED))
    if value is None and limit.metric.endswith("sqnr_db") and part.error_squares == 0:
        return None
    worst = -math.inf if METRICS[limit.metric].more_is_better else math.inf
    return worst if value is None else value
