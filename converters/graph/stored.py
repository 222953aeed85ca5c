"""Describe how tensors are stored: dtypes, bytes, files."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from weightcast.converters.graph.assembly import Assembly, Part
from weightcast.converters.graph.resolve import first_array, matrices, windows
from weightcast.converters.graph.sums import Sum
from weightcast.converters.graph.tensor import Tensor
from weightcast.converters.graph.view import View
from weightcast.formats.array import StoredArray


def stored_as(tensor: Tensor) -> str:
    """Name the stored form of a tensor: I8 x BF16[groups], F32, Q8_0; of parts maybe several."""
    if not tensor.size:
        return first_array(tensor).dtype
    return " + ".join(dict.fromkeys(map(_stored_as, windows(tensor))))


def _stored_as(view: View) -> str:
    if view.scales is None or view.is_packed:
        return view.array.dtype
    return f"{view.array.dtype} x {view.scales.array.dtype}[{view.scales.shape[1]}]"


def stored_files(tensor: Tensor) -> tuple[Path, ...]:
    """List the files that a tensor lies in, those of its scales included."""
    if not tensor.size:
        return (first_array(tensor).path,)
    found: dict[Path, None] = {}
    for view in windows(tensor):
        found[view.path] = None
        if view.array.packed is not None:
            found.update((part.path, None) for part in view.array.packed.parts.values())
        elif view.scales is not None:
            found[view.scales.path] = None
    return tuple(found)


def stored_bytes(tensor: Tensor) -> int:
    """Count the bytes that a tensor takes in its files, scales included.

    Of arrays that hold other tensors too it is the share of its elements.
    """
    elements: Counter[StoredArray] = Counter()
    for matrix in matrices(tensor):
        matrix = matrix.base if isinstance(matrix, Sum) else matrix
        for part in matrix.parts if isinstance(matrix, Assembly) else (Part(matrix),):
            scales = None if part.view.is_packed else part.view.scales
            elements[part.view.array] += prod(part.shape)
            if scales is not None:
                elements[scales.array] += prod(scales.shape)
    return sum(
        min(array.nbytes, array.nbytes * count // prod(array.shape))
        for array, count in elements.items()
    )
