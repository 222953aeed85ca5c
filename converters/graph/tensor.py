"""The tensor graph: named tensors, each a stored array or an operation on other tensors.

Nothing here reads weights. The same description drives `inspect`, the plan and the forward pass.
All operations but `Quantize` only move or scale elements, so any tensor resolves to matrices of
stored arrays: a start, two strides, and scales (`matrices`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray


@dataclass(frozen=True, slots=True)
class Dequantize:
    """weight int8 [..., in, out] times scales [..., groups, out]; groups run along `in`."""

    weight: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class Transpose:
    """The last two axes exchanged."""

    source: Tensor


@dataclass(frozen=True, slots=True)
class Take:
    """One entry of the first axis: an expert."""

    source: Tensor
    index: int


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors of one shape along a new first axis."""

    sources: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Quantize:
    """The source in another type, blocks along the last axis; plain floats are types too."""

    source: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """All of a row-major tensor as one matrix, in rows of `length` elements."""

    source: Tensor
    length: int


Operation = Dequantize | Transpose | Take | Stack | Quantize | Rows


@dataclass(frozen=True, slots=True)
class Tensor:
    """A name, a row-major shape, a dtype or type name, and where the values come from."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    origin: StoredArray | Operation

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def describe(self) -> dict[str, Any]:
        """The tensor and all it comes from, as JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "origin": _describe_origin(self.origin),
        }


def _describe_origin(origin: StoredArray | Operation) -> dict[str, Any]:
    if isinstance(origin, StoredArray):
        return _describe_stored(origin)
    described: dict[str, Any] = {"operation": type(origin).__name__.lower()}
    if isinstance(origin, Dequantize):
        described["sources"] = [origin.weight.describe(), origin.scales.describe()]
    elif isinstance(origin, Stack):
        described["sources"] = [source.describe() for source in origin.sources]
    else:
        described["sources"] = [origin.source.describe()]
        if isinstance(origin, Take):
            described["index"] = origin.index
        if isinstance(origin, Rows):
            described["length"] = origin.length
    return described


def _describe_stored(array: StoredArray) -> dict[str, Any]:
    described: dict[str, Any] = {
        "file": array.path.name,
        "offset": array.offset,
        "nbytes": array.nbytes,
    }
    if array.packed is not None:
        matrix = array.packed.matrix
        described["layout"] = matrix.layout
        described["parts"] = {s: _describe_stored(part) for s, part in matrix.parts.items()}
    return described


def stored(name: str, array: StoredArray) -> Tensor:
    return Tensor(name, array.shape, array.dtype, array)


def dequantized(name: str, weight: StoredArray, scales: StoredArray) -> Tensor:
    """int8 weight times its scales. Raises LayoutError if they do not fit each other."""
    if weight.dtype != "I8" or scales.dtype not in ("BF16", "F16", "F32"):
        raise LayoutError(
            f"{weight.path}: {name}: weight {weight.dtype} with scales {scales.dtype}, "
            "expected I8 with BF16"
        )
    fits = (
        len(weight.shape) == len(scales.shape) >= 2
        and weight.shape[:-2] == scales.shape[:-2]
        and weight.shape[-1] == scales.shape[-1]
        and scales.shape[-2] > 0
        and weight.shape[-2] % scales.shape[-2] == 0
    )
    if not fits:
        raise LayoutError(
            f"{weight.path}: {name}: scales of shape {list(scales.shape)} do not fit a weight of "
            f"shape {list(weight.shape)} (expected [..., groups, out] for [..., in, out])"
        )
    origin = Dequantize(stored(f"{name}.weight", weight), stored(f"{name}.scales", scales))
    return Tensor(name, weight.shape, "F32", origin)


def transposed(source: Tensor) -> Tensor:
    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return Tensor(source.name, shape, source.dtype, Transpose(source))


def take(source: Tensor, index: int) -> Tensor:
    name = f"{source.name}[{index}]"
    dtype = source.dtype
    if isinstance(source.origin, Stack):
        dtype = source.origin.sources[index].dtype
    return Tensor(name, source.shape[1:], dtype, Take(source, index))


def stacked(name: str, sources: tuple[Tensor, ...]) -> Tensor:
    """Tensors of one shape as one with another axis; they can be stored in different ways."""
    first = sources[0]
    for source in sources:
        if source.shape != first.shape:
            raise LayoutError(
                f"{source.name} is {list(source.shape)}, but {first.name} is {list(first.shape)}"
            )
    dtype = " + ".join(dict.fromkeys(source.dtype for source in sources))
    return Tensor(name, (len(sources), *first.shape), dtype, Stack(sources))


def quantized(name: str, source: Tensor, type_name: str) -> Tensor:
    return Tensor(name, source.shape, type_name, Quantize(source))
