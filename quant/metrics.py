"""Errors of quantized weights: sums over rows, the metrics derived from them, and merging."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.quant.types import QuantType

ERROR_BINS: Final = 32
# weightcast_moments; kernels/weightcast.h defines each field.
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
    """The values that errors are measured against: stored exactly, or rounded to bfloat16."""

    STORED = 0
    BF16 = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Errors:
    """Errors y - x of values y that were made from weights x.

    All fields and metrics are arrays of one shape, with an entry for each row, or numbers for all
    rows together (`total`). The histogram has one more axis. An error that is NaN or infinite, as
    in a block with an infinite scale, makes `error_squares`, `largest` and `relative_rms` infinite,
    `sqnr_db` minus infinity, and `cosine` and `mean_error` infinite or NaN. Where `measure` was
    given no importance, what is weighted by it is NaN.

    Sums are `error_squares` of (y - x)^2, `source_squares` of x^2, `cross` of x (y - x), `errors`
    of y - x; `weighted_error_squares` and `weighted_source_squares` are the first two by
    importance. `histogram` counts runs by their error (docs/report.schema.json). `rows` and
    `weights` count those of an entry, `runs` its runs of 32 weights along a row: of these
    `zeroed_runs` became all zeros and were not, and in `clipped_runs` the largest magnitude fell
    below 7/8. `exact` counts weights with y == x. `largest_square` is the largest (y - x)^2, first
    found in row `largest_row` of the entry and column `largest_in`.

    >>> weights = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    >>> errors = weightcast.measure(weights, weightcast.quantize(weights, "Q4_K"), "Q4_K")
    >>> errors
    <Errors of [4] entries, 1,024 weights: relative RMS 0.0699, SQNR 23.10 dB>
    >>> int(errors.relative_rms.argmax())  # the row that lost most
    2
    """

    rows: NDArray[np.int64]  # in an entry
    weights: NDArray[np.int64]
    runs: NDArray[np.int64]  # of 32 weights along a row, from its start
    error_squares: NDArray[np.float64]  # sum of (y - x)^2
    source_squares: NDArray[np.float64]  # sum of x^2
    cross: NDArray[np.float64]  # sum of x * (y - x)
    errors: NDArray[np.float64]  # sum of y - x
    weighted_error_squares: NDArray[np.float64]  # with the importance of each weight
    weighted_source_squares: NDArray[np.float64]
    largest_square: NDArray[np.float64]  # largest (y - x)^2
    largest_row: NDArray[np.int64]  # the first row of the entry that has it,
    largest_in: NDArray[np.int64]  # and the first column there; 0 and 0 if there is no error
    exact: NDArray[np.int64]  # weights with y == x
    zeroed_runs: NDArray[np.int64]  # all y 0, some x not
    clipped_runs: NDArray[np.int64]  # largest |y|, not 0, below 7/8 of the largest |x|
    histogram: NDArray[np.int64]  # [..., 32] of runs by their error, as in docs/report.schema.json

    @property
    def relative_rms(self) -> NDArray[np.float64]:
        """Divide the root mean square error by that of the weights; for zeros, 0 or infinity."""
        return _relative_rms(self.error_squares, self.source_squares)

    @property
    def sqnr_db(self) -> NDArray[np.float64]:
        """Give the signal to quantization noise ratio in decibels; infinite without an error."""
        return _decibels(self.relative_rms)

    @property
    def weighted_relative_rms(self) -> NDArray[np.float64]:
        """Do as `relative_rms`, with squares weighted by the importance of their columns."""
        return _relative_rms(self.weighted_error_squares, self.weighted_source_squares)

    @property
    def weighted_sqnr_db(self) -> NDArray[np.float64]:
        """Do as `sqnr_db`, with squares weighted by the importance of their columns."""
        return _decibels(self.weighted_relative_rms)

    @property
    def output_squares(self) -> NDArray[np.float64]:
        """Sum y^2."""
        return np.maximum(self.source_squares + 2 * self.cross + self.error_squares, 0.0)

    @property
    def cosine(self) -> NDArray[np.float64]:
        """Give the cosine similarity of x and y: 1 if both are all zeros, 0 if one is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            output_squares = self.output_squares
            size = np.sqrt(self.source_squares) * np.sqrt(output_squares)
            cosine = np.clip((self.source_squares + self.cross) / size, -1, 1)
        both = (self.source_squares == 0) & (output_squares == 0)
        return np.where(size == 0, np.where(both, 1.0, 0.0), cosine)[()]

    @property
    def mean_error(self) -> NDArray[np.float64]:
        """Average y - x, the bias of the weights; 0 without weights."""
        return self.errors / np.maximum(self.weights, 1)

    @property
    def largest(self) -> NDArray[np.float64]:
        """Give the largest |y - x|."""
        return np.sqrt(self.largest_square)

    @property
    def share_exact(self) -> NDArray[np.float64]:
        """Give the share of weights that are unchanged; 0 without weights."""
        return self.exact / np.maximum(self.weights, 1)

    @property
    def share_zeroed(self) -> NDArray[np.float64]:
        """Give the share of runs that became all zeros; 0 without runs."""
        return self.zeroed_runs / np.maximum(self.runs, 1)

    @property
    def share_clipped(self) -> NDArray[np.float64]:
        """Give the share of runs whose largest magnitude shrank by over 1/8; 0 without runs."""
        return self.clipped_runs / np.maximum(self.runs, 1)

    def __repr__(self) -> str:
        of_all = self.total()
        rows = "" if np.ndim(self.rows) == 0 else f" {list(np.shape(self.rows))} entries,"
        found = f"relative RMS {of_all.relative_rms:.3g}, SQNR {of_all.sqnr_db:.2f} dB"
        return f"<Errors of{rows} {int(of_all.weights):,} weights: {found}>"

    def __getitem__(self, index: Any) -> Errors:
        """Index or slice the entries, like an array."""
        return Errors(*(getattr(self, field.name)[index] for field in fields(self)))

    def times(self, factor: float) -> Errors:
        """Give the errors of the same weights, x and y, both multiplied by a factor."""
        if factor == 1:
            return self
        scaled = {name: getattr(self, name) * factor * factor for name in _SQUARES}
        return replace(self, errors=self.errors * factor, **scaled)

    def total(self) -> Errors:
        """Sum all entries in order: the rows of a matrix to numbers for the matrix."""
        histogram = self.histogram.reshape(-1, ERROR_BINS)
        flat = {name: np.ravel(getattr(self, name)) for name in _NUMBERS}
        # np.sum adds in an order of its own, cumsum from first to last.
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


