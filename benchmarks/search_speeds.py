#!/usr/bin/env python3
"""How long searches for the least error take, beside ggml itself, type by type, on one thread.

ggml_quantize_chunk is called inside the xllamacpp wheel; beside it stand our kernels by ggml's rule
and by each effort of the search, of the same float32 rows. All run in turn, once in each round, and
thread CPU time is counted; a ratio is the median over rounds of the speeds' ratios in one round, so
that other work on the machine disturbs it little. Blocks by ggml's rule are compared with ggml's
before anything is timed.

    .venv/bin/python -m benchmarks.search_speeds --output benchmarks/results/search-speeds.json
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.kernels import (
    N_IN,
    NAMES,
    compare,
    ggml_quantize,
    importance_for,
    machine,
    make_source,
)
from weightcast.quant.cpu.library import isa, quantize_matrix
from weightcast.quant.search import EFFORTS, GGML, Search
from weightcast.quant.types import I_TYPES, K_TYPES, SIMPLE_TYPES, TYPES

# Columns of 6,144 weights: so many that the slowest takes some tens of milliseconds.
COLUMNS = {
    **{t.name: 384 for t in SIMPLE_TYPES},
    **{t.name: 96 for t in K_TYPES},
    **{t.name: 32 for t in I_TYPES},
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), 96),
}
OURS = "ggml's rule"
SEARCHES = {OURS: GGML, **{f"effort {effort}": Search(effort) for effort in EFFORTS}}
_NOTE = """\
Speeds are millions of weights a second of one thread's CPU time, medians of rounds. "x" are
multiples of ggml's speed, medians of the ratios of each round. ggml is the one that the xllamacpp
wheel brings, which is built without FMA; weightcast chooses its kernels for the processor. Where
ggml ignores importance, its speed is that without, and weightcast's searches use it."""


def speeds_of(name: str, weighed: bool, rounds: int, columns: int) -> dict[str, list[float]]:
    """Measure ggml and each search of one type: speeds of each round.

    Raises click.ClickException if blocks by ggml's rule are not ggml's.
    """
    quant_type = TYPES[name]
    source = make_source(columns, exact_scales=True)
    by_rule = importance_for(quant_type, weighed)
    searched = by_rule
    if weighed and searched is None:
        searched = np.square(np.random.default_rng(2).standard_normal(N_IN, np.float32))
    theirs = np.zeros((columns, quant_type.row_bytes(N_IN)), np.uint8)
    made = np.zeros_like(theirs)

    def ours(search: Search) -> Callable[[], object]:
        importance = searched if search.is_least_error else by_rule
        return lambda: quantize_matrix(source.rows, quant_type, made, importance, search)

    candidates = {"ggml": ggml_quantize(source.values, quant_type, by_rule, theirs)}
    candidates |= {called: ours(search) for called, search in SEARCHES.items()}
    candidates["ggml"]()
    candidates[OURS]()
    if not np.array_equal(made, theirs):
        raise click.ClickException(f"{name} by ggml's rule differs from ggml")
    return compare(candidates, rounds, source.values.size)


def line_of(name: str, speeds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Give a type's medians, and the medians of the ratios to ggml's speed of the same round."""
    of_ggml = speeds["ggml"]
    ratios = {
        called: [ours / theirs for ours, theirs in zip(each, of_ggml, strict=True)]
        for called, each in speeds.items()
        if called != "ggml"
    }
    return {
        "type": name,
        "mweights_per_s": {called: statistics.median(each) for called, each in speeds.items()},
        "ratio": {called: statistics.median(each) for called, each in ratios.items()},
        "ratio_range": {called: [min(each), max(each)] for called, each in ratios.items()},
    }


def lines(
    names: list[str], weighed: bool, rounds: int, columns: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Measure types, those that need importance only with it."""
    for name in names:
        if weighed or TYPES[name].importance != "required":
            line = line_of(name, speeds_of(name, weighed, rounds, columns[name]))
            told = {called: round(ratio, 2) for called, ratio in line["ratio"].items()}
            click.echo(f"{name}: {told}", err=True)
            yield line


def markdown(report: Mapping[str, Any]) -> str:
    """Make a page of the results."""
    told = report["machine"]
    said = [f"# Speeds of searches for the least error, {report['date']}", ""]
    said += [f"{told['processor']}, {report['isa']}; {told['ggml']}.", "", *_NOTE.splitlines()]
    for key, title in (("plain", "Without importance"), ("weighed", "With importance")):
        heads = ["type", "ggml", *(part for called in SEARCHES for part in (called, "x"))]
        said += ["", f"## {title}", "", f"| {' | '.join(heads)} |"]
        said.append(f"| {' | '.join(['---', *['---:'] * (len(heads) - 1)])} |")
        for line in report[key]:
            speeds = line["mweights_per_s"]
            cells = [line["type"], _speed(speeds["ggml"])]
            for called in SEARCHES:
                cells += [_speed(speeds[called]), f"{line['ratio'][called]:.2f}"]
            said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said) + "\n"


def _speed(mweights: float) -> str:
    return f"{mweights:.0f}" if mweights >= 20 else f"{mweights:.1f}"


@click.command()
@click.option("--types", default=",".join(NAMES), help="Types, separated by commas.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--columns", type=int, help="Of every type, for a look.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(types: str, rounds: int, columns: int | None, output: Path | None) -> None:
    """Measure every search of every type beside ggml in one run."""
    names = types.split(",")
    sizes = COLUMNS if columns is None else dict.fromkeys(COLUMNS, columns)
    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "isa": isa(),
        "rounds": rounds,
        "columns": {name: sizes[name] for name in names},
        "plain": list(lines(names, weighed=False, rounds=rounds, columns=sizes)),
        "weighed": list(lines(names, weighed=True, rounds=rounds, columns=sizes)),
    }
    table = markdown(report)
    click.echo(table)
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
