#!/usr/bin/env python3
"""Measure the SQNR of every type on Gaussian weights, as `converters/report/typical.py` has it.

    .venv/bin/python -m benchmarks.typical_sqnr

Weights are those of `gaussian`, whose spread makes no difference; types that need an importance
matrix get one in which all columns count the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.arrays import measure, quantize
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.groups import quantize_and_measure_groups
from weightcast.quant.types import TYPES, GroupType

ROWS, COLUMNS = 256, 4096
GROUP_SIZES = (32, 64, 128, 256, 0)


def gaussian(rows: int = ROWS) -> NDArray[np.float32]:
    """Make weights [rows, 4096] with a spread of 0.02."""
    chance = np.random.default_rng(0)
    return chance.standard_normal((rows, COLUMNS), np.float32) * np.float32(0.02)


def sqnr_db(label: str, weights: NDArray[np.float32]) -> float:
    """Quantize weights to a type of GGUF, or to integers in groups, and measure the SQNR in dB."""
    quant_type = TYPES.get(label)
    if quant_type is not None:
        is_needed = quant_type.importance == "required"
        importance = np.ones(COLUMNS, np.float32) if is_needed else None
        errors = measure(weights, quantize(weights, label, importance), label)
    else:
        matrix = Matrix(weights.reshape(-1), "F32", *weights.shape, COLUMNS, 1)
        errors = quantize_and_measure_groups(matrix, GROUP_TYPES[label])[1]
    return float(errors.total().sqnr_db)


GROUP_TYPES = {
    made.label: made
    for bits in (4, 8)
    for size in GROUP_SIZES
    for symmetric in (True, False)
    for made in (GroupType(bits, size, symmetric),)
}


def main() -> None:
    """Print a line for each type that loses something."""
    weights = gaussian()
    for label in (*TYPES, *GROUP_TYPES):
        if label != "F32":
            print(f'    "{label}": {sqnr_db(label, weights):.1f},')


if __name__ == "__main__":
    main()
