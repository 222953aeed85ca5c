"""The tables of `benchmarks.least_error` in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Line = Mapping[str, Any]
EFFORTS = ("effort-1", "effort-2", "effort-3")
_SEARCHES = ("ggml", *EFFORTS)


def markdown(report: Mapping[str, Any]) -> str:
    """Make a page of the results: for each model, tables without and with importance."""
    return ""
