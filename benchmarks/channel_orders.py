#!/usr/bin/env python3
"""Measure searches for the least error over several orders of a model's channels.

What a model loses by a type is the outcome of one rounding of its weights: means over tokens do not
tell how another rounding of equal errors would have fared. With its channels in another order a
model is the same, and its blocks are others. Here the ratios of a search to ggml's are averaged
over orders, and their spread over these gives the standard error.

    .venv/bin/python -m benchmarks.channel_orders --folder build/least-error --orders 2,3,4,5,6,7

Cells are those of `benchmarks.least_error --order N`, and are kept as there. Which types are
measured is in CASES: those of which one order made the search look worse than ggml's, and some
that are beside them for comparison.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import least_error
from benchmarks import least_error_models as models
from benchmarks.divergence import log_ratio, mean_of
from benchmarks.kernels import machine
from benchmarks.least_error import Cell, Measured, called, cell_of_ggml, measure, quantizer
from benchmarks.least_error_models import Subject

CASES = (
    ("smollm2", False, ("Q3_K", "IQ2_S", "Q6_K", "IQ4_XS")),
    ("grok", True, ("IQ3_XXS", "Q3_K")),
    ("encoder", False, ("IQ4_NL",)),
    ("encoder", True, ("Q1_0",)),
)
_MEASURES = ("divergence", "distance")
_NOTE = """\
Ratios of what a search gives to what ggml's gives, means over orders of the channels with their
standard errors over these: of the weights' RMS error (weighted, with importance), of the mean KL
divergence of a token or distance of a text, and of the typical one, which is the geometric mean of
the ratios of pairs. The ratios of single orders follow; one order is what a table of one model
shows. Means over orders are geometric."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """What a search makes of a type in one order, each relative to ggml's."""

    order: int
    error: float
    mean: float
    typical: float


def ratios_of(order: int, cell: Cell, found: Measured, ggml: Measured) -> Ratios:
    """Hold what was measured in one order against ggml's."""
    measure_name = next(name for name in _MEASURES if name in found.samples)
    samples, others = found.samples[measure_name], ggml.samples[measure_name]
    error = "weighted_relative_rms" if cell.importance else "relative_rms"
    return Ratios(
        order,
        getattr(found, error) / getattr(ggml, error),
        float(samples.mean() / others.mean()),
        math.exp(log_ratio(samples, others).value),
    )


def over_orders(ratios: Sequence[float]) -> dict[str, float]:
    """Average ratios over orders: the geometric mean, its error and z of its logarithm.

    The error is that of the ratio, infinite for one order.
    """
    mean = mean_of(np.log(np.array(ratios, np.float64)))
    value = math.exp(mean.value)
    return {"value": value, "error": value * mean.error, "z": mean.z}


def lines(
    folder: Path, grok: Path, orders: Sequence[int], searches: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Measure what is not there yet, order by order, and give a line for each type and search."""
    found: dict[tuple[str, str, bool, str], list[Ratios]] = {}
    for name in dict.fromkeys(name for name, _, _ in CASES):
        for order in orders:
            subject = least_error.subject(name, folder, grok, order)
            for _, weighed, types in (case for case in CASES if case[0] == name):
                for kind in types:
                    cell = Cell(called(name, order), kind, least_error.GGML, weighed)
                    ggml = _measured(cell_of_ggml(cell), subject, folder)
                    for search in searches:
                        other = Cell(cell.model, kind, search, weighed)
                        made = _measured(other, subject, folder)
                        ratios = ratios_of(order, other, made, ggml)
                        found.setdefault((name, kind, weighed, search), []).append(ratios)
                        click.echo(f"{other}: {ratios}", err=True)
    for (name, kind, weighed, search), each in found.items():
        yield {
            "model": name,
            "type": kind,
            "importance": weighed,
            "search": search,
            **{
                part: over_orders([getattr(ratios, part) for ratios in each])
                for part in ("error", "mean", "typical")
            },
            "orders": [asdict(ratios) for ratios in each],
        }


def _measured(cell: Cell, subject: Subject, folder: Path) -> Measured:
    path = cell.path(folder, subject.identity)
    if not path.exists():
        measure(cell, subject, quantizer(cell.search)).save(path)
    return Measured.load(path)


def markdown(report: Mapping[str, Any]) -> str:
    """Make a page of the results."""
    told = report["machine"]
    said = [f"# Searches over orders of channels, {report['date']}", ""]
    said += [f"{told['processor']}, {told['ggml']}.", "", *_NOTE.splitlines(), ""]
    said += ["| model | type | search | error | mean | typical | means of single orders |"]
    said += ["| --- | --- | --- | ---: | ---: | ---: | --- |"]
    for line in report["lines"]:
        how = "with importance" if line["importance"] else "without importance"
        cells = [f"{line['model']}, {how}", line["type"], line["search"]]
        cells.append(f"{line['error']['value']:.4f}")
        cells += [_told(line[part]) for part in ("mean", "typical")]
        cells.append(", ".join(f"{each['mean']:.3f}" for each in line["orders"]))
        said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said) + "\n"


def _told(mean: Mapping[str, float]) -> str:
    return f"{mean['value']:.3f} +- {mean['error']:.3f} (z {mean['z']:+.1f})"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="What is kept.")
@click.option("--orders", default="2,3,4,5,6,7", help="Numbers of orders; 1 is the usual one.")
@click.option("--searches", default="effort-2", help="Beside ggml's, as in least_error.")
@click.option("--grok", type=click.Path(path_type=Path), default=models.EXAMPLE, help="Shards.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(folder: Path, orders: str, searches: str, grok: Path, output: Path | None) -> None:
    """Measure the types of CASES in each order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies of models are removed
    numbers = [int(number) for number in orders.split(",")]
    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "lines": list(lines(folder, grok, numbers, searches.split(","))),
    }
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))
    else:
        click.echo(markdown(report))


if __name__ == "__main__":
    main()