# Fields with one number for each entry.
_NUMBERS: Final = tuple(field.name for field in fields(Errors) if field.name != "histogram")
# Fields that grow with the square of the weights.
_SQUARES: Final = (
    *("error_squares", "source_squares", "cross", "largest_square"),
    *("weighted_error_squares", "weighted_source_squares"),
)


def _relative_rms(
    error_squares: NDArray[np.float64], source_squares: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(error_squares / source_squares)
    return np.where(error_squares == 0, 0.0, ratio)[()]


def _decibels(relative_rms: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return 0.0 - 20 * np.log10(relative_rms)  # not -0.0


def of_moments(moments: NDArray[np.void], n_in: int, *, is_weighted: bool = True) -> Errors:
    """Turn MOMENTS [...] of rows of n_in weights into errors.

    If they are not weighted, what has to do with importance is NaN.
    """
    shape = moments.shape
    if not is_weighted:
        moments = moments.copy()
        moments["weighted_error_squares"] = moments["weighted_source_squares"] = np.nan
    return Errors(
        rows=np.ones(shape, np.int64),
        weights=np.full(shape, n_in, np.int64),
        runs=np.full(shape, -(-n_in // RUN), np.int64),
        largest_row=np.zeros(shape, np.int64),
        histogram=moments["histogram"].astype(np.int64),
        **{name: moments[name] for name in MOMENTS.names or () if name != "histogram"},
    )


def check_bytes(
    is_uint8: bool, dtype: object, shape: tuple[int, ...], quant_type: QuantType
) -> None:
    """Check that blocks of a type are rows of bytes. Raises LayoutError."""
    if not is_uint8 or not shape:
        raise LayoutError(
            f"blocks of {quant_type.name} are uint8 [..., bytes per row], not {dtype} {list(shape)}"
        )


def check_rows(weights: tuple[int, ...], rows: tuple[int, ...], quant_type: QuantType) -> None:
    """Check the shape of rows of bytes for weights [..., in]. Raises LayoutError."""
    wanted = (*weights[:-1], quant_type.row_bytes(weights[-1]))
    if rows != wanted:
        raise LayoutError(
            f"rows of shape {list(rows)} for weights of {list(weights)}: {quant_type.name} has "
            f"{list(wanted)}"
        )


def merged(parts: Iterable[Errors]) -> Errors:
    """Concatenate the errors of matrices or slabs, in order, into one with all entries [n].

    `total` numbers rows through all parts. Totals of the same rows have the same bits however the
    rows were cut into parts, provided that rows are merged, not totals.
    """
    joined = [of_moments(np.zeros(0, MOMENTS), 0), *parts]
    numbers = {
        name: np.concatenate([np.ravel(getattr(part, name)) for part in joined])
        for name in _NUMBERS
    }
    histograms = [part.histogram.reshape(-1, ERROR_BINS) for part in joined]
    return Errors(**numbers, histogram=np.concatenate(histograms))
