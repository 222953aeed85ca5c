"""The tables of `benchmarks.least_error` in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Line = Mapping[str, Any]
GGML = "ggml"
EFFORTS = ("effort-1", "effort-2", "effort-3")
SEARCHES = (GGML, *EFFORTS)
# What a model makes of the weights, with what it is called.
_MEASURES = {"divergence": "KL divergence", "distance": "1 - cosine"}
_NOTE = """\
RMS errors are relative to the weights, of all matrices together that fill a type's blocks; with
importance they are weighted by it, each matrix with the mean 1. Columns 1, 2 and 3 are efforts of
the search for the least error, as ratios to what ggml's search gives, in the column before them.
Behind a ratio of means stands z: the mean difference of pairs, in its standard errors, which take
tokens and texts as independent. Beyond 2 or -2 it is rarely chance, but now and then among so many.
"Typical" is the geometric mean of the ratios of pairs, with z of their logarithms: means are those
of a few tokens, where a model of experts chooses another one, and say less of all others.
Where ggml's search ignores importance, it stands beside efforts that do not. Speeds are millions of
weights per second of thread CPU time.

Embedding, output and routers stay float32, and so do matrices that do not fill blocks: those of
most types have 32 weights, of K- and I-quants, but for IQ4_NL, 256. Weights out of a 4-bit file lie
on the grids of its blocks, which a search with the same blocks would find again; with the channels
in another order, which changes no result of the model, a block has values of many grids, as if it
had never been quantized. Language models are run by llama.cpp with the quantized matrices
dequantized to float32, in windows of 256 tokens, of which the first 32 predictions do not count."""


def markdown(report: Mapping[str, Any]) -> str:
    """Make a page of the results: for each model, tables without and with importance."""
    machine = report["machine"]
    lines = [f"# Search for the least error, {report['date']}", ""]
    lines += [f"{machine['processor']}, {machine['ggml']}.", "", *_NOTE.splitlines()]
    for name, model in report["models"].items():
        lines += ["", f"## {name}", "", _described(model)]
        for weighed, title in ((False, "Without importance"), (True, "With importance")):
            rows = rows_by_type(model["cells"], weighed)
            if rows:
                lines += ["", f"### {title}", "", *_table(rows, weighed)]
    return "\n".join(lines) + "\n"


def rows_by_type(cells: Iterable[Line], weighed: bool) -> dict[str, dict[str, Line]]:
    """Sort cells by type and search; with importance, ggml may have one that ignores it."""
    cells = list(cells)
    found: dict[str, dict[str, Line]] = {}
    for cell in cells:
        if cell["importance"] == weighed:
            found.setdefault(cell["type"], {})[cell["search"]] = cell
    plain = {cell["type"]: cell for cell in cells if cell["search"] == GGML}
    for name, row in found.items():
        if GGML not in row and name in plain:
            row[GGML] = plain[name]
    return {name: row for name, row in found.items() if GGML in row}


def geometric_mean(ratios: Iterable[float]) -> float:
    """Average positive ratios; NaN of none."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def _described(model: Mapping[str, Any]) -> str:
    words = [f"{model['note']}. {model['weights'] / 1e6:.1f} M weights in matrices of layers."]
    if model["perplexity"] is not None:
        value, error = model["perplexity"]["value"], model["perplexity"]["error"]
        words.append(f"Perplexity of the model as it is: {value:.2f} +- {error:.2f}.")
    return " ".join(words)


def _table(rows: Mapping[str, Mapping[str, Line]], weighed: bool) -> Iterator[str]:
    """Give a table of errors and what models make of them, and one of perplexities and speeds."""
    error = "weighted_relative_rms" if weighed else "relative_rms"
    sample = next(iter(next(iter(rows.values())).values()))
    measures = [name for name in _MEASURES if name in sample]
    heads = ["type", "M weights", "weighted RMS error" if weighed else "RMS error", *"123"]
    for name in measures:
        heads += [_MEASURES[name], *"123", *(f"typical, {effort}" for effort in "123")]
    yield from _heads(heads)
    for name, row in rows.items():
        ggml = row[GGML]
        cells = [name, f"{ggml['weights'] / 1e6:.1f}", f"{ggml[error]:.5f}"]
        cells += _each(row, lambda line, g=ggml: _ratio(line[error], g[error]))
        for measure in measures:
            mean = ggml[measure]
            cells.append(f"{mean['value']:.3g} +- {mean['error']:.1g}")
            cells += _each(row, lambda line, g=ggml, m=measure: _compared(line, g, m))
            cells += _each(row, lambda line, m=measure: _typical(line, m))
        yield _row(cells)
    if any(effort in row for row in rows.values() for effort in EFFORTS):
        yield _row(_means(rows, error, measures))
    yield ""
    with_perplexity = "perplexity" in sample
    heads = ["type", *(["perplexity", *"123"] if with_perplexity else []), "Mw/s", *"123"]
    yield from _heads(heads)
    for name, row in rows.items():
        cells = [name]
        if with_perplexity:
            cells.append(f"{row[GGML]['perplexity']['value']:.2f}")
            cells += _each(row, lambda line: f"{line['perplexity']['value']:.2f}")
        cells.append(f"{row[GGML]['mweights_per_s']:.0f}")
        cells += _each(row, lambda line: f"{line['mweights_per_s']:.0f}")
        yield _row(cells)


def _heads(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---", *["---:"] * (len(names) - 1)])


def _means(
    rows: Mapping[str, Mapping[str, Line]], error: str, measures: list[str]
) -> Iterator[str]:
    """Give the geometric means of the ratios over the types that were made at all efforts made."""
    made = {effort for row in rows.values() for effort in EFFORTS if effort in row}
    complete = {name: row for name, row in rows.items() if made <= row.keys()}
    of = "" if len(complete) == len(rows) else f" of {len(complete)} complete"
    rows = complete
    yield from (f"geometric mean{of}", "", "")
    for effort in EFFORTS:
        yield _mean_ratio(rows, effort, lambda line: line[error])
    for measure in measures:
        yield ""
        for effort in EFFORTS:
            yield _mean_ratio(rows, effort, lambda line, m=measure: line[m]["value"])
        for effort in EFFORTS:
            lines = [row[effort] for row in rows.values() if effort in row]
            typical = [math.exp(line[f"{measure}_log_ratio"]["value"]) for line in lines]
            yield f"**{geometric_mean(typical):.3f}**" if lines else ""


def _mean_ratio(
    rows: Mapping[str, Mapping[str, Line]], effort: str, value: Callable[[Line], float]
) -> str:
    pairs = [(value(row[effort]), value(row[GGML])) for row in rows.values() if effort in row]
    mean = geometric_mean(ours / theirs for ours, theirs in pairs if ours > 0 and theirs > 0)
    return "" if math.isnan(mean) else f"**{mean:.3f}**"


def _each(row: Mapping[str, Line], said: Callable[[Line], str]) -> list[str]:
    return [said(row[effort]) if effort in row else "" for effort in EFFORTS]


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.4f}" if theirs else ""


def _compared(line: Line, ggml: Line, measure: str) -> str:
    ratio = line[measure]["value"] / ggml[measure]["value"]
    return f"{ratio:.3f} (z {line[f'{measure}_difference']['z']:+.1f})"


def _typical(line: Line, measure: str) -> str:
    ratio = line[f"{measure}_log_ratio"]
    return f"{math.exp(ratio['value']):.3f} (z {ratio['z']:+.1f})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
