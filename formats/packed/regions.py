"""Some rows of a packed matrix: read from regions of its parts, or back from segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.coding import CodedRows
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    MatrixLayout,
    MatrixShape,
    Part,
    Segment,
)
from weightcast.quant.types import WeightType

ReadRegion = Callable[[Part, tuple[slice, ...]], NDArray[Any]]


def unpack_rows(
    layout: MatrixLayout[Any, CodedRows],
    read: ReadRegion,
    shape: MatrixShape[WeightType],
    row0: int,
    row1: int,
) -> CodedRows:
    """Read rows [row0, row1) of a matrix; `read` gives a region of a part.

    Rows start and end at multiples of `rows_each` of all parts, or at the end. Raises LayoutError
    or MissingTensorError if what `read` gives is not right.
    """
    wanted, own = layout.parts(shape), shape.of_rows(row1 - row0)
    multiple = max(part.rows_each for part in wanted)
    if row0 % multiple or (row1 % multiple and row1 != shape.n_out):
        raise LayoutError(f"rows {row0} to {row1}: {multiple} of {layout.name} are read at a time")
    constants, own_constants = layout.constants(shape), layout.constants(own)
    arrays = {}
    for part in wanted:
        each = part.rows_each
        rows = slice(row0 // each, -(-row1 // each))
        region = tuple(
            rows if axis == part.out_axis else slice(0, size)
            for axis, size in enumerate(part.shape)
        )
        array = read(part, region)
        if part.out_axis is None and array.tobytes() == constants.get(part.suffix):
            # Of the rows alone it would say something else: the shape of the matrix.
            array = np.frombuffer(own_constants[part.suffix], NUMPY_DTYPES[part.dtype])
        arrays[part.suffix] = array
    return layout.unpack(arrays, own)


def rows_in_segments(
    layout: MatrixLayout[Any, CodedRows],
    segments: Iterable[Segment],
    shape: MatrixShape[WeightType],
    row0: int,
    row1: int,
) -> CodedRows:
    """Read rows [row0, row1) of a matrix from their segments, as a reader does from a file.

    Raises LayoutError if a segment is not where a reader looks for these rows.
    """
    made = {segment.suffix: segment for segment in segments}
    constants = layout.constants(shape)

    def read(part: Part, region: tuple[slice, ...]) -> NDArray[Any]:
        dtype = NUMPY_DTYPES[part.dtype]
        if part.suffix not in made:
            whole = np.frombuffer(constants[part.suffix], dtype)
            return whole.reshape(part.shape)[region]
        segment = made[part.suffix]
        lengths = [run.stop - run.start for run in region]
        row_bytes = dtype.itemsize * prod(part.shape[1:])
        first = region[0].start * row_bytes
        if len(region) > 1:
            first += region[1].start * dtype.itemsize
        one_run = len(segment.data) == 1
        if segment.offset != first or not (one_run or segment.stride == row_bytes):
            raise LayoutError(f"{part.suffix} of rows {row0} to {row1} is not where it belongs")
        found = segment.data.view(dtype)  # where it lies: runs need not follow each other
        return found.reshape(lengths) if one_run else found

    return unpack_rows(layout, read, shape, row0, row1)
