"""Errors of quantized weights: sums over rows, what follows from them, and how they add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.types import QuantType

# weightcast_moments in kernels/weightcast.h, which says what each is.
ERROR_BINS: Final = 32
MOMENTS: Final = np.dtype(
    [
        ("error_squares", np.float64),
        ("source_squares", np.float64),
        ("cross", np.float64),
        ("errors", np.float64),
        ("weighted_error_squares", np.float64),
        ("weighted_source_squares", np.float64),
        ("largest_square", np.float64),
        ("largest_in", np.int64),
        ("exact", np.int64),
        ("zeroed_runs", np.int64),
        ("clipped_runs", np.int64),
        ("histogram", np.int32, (ERROR_BINS,)),
    ]
)
RUN: Final = 32  # weights along `in`


class Baseline(Enum):
    """What x is: values as they are stored, exactly, or these rounded to bfloat16."""

    STORED = 0
    BF16 = 1


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """What some values y differ by from the weights x that they were made of.

    All fields are arrays of one shape, with an entry for each row, or numbers for all rows
    together (`total`); so are the metrics. The histogram has one axis more. An error y - x that is
    NaN or infinite, as those of a block with an infinite scale are, makes `error_squares`,
    `largest` and `relative_rms` infinite, `sqnr_db` minus infinity, and `cosine` and `mean_error`
    infinite or NaN.
    """

    rows: NDArray[np.int64]  # that an entry is about
    weights: NDArray[np.int64]
    runs: NDArray[np.int64]  # of 32 weights along a row, from its start on
    error_squares: NDArray[np.float64]  # sum of (y - x)^2
    source_squares: NDArray[np.float64]  # sum of x^2
    cross: NDArray[np.float64]  # sum of x * (y - x)
    errors: NDArray[np.float64]  # sum of y - x
    weighted_error_squares: NDArray[np.float64]  # with the importance of each weight; 0 without
    weighted_source_squares: NDArray[np.float64]
    largest_square: NDArray[np.float64]  # largest (y - x)^2
    largest_row: NDArray[np.int64]  # the first that has it, of the rows of the entry,
    largest_in: NDArray[np.int64]  # and the first place in it; 0 and 0 if there is no error
    exact: NDArray[np.int64]  # weights with y == x
    zeroed_runs: NDArray[np.int64]  # all y 0, some x not
    clipped_runs: NDArray[np.int64]  # largest |y|, not 0, below 7/8 of the largest |x|
    histogram: NDArray[np.int64]  # [..., 32] of runs by their error, as in docs/report.schema.json

    @property
    def relative_rms(self) -> NDArray[np.float64]:
        """Root of the mean square error over that of the weights; of zeros, 0 or infinity."""
        return _relative_rms(self.error_squares, self.source_squares)

    @property
    def sqnr_db(self) -> NDArray[np.float64]:
        """Signal to quantization noise ratio in decibels; infinite where there is no error."""
        return _decibels(self.relative_rms)

    @property
    def weighted_relative_rms(self) -> NDArray[np.float64]:
        """The same with squares weighed by the importance of their columns."""
        return _relative_rms(self.weighted_error_squares, self.weighted_source_squares)

    @property
    def weighted_sqnr_db(self) -> NDArray[np.float64]:
        """The same with squares weighed by the importance of their columns."""
        return _decibels(self.weighted_relative_rms)

    @property
    def output_squares(self) -> NDArray[np.float64]:
        """Sum of y^2."""
        return np.maximum(self.source_squares + 2 * self.cross + self.error_squares, 0.0)

    @property
    def cosine(self) -> NDArray[np.float64]:
        """Cosine similarity of x and y: 1 if both are all zeros, 0 if one is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            output_squares = self.output_squares
            size = np.sqrt(self.source_squares) * np.sqrt(output_squares)
            cosine = np.clip((self.source_squares + self.cross) / size, -1, 1)
        both = (self.source_squares == 0) & (output_squares == 0)
        return np.where(size == 0, np.where(both, 1.0, 0.0), cosine)[()]

    @property
    def mean_error(self) -> NDArray[np.float64]:
        """Mean of y - x: whether weights grow or shrink on the whole; 0 of no weights."""
        return self.errors / np.maximum(self.weights, 1)

    @property
    def largest(self) -> NDArray[np.float64]:
        """Largest |y - x|."""
        return np.sqrt(self.largest_square)

    @property
    def share_exact(self) -> NDArray[np.float64]:
        """Share of weights that are kept as they were; 0 of no weights."""
        return self.exact / np.maximum(self.weights, 1)

    @property
    def share_zeroed(self) -> NDArray[np.float64]:
        """Share of runs that became all zeros; 0 of no runs."""
        return self.zeroed_runs / np.maximum(self.runs, 1)

    @property
    def share_clipped(self) -> NDArray[np.float64]:
        """Share of runs whose largest magnitude shrank by more than an eighth; 0 of no runs."""
        return self.clipped_runs / np.maximum(self.runs, 1)

    def __getitem__(self, index: Any) -> Errors:
        """Take an entry, or some of them, as from an array."""
        return Errors(*(getattr(self, field.name)[index] for field in fields(self)))

    def total(self) -> Errors:
        """Add all entries in order, to numbers: of a matrix, from those of its rows."""
        histogram = self.histogram.reshape(-1, ERROR_BINS)
        flat = {name: np.ravel(getattr(self, name)) for name in _NUMBERS}
        # np.sum adds in an order of its own.
        sums = {
            name: np.cumsum(values)[-1] if values.size else values.dtype.type(0)
            for name, values in flat.items()
        }
        if flat["rows"].size:
            worst = int(np.argmax(flat["largest_square"]))
            before = np.sum(flat["rows"][:worst])
            sums["largest_square"] = flat["largest_square"][worst]
            sums["largest_row"] = before + flat["largest_row"][worst]
            sums["largest_in"] = flat["largest_in"][worst]
        return Errors(**sums, histogram=histogram.sum(axis=0))


