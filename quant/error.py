"""Errors of quantized weights: sums over rows, what follows from them, and how they add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.errors import LayoutError
from weightcast.quant.types import F32, QuantType

# weightcast_moments in kernels/weightcast.h, which says what each is.
MOMENTS: Final = np.dtype(
    [
        ("error_squares", np.float64),
        ("source_squares", np.float64),
        ("output_squares", np.float64),
        ("products", np.float64),
        ("errors", np.float64),
        ("largest", np.float64),
        ("largest_in", np.int64),
        ("exact", np.int64),
        ("zeroed_blocks", np.int64),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """What the values y of some blocks differ by from the weights x that they were made of.

    All fields are arrays of one shape, with an entry for each row, or numbers for all rows
    together (`total`); so are the metrics. An error y - x that is NaN or infinite, as those of a
    block with an infinite scale are, makes `error_squares`, `largest` and `relative_rms` infinite,
    `sqnr_db` minus infinity, and `cosine` and `mean_error` infinite or NaN.
    """

    rows: NDArray[np.int64]  # that an entry is about
    weights: NDArray[np.int64]
    blocks: NDArray[np.int64]
    error_squares: NDArray[np.float64]  # sum of (y - x)^2
    source_squares: NDArray[np.float64]  # sum of x^2
    output_squares: NDArray[np.float64]  # sum of y^2
    products: NDArray[np.float64]  # sum of x * y
    errors: NDArray[np.float64]  # sum of y - x
    largest: NDArray[np.float64]  # largest |y - x|
    largest_row: NDArray[np.int64]  # the first that has it, of the rows of the entry,
    largest_in: NDArray[np.int64]  # and the first place in it; 0 and 0 if there is no error
    exact: NDArray[np.int64]  # weights with y == x
    zeroed_blocks: NDArray[np.int64]  # all y 0, some x not; plain floats are blocks of one

    @property
    def relative_rms(self) -> NDArray[np.float64]:
        """Root of the mean square error over that of the weights; of zeros, 0 or infinity."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(self.error_squares / self.source_squares)
        return np.where(self.error_squares == 0, 0.0, ratio)[()]

    @property
    def sqnr_db(self) -> NDArray[np.float64]:
        """Signal to quantization noise ratio in decibels; infinite where there is no error."""
        with np.errstate(divide="ignore"):
            return -20 * np.log10(self.relative_rms)

    @property
    def cosine(self) -> NDArray[np.float64]:
        """Cosine similarity of x and y: 1 if both are all zeros, 0 if one is."""
        size = np.sqrt(self.source_squares) * np.sqrt(self.output_squares)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.clip(self.products / size, -1, 1)
        both = (self.source_squares == 0) & (self.output_squares == 0)
        return np.where(size == 0, np.where(both, 1.0, 0.0), cosine)[()]

    @property
    def mean_error(self) -> NDArray[np.float64]:
        """Mean of y - x: whether weights grow or shrink on the whole; 0 of no weights."""
        return self.errors / np.maximum(self.weights, 1)

    @property
    def share_exact(self) -> NDArray[np.float64]:
        """Share of weights that are kept as they were; 0 of no weights."""
        return self.exact / np.maximum(self.weights, 1)

    @property
    def share_zeroed(self) -> NDArray[np.float64]:
        """Share of blocks that became all zeros; 0 of no blocks."""
        return self.zeroed_blocks / np.maximum(self.blocks, 1)

    def __getitem__(self, index: Any) -> Errors:
        """Take an entry, or some of them, as from an array."""
        return Errors(*(getattr(self, field.name)[index] for field in fields(self)))

    def total(self) -> Errors:
        """Add all entries in order, to numbers: of a matrix, from those of its rows."""
        flat = {field.name: np.ravel(getattr(self, field.name)) for field in fields(self)}
        # np.sum adds in an order of its own.
        sums = {
            name: np.cumsum(values)[-1] if values.size else values.dtype.type(0)
            for name, values in flat.items()
        }
        if flat["rows"].size:
            worst = int(np.argmax(flat["largest"]))
            before = np.sum(flat["rows"][:worst])
            sums["largest"] = flat["largest"][worst]
            sums["largest_row"] = before + flat["largest_row"][worst]
            sums["largest_in"] = flat["largest_in"][worst]
        return Errors(**sums)


def of_moments(moments: NDArray[np.void], quant_type: QuantType, n_in: int) -> Errors:
    """Describe rows of n_in weights by their MOMENTS [...]."""
    shape = moments.shape
    return Errors(
        rows=np.ones(shape, np.int64),
        weights=np.full(shape, n_in, np.int64),
        blocks=np.full(shape, n_in // quant_type.block_elements, np.int64),
        largest_row=np.zeros(shape, np.int64),
        **{name: moments[name] for name in MOMENTS.fields or ()},
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
    joined = [of_moments(np.zeros(0, MOMENTS), F32, 0), *parts]
    return Errors(
        *(
            np.concatenate([np.ravel(getattr(part, field.name)) for part in joined])
            for field in fields(Errors)
        )
    )
