"""Describe how tensors are stored: dtypes and bytes."""

from __future__ import annotations

from weightcast.converters.graph.resolve import windows
from weightcast.converters.graph.tensor import Tensor
from weightcast.converters.graph.view import View


def stored_as(tensor: Tensor) -> str:
    """Name the stored form of a tensor: I8 x BF16[groups], F32, Q8_0; of experts maybe several."""
    return " + ".join(dict.fromkeys(map(_stored_as, windows(tensor))))


def _stored_as(view: View) -> str:
    if view.scales is None or view.is_packed:
        return view.array.dtype
    return f"{view.array.dtype} x {view.scales.array.dtype}[{view.scales.shape[1]}]"


def stored_bytes(tensor: Tensor) -> int:
    """Count the bytes that a tensor takes in its files, scales included."""
    arrays = set()
    for view in windows(tensor):
        arrays.add(view.array)
        if view.scales is not None and not view.is_packed:
            arrays.add(view.scales.array)
    return sum(array.nbytes for array in arrays)