# Of an entry; the histogram is an array.
_NUMBERS: Final = tuple(field.name for field in fields(Errors) if field.name != "histogram")


def _relative_rms(
    error_squares: NDArray[np.float64], source_squares: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(error_squares / source_squares)
    return np.where(error_squares == 0, 0.0, ratio)[()]


def _decibels(relative_rms: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return 0.0 - 20 * np.log10(relative_rms)  # not -0.0


def of_moments(moments: NDArray[np.void], n_in: int) -> Errors:
    """Describe rows of n_in weights by their MOMENTS [...]."""
    shape = moments.shape
    return Errors(
        rows=np.ones(shape, np.int64),
        weights=np.full(shape, n_in, np.int64),
        runs=np.full(shape, -(-n_in // RUN), np.int64),
        largest_row=np.zeros(shape, np.int64),
        histogram=moments["histogram"].astype(np.int64),
        **{name: moments[name] for name in MOMENTS.names or () if name != "histogram"},
    )


def check_rows(weights: tuple[int, ...], rows: tuple[int, ...], quant_type: QuantType) -> None:
    """Raise LayoutError unless rows of bytes are what weights [..., in] become."""
    wanted = (*weights[:-1], quant_type.row_bytes(weights[-1]))
    if rows != wanted:
        raise LayoutError(
            f"rows of shape {list(rows)} for weights of {list(weights)}: {quant_type.name} has "
            f"{list(wanted)}"
        )


def merged(parts: Iterable[Errors]) -> Errors:
    """Join errors of several matrices or slabs, in order, to one with all their entries [n].

    `total` counts rows through all of them. Totals of the same rows have the same bits however
    they were cut into parts, if it is rows that are merged and not totals.
    """
    joined = [of_moments(np.zeros(0, MOMENTS), 0), *parts]
    numbers = {
        name: np.concatenate([np.ravel(getattr(part, name)) for part in joined])
        for name in _NUMBERS
    }
    histograms = [part.histogram.reshape(-1, ERROR_BINS) for part in joined]
    return Errors(**numbers, histogram=np.concatenate(histograms))
