#!/usr/bin/env python3
"""Measure what searches for the least error gain over ggml's, in weights and in what models say.

Each type of GGUF is made by ggml's own search and by `search="least-error"` at each effort, without
and with an importance matrix, of all matrices of a model that fill its blocks but for embedding and
output. Measured are the error of the weights, the speed on one thread, and what a model makes of
the weights: llama.cpp runs language models, with the quantized matrices dequantized to float32,
so that only the weights differ and not the precision of activations. Samples of two searches are
paired, token by token or text by text.

    .venv/bin/python -m benchmarks.least_error --folder build/least-error

What was measured is kept in the folder, and a run goes on from there. `--refresh` quantizes again
what is selected, and runs a model again if blocks differ. `--output` writes all that the folder has
of the selected models. A search can also be a function of a module, MODULE:NAME, which makes uint8
blocks of (x [out, in], type name, importance [in] or None).

How codes are rounded is one draw of many, and a mean over tokens does not tell how far others are
from it. `--order N` puts a model's channels in another order, which changes no result of the model
as it is but draws anew; benchmarks/channel_orders.py averages over several.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import weightcast
from benchmarks import least_error_models as models
from benchmarks.divergence import F32, F64, log_ratio, mean_of, perplexity
from benchmarks.kernels import machine
from benchmarks.least_error_models import Subject
from benchmarks.least_error_table import markdown
from weightcast.errors import CheckpointError
from weightcast.quant.types import I_TYPES, K_TYPES, SIMPLE_TYPES, TYPES

Quantizer = Callable[[F32, str, "F32 | None"], NDArray[np.uint8]]
GGML = "ggml"
SEARCHES = (GGML, "effort-1", "effort-2", "effort-3")
NAMES = [t.name for t in (*SIMPLE_TYPES, *K_TYPES, *I_TYPES)]
MODELS = ("groklike", "grok", "encoder", "smollm2", "gemma")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a type by a search, of one model."""

    model: str
    type: str
    search: str
    importance: bool

    def path(self, folder: Path, identity: str) -> Path:
        how = "importance" if self.importance else "plain"
        name = f"{self.type}-{self.search.replace(':', '.')}-{how}.npz"
        return folder / self.model / f"cells-{identity}" / name


@dataclass(frozen=True, slots=True)
class Measured:
    """What a cell gave: errors of all weights together, and samples by what they are.

    The weighted error counts each matrix with importance of the mean 1. `blocks` is a digest.
    """

    weights: int
    relative_rms: float
    weighted_relative_rms: float
    mweights_per_s: float
    blocks: str
    samples: dict[str, F64]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unnamed = path.with_name(f"partial-{os.getpid()}-{path.name}")
        numbers = {name: value for name, value in asdict(self).items() if name != "samples"}
        np.savez(unnamed, numbers=json.dumps(numbers), **self.samples)
        unnamed.rename(path)

    @classmethod
    def load(cls, path: Path) -> Measured:
        with np.load(path) as saved:
            arrays = dict(saved)
        return cls(**json.loads(str(arrays.pop("numbers"))), samples=arrays)


def called(name: str, order: int | None) -> str:
    """Name a model by the order of its channels, if that is not the usual one."""
    return name if order is None else f"{name}-order-{order}"


def subject(name: str, folder: Path, grok: Path, order: int | None = None) -> Subject:
    """Give a model, made ready in its folder, with its channels in some order."""
    own = folder / (name if name == "encoder" else called(name, order))
    own.mkdir(parents=True, exist_ok=True)
    if name == "groklike":
        return models.Columns()
    if name == "encoder":
        return models.Encoder(own, order)  # whose files are the same in any order
    if name == "grok":
        model = models.grok(own, grok, order)
    else:
        package, note, windows = models.PACKED[name]
        model = models.language_model(own, package, note, windows, order)
    model.prepare()
    return model


