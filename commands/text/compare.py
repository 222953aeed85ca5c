"""Describe a comparison: the lines that `compare` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from weightcast.commands.text.table import aligned
from weightcast.converters.compare import Comparison
from weightcast.converters.report import Metrics, OutputErrors, TensorErrors
from weightcast.converters.report.text import (
    BASELINE_TEXTS,
    COLUMNS,
    is_lossless,
    metric_text,
    worst_tensors,
)
from weightcast.text import count, size_text, some

_WORST = 5
_METRICS = ("sqnr_db", "relative_rms", "cosine", "largest_error")
_WEIGHTED = {"sqnr_db": "weighed SQNR", "relative_rms": "weighed RMS"}


def comparison_lines(comparison: Comparison, *, all_tensors: bool) -> Iterator[str]:
    """Give a line for each role or each tensor, the worst ones, and those not measured."""
    report = comparison.errors
    source, output = report.source, report.outputs[0]
    yield f"{source.path}: {source.family}, {source.parameters:,} parameters"
    bits = f"{output.bits_per_weight:.3f} bits per weight"
    yield f"{output.path}: {output.type}, {size_text(output.bytes)}, {bits}"
    if output.tensors:
        yield f"errors are differences from {BASELINE_TEXTS[report.baseline]}"
        yield from _importance(comparison)
        yield ""
        yield from aligned(_tensor_rows(output) if all_tensors else _role_rows(output))
        yield ""
        yield from _summary(output)
    yield from _not_measured(comparison)


def _importance(comparison: Comparison) -> Iterator[str]:
    importance = comparison.weighing
    if importance.matrix is None:
        return
    file = importance.matrix.path
    yield f"weighed: squares times the importance of their column in {file}"
    if importance.missing:
        missing = count(len(importance.missing), "tensor")
        yield f"note: {file} has no entry for {missing}, not weighed: {some(importance.missing)}"
    zeros = [name for name, rows in importance.rows.items() if not rows.any()]
    if zeros:
        yield f"note: the importance of every column is 0 in {some(zeros)}"


def _role_rows(output: OutputErrors) -> list[list[str]]:
    headers = _headers(output)
    rows = [["kind", "type", "tensors", "bits/weight", *headers]]
    by_role: dict[str, list[TensorErrors]] = defaultdict(list)
    for tensor in output.tensors:
        by_role[tensor.role].append(tensor)
    for role in output.roles:
        tensors = by_role[role.role]
        types = some(list(dict.fromkeys(tensor.type for tensor in tensors)))
        bits = f"{role.bits_per_weight:.3f}"
        rows.append([role.role, types, f"{len(tensors):,}", bits, *_cells(role.metrics, headers)])
    bits = f"{output.bits_per_weight:.3f}"
    return [*rows, ["total", "", f"{len(output.tensors):,}", bits, *_cells(output.total, headers)]]


def _tensor_rows(output: OutputErrors) -> list[list[str]]:
    headers = _headers(output)
    rows = [["tensor", "type", "bits/weight", *headers]]
    for tensor in output.tensors:
        bits = f"{tensor.bits_per_weight:.3f}"
        rows.append([tensor.name, tensor.type, bits, *_cells(tensor.metrics, headers)])
    bits = f"{output.bits_per_weight:.3f}"
    return [*rows, ["total", "", bits, *_cells(output.total, headers)]]


def _headers(output: OutputErrors) -> tuple[str, ...]:
    labels = (COLUMNS[key].label for key in _METRICS)
    return (*labels, *(() if output.total.weighted is None else _WEIGHTED.values()))


def _cells(metrics: Metrics, headers: Sequence[str]) -> list[str]:
    cells = [metric_text(metrics, key) for key in _METRICS]
    if metrics.weighted is not None:
        cells += [metric_text(metrics.weighted, key) for key in _WEIGHTED]
    return cells + [""] * (len(headers) - len(cells))


def _summary(output: OutputErrors) -> Iterator[str]:
    tensors = output.tensors
    exact = sum(is_lossless(tensor.metrics) for tensor in tensors)
    if exact == len(tensors):
        yield f"no error: every weight of {count(exact, 'tensor')} is the same"
        return
    yield "worst tensors:"
    rows = [_worst_row(tensor) for tensor in worst_tensors(output, _WORST)]
    yield from aligned(rows, left=(0, 1, 4))
    if exact:
        yield f"no error in {exact:,} of {count(len(tensors), 'tensor')}"


def _worst_row(tensor: TensorErrors) -> list[str]:
    metrics = tensor.metrics
    position = "" if metrics.largest_at is None else f" at {list(metrics.largest_at)}"
    largest = f"{COLUMNS['largest_error'].label} {metric_text(metrics, 'largest_error')}{position}"
    cells = [metric_text(metrics, key) for key in ("sqnr_db", "relative_rms")]
    return [tensor.name, tensor.type, *cells, largest]


def _not_measured(comparison: Comparison) -> Iterator[str]:
    pairing = comparison.pairing
    if comparison.same:
        yield f"no weights, the same bytes: {some(comparison.same)}"
    if comparison.different:
        yield f"no weights, OTHER BYTES: {some(comparison.different)}"
    if pairing.unlike:
        yield f"NOT COMPARED, stored in types that cannot be: {some(pairing.unlike)}"
    if pairing.only_source:
        yield f"ONLY IN {comparison.a}: {some(pairing.only_source)}"
    if pairing.only_output:
        yield f"ONLY IN {comparison.b}: {some(pairing.only_output)}"
    if pairing.reshaped:
        shapes = [f"{name} {list(a)} became {list(b)}" for name, a, b in pairing.reshaped]
        yield f"OTHER SHAPES: {some(shapes)}"
