"""A gate for pipelines: which tensors are worse than they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weightcast.errors import RequestError
from weightcast.text import shown


@dataclass(frozen=True, slots=True)
class Metric:
    """Whether more of a metric is better, and what values it can have."""

    more_is_better: bool
    least: float = -math.inf
    most: float = math.inf


_SIZE: Final = Metric(False, least=0)
_SHARE_LOST: Final = Metric(False, least=0, most=1)
# Metrics of docs/report.schema.json. The mean error is gated by its size, whatever its sign.
METRICS: Final = {
    "relative_rms": _SIZE,
    "sqnr_db": Metric(True),
    "cosine": Metric(True, least=-1, most=1),
    "mean_error": _SIZE,
    "largest_error": _SIZE,
    "share_exact": Metric(True, least=0, most=1),
    "share_zeroed": _SHARE_LOST,
    "share_clipped": _SHARE_LOST,
    "bits_per_weight": _SIZE,
    "weighted.relative_rms": _SIZE,
    "weighted.sqnr_db": Metric(True),
}
TOTAL: Final = "total"
_LIMIT: Final = re.compile(
    r"(?:(?P<kind>[^:=]+):)?(?P<metric>[a-z_.]+)=(?P<limit>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """What a metric of every tensor, those of one kind, or an output in total must keep to."""

    metric: str
    limit: float
    kind: str | None = None

    def is_kept(self, value: float) -> bool:
        if METRICS[self.metric].more_is_better:
            return value >= self.limit
        return abs(value) <= self.limit

    @property
    def is_weighted(self) -> bool:
        return self.metric.startswith("weighted.")

    @property
    def name(self) -> str:
        return self.metric if self.kind is None else f"{self.kind}:{self.metric}"

    @property
    def text(self) -> str:
        more = METRICS[self.metric].more_is_better
        return f"{'at least' if more else 'at most'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Offender:
    """A tensor, or an output in total, that is beyond a limit."""

    output: str
    name: str
    value: float
    limit: Limit

    @property
    def text(self) -> str:
        found = f"{self.limit.metric} is {self.value:.6g}"
        return f"{self.output}: {self.name}: {found}, not {self.limit.text}"


def parse_limit(text: str) -> Limit:
    """Read [KIND:]METRIC=LIMIT: relative_rms=0.1, attn_q:sqnr_db=30. Raises RequestError."""
    match = _LIMIT.fullmatch(text.strip())
    try:
        limit = float(match["limit"]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or not math.isfinite(limit):
        raise RequestError(
            f"--fail-over {shown(text)[1:-1]}: write it as [KIND:]METRIC=LIMIT, such as "
            "relative_rms=0.1, attn_q:sqnr_db=30 or total:cosine=0.99"
        )
    metric = match["metric"].lower()
    if metric not in METRICS:
        raise RequestError(
            f"--fail-over {shown(text)[1:-1]}: unknown metric; known: {', '.join(METRICS)}"
        )
    known = METRICS[metric]
    if not known.least <= limit <= known.most:
        bound = "" if known.most == math.inf else f" and at most {known.most:g}"
        raise RequestError(
            f"--fail-over {shown(text)[1:-1]}: {metric} is at least {known.least:g}{bound}; no "
            "other limit makes sense"
        )
    return Limit(metric, limit, match["kind"])


def check_applicable(limits: Iterable[Limit], kinds: Iterable[str], *, weighed: bool) -> None:
    """Refuse limits that nothing could be beyond: before hours of work, not after.

    `kinds` are those of all tensors; `weighed`: there is an importance matrix. Raises RequestError.
    """
    known = dict.fromkeys(kinds)
    for limit in limits:
        if limit.kind not in (None, TOTAL, *known):
            raise RequestError(
                f"--fail-over {limit.name}: no tensor is of this kind; there are "
                f"{', '.join(known)} and {TOTAL}"
            )
        if limit.is_weighted and not weighed:
            raise RequestError(
                f"--fail-over {limit.name}: without an importance matrix nothing is weighed"
            )


def check_limits(report: Mapping[str, Any], limits: Sequence[Limit]) -> list[Offender]:
    """Find what a report has beyond the limits. Raises RequestError for one that is about nothing.

    A metric that is not finite is beyond any limit, but for the SQNR where there is no error.
    """
    tensors = [tensor for output in report["outputs"] for tensor in output["tensors"]]
    weighed = any(tensor["metrics"].get("weighted") is not None for tensor in tensors)
    check_applicable(limits, (tensor["kind"] for tensor in tensors), weighed=weighed)
    offenders: list[Offender] = []
    for limit in limits:
        found = [case for output in report["outputs"] for case in _cases(output, limit)]
        offenders += [
            Offender(path, name, value, limit)
            for path, name, value in found
            if value is not None and not limit.is_kept(value)
        ]
    return offenders


def _cases(output: Mapping[str, Any], limit: Limit) -> Iterator[tuple[str, str, float | None]]:
    """Give the path, the name and the value of everything that a limit is about."""
    if limit.kind == TOTAL:
        yield output["path"], TOTAL, _value(output, output["total"], limit.metric)
        return
    for tensor in output["tensors"]:
        if limit.kind in (None, tensor["kind"]):
            yield output["path"], tensor["name"], _value(tensor, tensor["metrics"], limit.metric)


def _value(holder: Mapping[str, Any], metrics: Mapping[str, Any], metric: str) -> float | None:
    """Give a metric; None if it does not apply: not weighed, or no error to speak of."""
    if metric == "bits_per_weight":
        return float(holder["bits_per_weight"])
    part, _, name = metric.rpartition(".")
    if part:
        if metrics[part] is None:
            return None
        metrics = metrics[part]
    value = metrics[name]
    if value is None:
        no_error = name == "sqnr_db" and metrics["error_squares"] == 0
        worst = -math.inf if METRICS[metric].more_is_better else math.inf
        return None if no_error else worst
    return float(value)