def quantizer(search: str) -> Quantizer:
    """Give the function of a search. Raises click.ClickException if there is none."""
    if ":" in search:
        module, _, name = search.partition(":")
        found: Quantizer = getattr(importlib.import_module(module), name)
        return found
    if search not in SEARCHES:
        raise click.ClickException(f"unknown search {search!r}; use {', '.join(SEARCHES)}")
    options: dict[str, Any] = {}
    if search != GGML:
        options = {"search": "least-error", "effort": int(search.removeprefix("effort-"))}
        if "search" not in inspect.signature(weightcast.quantize).parameters:
            raise click.ClickException("this weightcast has no search for the least error")
    return lambda x, name, importance: weightcast.quantize(x, name, importance, **options)


def cells(
    model: str, types: list[str], searches: list[str], importance: list[bool]
) -> Iterator[Cell]:
    """List what differs: ggml does without importance where it ignores it, or not at all."""
    for name, search, weighed in itertools.product(types, searches, importance):
        how = TYPES[name].importance
        if how == "required" and not weighed:
            continue
        if how == "ignored" and weighed and search == GGML:
            continue
        yield Cell(model, name, search, weighed)


def measure(
    cell: Cell, model: Subject, quantize: Quantizer, kept: Measured | None = None
) -> Measured:
    """Quantize the matrices that fit, and run the model with them, or take the samples kept.

    Those are taken if they are of the same blocks.
    """
    digest = hashlib.sha256()
    values: dict[str, F32] = {}
    errors, squares = np.zeros(2), np.zeros(2)
    seconds = 0.0
    for name, matrix in model.matrices.items():
        if not TYPES[cell.type].fits(matrix.shape[-1]):
            continue
        made = np.empty_like(matrix)
        importance = np.broadcast_to(model.importance[name], (*matrix.shape[:-2], matrix.shape[-1]))
        for index in np.ndindex(matrix.shape[:-2]):
            x, factors = np.ascontiguousarray(matrix[index]), importance[index]
            weights = factors if cell.importance else None
            blocks, took = _quantized(quantize, x, cell.type, weights)
            seconds += took
            digest.update(np.ascontiguousarray(blocks))
            made[index] = weightcast.dequantize(blocks, cell.type)
            relative = factors / factors.mean() if factors.any() else np.ones_like(factors)
            for total, array in ((errors, x - made[index]), (squares, x)):
                per_column = np.square(array, dtype=np.float64).sum(0)
                total += per_column.sum(), per_column @ relative
        values[name] = made
    count = sum(matrix.size for matrix in values.values())
    rms, weighted = np.sqrt(errors / squares)
    speed = count / max(seconds, 1e-9) / 1e6
    blocks_digest = digest.hexdigest()
    same = kept is not None and kept.blocks == blocks_digest
    samples = kept.samples if same else model.measure(values)
    return Measured(count, float(rms), float(weighted), speed, blocks_digest, samples)


def _quantized(
    quantize: Quantizer, x: F32, name: str, importance: F32 | None
) -> tuple[NDArray[np.uint8], float]:
    """Quantize twice; blocks, and seconds of this thread that the faster one took."""
    took = []
    for _ in range(2):
        start = time.thread_time()
        blocks = quantize(x, name, importance)
        took.append(time.thread_time() - start)
    return blocks, min(took)


def summary(cell: Cell, found: Measured, ggml: Measured | None) -> dict[str, Any]:
    """Give a cell's line of the results: means with errors, and differences to ggml's search."""
    line: dict[str, Any] = asdict(cell) | {
        "weights": found.weights,
        "relative_rms": found.relative_rms,
        "weighted_relative_rms": found.weighted_relative_rms,
        "mweights_per_s": found.mweights_per_s,
    }
    for name, samples in found.samples.items():
        line[name] = asdict(mean_of(samples))
        if ggml is not None and cell.search != GGML:
            difference = mean_of(samples - ggml.samples[name])
            line[f"{name}_difference"] = asdict(difference) | {"z": difference.z}
            if name != "loss":
                ratio = log_ratio(samples, ggml.samples[name])
                line[f"{name}_log_ratio"] = asdict(ratio) | {"z": ratio.z}
    if "loss" in found.samples:
        line["perplexity"] = asdict(perplexity(found.samples["loss"]))
    return line


def line_of(cell: Cell, folder: Path, identity: str) -> dict[str, Any]:
    """Give the line of a cell that the folder has, beside ggml's if that is there, too."""
    ggml = cell_of_ggml(cell).path(folder, identity)
    beside = Measured.load(ggml) if ggml.exists() else None
    return summary(cell, Measured.load(cell.path(folder, identity)), beside)


