"""Describe how tensors are stored: dtypes and bytes."""

from __future__ import annotations

from weightcast.converters.graph.tensor import Tensor
from weightcast.converters.graph.view import View, matrices


def stored_as(tensor: Tensor) -> str:
    """The stored form of a tensor: I8 x BF16[groups], F32, Q8_0; of experts it may be several."""
    return " + ".join(dict.fromkeys(map(_stored_as, matrices(tensor))))


def _stored_as(view: View) -> str:
    if view.scales is None or view.array.packed is not None:
        return view.array.dtype
    return f"{view.array.dtype} x {view.scales.array.dtype}[{view.scales.shape[1]}]"


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in its files, scales included."""
    arrays = set()
    for view in matrices(tensor):
        arrays.add(view.array)
        if view.scales is not None and view.array.packed is None:
            arrays.add(view.scales.array)
    return sum(array.nbytes for array in arrays)
