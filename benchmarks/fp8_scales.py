#!/usr/bin/env python3
"""Measure what scales of least error gain for floats of 8 bits, and what they cost.

Matrices of a safetensors file (those of an encoder's or decoder's layers), and drawn ones of 1024 x
2048: Gaussian, and Student's t with 4 degrees of freedom. Gains are of the summed squares, plain
or weighted by an importance that rises from 0 to 4 with the square of the column. Speed is that of
the fastest of three runs on one core, of the drawn Gaussian matrix.

    .venv/bin/python -m benchmarks.fp8_scales model.safetensors > benchmarks/results/fp8-scales.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from math import log10
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import weightcast
from weightcast.quant.search import EFFORTS

TYPES: Final = ("fp8", "fp8-block", "fp8-tensor")
Matrices = Sequence[NDArray[np.float32]]


def drawn(draw: Callable[[tuple[int, int]], NDArray[np.float64]]) -> Matrices:
    return [draw((1024, 2048)).astype(np.float32)]


def of_file(path: Path) -> Matrices:
    """Take the matrices of layers, in order."""
    tensors = load_file(path)
    names = sorted(name for name in tensors if ".layer" in name and tensors[name].ndim == 2)
    return [np.asarray(tensors[name], np.float32) for name in names]


def error(matrices: Matrices, name: str, effort: int | None, *, weighted: bool) -> float:
    """Sum the squared errors of matrices; by the plain rule without an effort."""
    total = 0.0
    search = "ggml" if effort is None else "least-error"
    for x in matrices:
        importance = None if not weighted else np.linspace(0, 2, x.shape[1], dtype=np.float32) ** 2
        made = weightcast.quantize(x, name, importance, search=search, effort=effort)
        found = weightcast.measure(x, made, importance=importance).total()
        total += float(found.weighted_error_squares if weighted else found.error_squares)
    return total


def speed(x: NDArray[np.float32], name: str, effort: int | None) -> float:
    """Measure weights a second."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        search = "ggml" if effort is None else "least-error"
        weightcast.quantize(x, name, search=search, effort=effort)
        seconds.append(time.perf_counter() - start)
    return x.size / min(seconds)


def main() -> None:
    """Print a table in Markdown."""
    rng = np.random.default_rng(0)
    data = {
        "Gaussian": drawn(rng.standard_normal),
        "Student's t, 4": drawn(lambda shape: rng.standard_t(4, shape)),
        **{Path(path).parent.name: of_file(Path(path)) for path in sys.argv[1:]},
    }
    print(f"# Scales of least error for floats of 8 bits, {date.today().isoformat()}\n")
    print((__doc__ or "").split("\n\n")[1].replace("\n", " ") + "\n")
    head = " | ".join(f"effort {effort}" for effort in EFFORTS)
    print(f"| type | weights | squares | {head} |")
    print(f"| --- | --- | --- |{' ---: |' * len(EFFORTS)}")
    for name in TYPES:
        for label, matrices in data.items():
            for weighted in (False, True):
                plain = error(matrices, name, None, weighted=weighted)
                gains = (
                    10 * log10(plain / error(matrices, name, effort, weighted=weighted))
                    for effort in EFFORTS
                )
                cells = " | ".join(f"{gain:.3f} dB" for gain in gains)
                print(f"| {name} | {label} | {'weighted' if weighted else 'plain'} | {cells} |")
    print(f"\n| million weights a second | plain rule | {head} |")
    print(f"| --- | ---: |{' ---: |' * len(EFFORTS)}")
    for name in TYPES:
        speeds = (speed(data["Gaussian"][0], name, effort) for effort in (None, *EFFORTS))
        print(f"| {name} | {' | '.join(f'{each / 1e6:.2f}' for each in speeds)} |")


if __name__ == "__main__":
    main()