def results(folder: Path, subjects: Mapping[str, Subject]) -> dict[str, Any]:
    """Gather what the folder has of these models, whenever it was measured."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "models": {}}
    for name, model in subjects.items():
        every = cells(name, NAMES, list(SEARCHES), [False, True])
        kept = [cell for cell in every if cell.path(folder, model.identity).exists()]
        reference = model.reference_losses
        found["models"][name] = {
            "note": model.note,
            "weights": sum(matrix.size for matrix in model.matrices.values()),
            "perplexity": asdict(perplexity(reference)) if reference is not None else None,
            "cells": [line_of(cell, folder, model.identity) for cell in kept],
        }
    return found


def cell_of_ggml(cell: Cell) -> Cell:
    """Give the cell of ggml's search that another is held against."""
    weighed = cell.importance and TYPES[cell.type].importance != "ignored"
    return Cell(cell.model, cell.type, GGML, weighed)


def _said(line: Mapping[str, Any]) -> str:
    """Tell of a cell what one looks at first."""
    words = [f"rms {line['relative_rms']:.6f}, weighted {line['weighted_relative_rms']:.6f}"]
    for name in ("divergence", "distance"):
        if name in line:
            words.append(f"{name} {line[name]['value']:.3e} +- {line[name]['error']:.1e}")
        if f"{name}_difference" in line:
            beside, ratio = line[f"{name}_difference"], line[f"{name}_log_ratio"]
            words.append(f"beside ggml {beside['value']:+.2e}, z {beside['z']:+.1f}")
            words.append(f"typically {math.exp(ratio['value']):.3f} of it, z {ratio['z']:+.1f}")
    if "perplexity" in line:
        words.append(f"perplexity {line['perplexity']['value']:.3f}")
    return ", ".join([*words, f"{line['mweights_per_s']:.0f} Mw/s"])


def _split(_context: click.Context, option: click.Parameter, value: str) -> list[str]:
    """Split a list at its commas, and refuse what is not known."""
    known = {"names": MODELS, "types": NAMES}.get(str(option.name))
    found = value.split(",")
    for name in found:
        if known and name not in known:
            raise click.BadParameter(f"unknown: {name!r}; use {', '.join(known)}")
    return found


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="What is kept.")
@click.option("--models", "names", default=",".join(MODELS), callback=_split)
@click.option("--types", default=",".join(NAMES), callback=_split)
@click.option("--searches", default=",".join(SEARCHES), callback=_split)
@click.option("--importance", type=click.Choice(["both", "with", "without"]), default="both")
@click.option("--grok", type=click.Path(path_type=Path), default=models.EXAMPLE, help="Shards.")
@click.option("--order", type=click.IntRange(min=0), help="Put channels in this order first.")
@click.option("--refresh", is_flag=True, help="Measure again what is selected.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(
    folder: Path,
    names: list[str],
    types: list[str],
    searches: list[str],
    importance: str,
    grok: Path,
    order: int | None,
    refresh: bool,
    output: Path | None,
) -> None:
    """Measure what is selected and not there yet, in the order of the models."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies of models are removed
    weighed = {"both": [False, True], "with": [True], "without": [False]}[importance]
    functions = {search: quantizer(search) for search in searches}
    subjects = {}
    for plain_name in names:
        if plain_name == "groklike" and order is not None:
            continue  # drawn columns have no channels
        name = called(plain_name, order)
        subjects[name] = model = subject(plain_name, folder, grok, order)
        for cell in cells(name, types, searches, weighed):
            path = cell.path(folder, model.identity)
            kept = Measured.load(path) if path.exists() else None
            if refresh or kept is None:
                try:
                    measure(cell, model, functions[cell.search], kept).save(path)
                except CheckpointError as problem:
                    click.echo(f"{cell}: {problem}", err=True)
                    continue
            how = "with importance" if cell.importance else "plain"
            line = line_of(cell, folder, model.identity)
            click.echo(f"{name} {cell.type} {cell.search} {how}: {_said(line)}")
    if output:
        report = results(folder, subjects)
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
