"""The tensor graph: named tensors, each a stored array or an operation on other tensors.

Nothing here reads weights. The same description drives `inspect`, the plan and the forward pass.
All operations but `Quantize`, `Affine` and `AddLowRank` only move or scale elements.
`resolve.matrices` turns any tensor into windows on stored arrays.

Shapes are row-major, matrices [..., out, in]. Axes count from 0; negative ones from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite, prod
from typing import Any, Final

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray, rounded_float32


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
class Permute:
    """The axes in another order: axis n is axis `axes[n]` of the source."""

    source: Tensor
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshape:
    """The elements in the same row-major order under the shape of this tensor."""

    source: Tensor


@dataclass(frozen=True, slots=True)
class Take:
    """One entry of an axis, which is gone then: an expert, a layer, a part of a fused tensor."""

    source: Tensor
    index: int
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Entries start, start + step, ... before `stop` of an axis."""

    source: Tensor
    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors of one shape along a new first axis."""

    sources: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Tensors one after another along an axis; their other axes are alike."""

    sources: tuple[Tensor, ...]
    axis: int


@dataclass(frozen=True, slots=True)
class Affine:
    """y = x * scale + shift, elementwise.

    The constants are float32. Both operations are done in float32, each rounded to nearest even,
    and not fused; a scale of 1 and a shift of 0 are left out, so -0 stays -0. Whatever is made of
    y rounds once more, to its own type. A scale that is a power of two is exact unless the product
    is subnormal or overflows.
    """

    source: Tensor
    scale: float
    shift: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """The source times a factor that is stored beside it: one for all, or one for each entry.

    Of several factors each is that of an entry of the first axis, of an expert. They are float32,
    and so is the product, rounded to nearest even, as in llama.cpp. What is stored stays the source
    alone: its blocks can be copied, with the factor beside them.
    """

    source: Tensor
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AddLowRank:
    """source [..., out, in] + the sum of each multiplier * b [..., out, rank] @ a [..., rank, in].

    All in float32, each step rounded to nearest even: products are summed in the order of the rank,
    the sum is multiplied, and added; one term after another. So the result depends on nothing else.
    """

    source: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    multipliers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Quantize:
    """The source in another type, blocks along the last axis; plain floats are types too."""

    source: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """All of a row-major tensor as one matrix, in rows of `length` elements."""

    source: Tensor
    length: int


Operation = (
    Dequantize
    | Transpose
    | Permute
    | Reshape
    | Take
    | Slice
    | Stack
    | Concat
    | Affine
    | Scaled
    | AddLowRank
    | Quantize
    | Rows
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A name, a row-major shape, a dtype or type name, and where the values come from."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    origin: StoredArray | Operation

    def __hash__(self) -> int:
        # Names tell tensors of a graph apart; the origin can be a deep tree.
        return hash((self.name, self.shape))

    @property
    def size(self) -> int:
        """Count the elements."""
        return prod(self.shape)

    def describe(self) -> dict[str, Any]:
        """Describe the tensor and all it comes from, as JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "origin": _describe_origin(self.origin),
        }


def sources_of(operation: Operation) -> tuple[Tensor, ...]:
    """List the tensors that an operation works on."""
    if isinstance(operation, Stack | Concat):
        return operation.sources
    if isinstance(operation, Dequantize):
        return operation.weight, operation.scales
    if isinstance(operation, AddLowRank):
        return (operation.source, *operation.a, *operation.b)
    return (operation.source,)


# Fields of operations that hold tensors.
_SOURCES: Final = ("source", "sources", "weight", "scales", "a", "b")


def _describe_origin(origin: StoredArray | Operation) -> dict[str, Any]:
    if isinstance(origin, StoredArray):
        return _describe_stored(origin)
    described: dict[str, Any] = {"operation": type(origin).__name__.lower()}
    described["sources"] = [source.describe() for source in sources_of(origin)]
    for item in fields(origin):
        value = getattr(origin, item.name)
        is_default = value == item.default
        if item.name not in _SOURCES and not is_default:
            described[item.name] = list(value) if isinstance(value, tuple) else value
    return described


def _describe_stored(array: StoredArray) -> dict[str, Any]:
    described: dict[str, Any] = {
        "file": array.path.name,
        "offset": array.offset,
        "nbytes": array.nbytes,
    }
    if array.packed is not None:
        parts = array.packed.parts
        described["layout"] = array.packed.stored_as.name
        described["parts"] = {suffix: _describe_stored(part) for suffix, part in parts.items()}
    return described


# Builders. They check shapes, so that what they made can be resolved.


def stored(name: str, array: StoredArray) -> Tensor:
    """Name a stored array as it is."""
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
    """Exchange the last two axes: [..., n, m] becomes [..., m, n]."""
    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return Tensor(source.name, shape, source.dtype, Transpose(source))


def permuted(source: Tensor, axes: Sequence[int]) -> Tensor:
    """Put the axes in another order, as numpy.transpose does. Raises LayoutError."""
    order = tuple(_axis(source, axis) for axis in axes)
    if sorted(order) != list(range(len(source.shape))):
        raise LayoutError(f"{_told(source)}: axes {list(axes)} are no order of its axes")
    shape = tuple(source.shape[axis] for axis in order)
    return Tensor(source.name, shape, source.dtype, Permute(source, order))


def reshaped(source: Tensor, shape: Sequence[int]) -> Tensor:
    """Split and merge axes, elements in row-major order. Raises LayoutError for another size."""
    if min(shape, default=1) < 1 or prod(shape) != source.size:
        raise LayoutError(f"{_told(source)} cannot have the shape {list(shape)}")
    return Tensor(source.name, tuple(shape), source.dtype, Reshape(source))


def interleaved_halves(source: Tensor, num_heads: int) -> Tensor:
    """Interleave the halves of each head's rows: j and j + d/2 of [heads * d, ...] side by side.

    RoPE that rotates halves (Hugging Face) becomes RoPE that rotates neighbours: what llama.cpp
    does to q and k of Llama. Biases [heads * d] go the same way. Raises LayoutError.
    """
    return _exchanged_in_heads(source, num_heads, (2, -1))


def split_pairs(source: Tensor, num_heads: int) -> Tensor:
    """Undo `interleaved_halves`: of each head the even rows, then the odd ones. Raises LayoutError.

    RoPE that rotates neighbours (MaxText, llama.cpp's Llama) becomes RoPE that rotates halves.
    """
    return _exchanged_in_heads(source, num_heads, (-1, 2))


def _exchanged_in_heads(source: Tensor, num_heads: int, split: tuple[int, int]) -> Tensor:
    rows, *rest = source.shape
    if num_heads < 1 or rows % (2 * num_heads):
        raise LayoutError(f"{_told(source)}: {rows} rows are not {num_heads} heads of two halves")
    half = rows // num_heads // 2
    first, second = (half if size < 0 else size for size in split)
    heads = reshaped(source, (num_heads, first, second, *rest))
    order = (0, 2, 1, *range(3, 3 + len(rest)))
    return reshaped(permuted(heads, order), source.shape)


def take(source: Tensor, index: int, axis: int = 0) -> Tensor:
    """Take one entry of an axis: [..., n, ...] without that axis. Raises LayoutError."""
    axis = _axis(source, axis)
    if not 0 <= index < source.shape[axis]:
        raise LayoutError(f"{_told(source)} has no entry {index} along axis {axis}")
    name = f"{source.name}[{':, ' * axis}{index}]"
    dtype = source.dtype
    if isinstance(source.origin, Stack) and axis == 0:
        dtype = source.origin.sources[index].dtype
    shape = source.shape[:axis] + source.shape[axis + 1 :]
    return Tensor(name, shape, dtype, Take(source, index, axis))


def sliced(source: Tensor, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
    """Take entries start, start + step, ... before `stop` of an axis, one at least.

    Raises LayoutError for entries that are not there; unlike in Python all bounds count from 0.
    """
    axis = _axis(source, axis)
    if not (0 <= start < stop <= source.shape[axis] and step >= 1):
        raise LayoutError(f"{_told(source)} has no entries {start}:{stop}:{step} along axis {axis}")
    count = len(range(start, stop, step))
    shape = (*source.shape[:axis], count, *source.shape[axis + 1 :])
    name = f"{source.name}[{':, ' * axis}{start}:{stop}{f':{step}' if step > 1 else ''}]"
    return Tensor(name, shape, source.dtype, Slice(source, axis, start, stop, step))


def stacked(name: str, sources: tuple[Tensor, ...]) -> Tensor:
    """Stack tensors of one shape along a new first axis; they can be stored in different ways.

    Raises LayoutError for different shapes.
    """
    first = sources[0]
    for source in sources:
        if source.shape != first.shape:
            raise LayoutError(
                f"{source.name} is {list(source.shape)}, but {first.name} is {list(first.shape)}"
            )
    return Tensor(name, (len(sources), *first.shape), _dtypes(sources), Stack(sources))


def concatenated(name: str, sources: tuple[Tensor, ...], axis: int) -> Tensor:
    """Join tensors along an axis; they can be stored in different ways. Raises LayoutError.

    Axis -2 joins parts of the output rows of matrices [..., out, in] (column-parallel ranks), axis
    -1 parts of their input columns (row-parallel ranks).
    """
    first = sources[0]
    axis = _axis(first, axis)
    for source in sources:
        is_like = len(source.shape) == len(first.shape) and all(
            n == axis or size == other
            for n, (size, other) in enumerate(zip(source.shape, first.shape, strict=True))
        )
        if not is_like:
            raise LayoutError(
                f"{_told(source)} and {_told(first)} cannot be joined along axis {axis}"
            )
    total = sum(source.shape[axis] for source in sources)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return Tensor(name, shape, _dtypes(sources), Concat(sources, axis))


def affine(source: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Make y = x * scale + shift, float32; `Affine` says how it rounds.

    The constants are rounded to float32 first. Raises LayoutError if they are not finite then.
    """
    constants = rounded_float32(scale), rounded_float32(shift)
    if not all(map(isfinite, constants)):
        raise LayoutError(f"{source.name}: x * {scale} + {shift} is beyond float32")
    return Tensor(source.name, source.shape, "F32", Affine(source, *constants))


def scaled(source: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply by one factor, or each entry of the first axis by its own; see `Scaled`.

    The tensor keeps its dtype, that of what is stored. Raises LayoutError for another number of
    factors, and for factors that are not finite.
    """
    if len(factors) not in (1, source.shape[0]):
        raise LayoutError(f"{_told(source)} cannot be multiplied by {len(factors)} factors")
    if not all(map(isfinite, factors)):
        raise LayoutError(f"{source.name}: a factor is not finite")
    return Tensor(source.name, source.shape, source.dtype, Scaled(source, tuple(factors)))


def unscaled(tensor: Tensor) -> Tensor:
    """Give what is stored of a tensor, under its name, without the factor beside it.

    Other tensors stay as they are.
    """
    origin = tensor.origin
    return replace(origin.source, name=tensor.name) if isinstance(origin, Scaled) else tensor


def split_factor(tensor: Tensor) -> tuple[Tensor, float]:
    """Give what is stored of a matrix, or of one expert, and the one factor beside it, or 1."""
    origin = tensor.origin
    if isinstance(origin, Scaled) and len(origin.factors) == 1:
        return origin.source, origin.factors[0]
    if isinstance(origin, Take) and origin.axis == 0 and isinstance(origin.source.origin, Stack):
        return split_factor(origin.source.origin.sources[origin.index])
    if isinstance(origin, Take) and origin.axis == 0 and isinstance(origin.source.origin, Scaled):
        of_all = origin.source.origin
        factor = of_all.factors[origin.index if len(of_all.factors) > 1 else 0]
        return take(of_all.source, origin.index), factor
    return tensor, 1.0


def with_low_rank(source: Tensor, a: Tensor, b: Tensor, multiplier: float) -> Tensor:
    """Add multiplier * b @ a to [..., out, in]. Raises LayoutError if the factors do not fit.

    More than one can be added, but to the same tensor: not to parts of it first.
    """
    *lead, n_out, n_in = source.shape
    rank = a.shape[-2] if len(a.shape) > 1 else 0
    if a.shape != (*lead, rank, n_in) or b.shape != (*lead, n_out, rank):
        raise LayoutError(
            f"{_told(source)} does not fit factors of {list(b.shape)} and {list(a.shape)}"
        )
    if isinstance(source.origin, Rows) or len(source.shape) > 3:
        raise LayoutError(f"{_told(source)} is no matrix, and no stack of matrices")
    by = rounded_float32(multiplier)
    if not isfinite(by):
        raise LayoutError(f"{source.name}: a multiplier of {multiplier} is beyond float32")
    origin = source.origin
    if not isinstance(origin, AddLowRank):
        if is_sum(source):
            raise LayoutError(f"{_told(source)}: parts of it are sums already")
        origin = AddLowRank(source, (), (), ())
    added = AddLowRank(origin.source, (*origin.a, a), (*origin.b, b), (*origin.multipliers, by))
    return Tensor(source.name, source.shape, "F32", added)


def is_sum(tensor: Tensor) -> bool:
    """Tell whether a low-rank product was added to a tensor, or to a part of it."""
    origin = tensor.origin
    if isinstance(origin, StoredArray | Dequantize):
        return False
    return isinstance(origin, AddLowRank) or any(map(is_sum, sources_of(origin)))


def quantized(name: str, source: Tensor, type_name: str) -> Tensor:
    """Name a tensor in another type, blocks along its last axis."""
    return Tensor(name, source.shape, type_name, Quantize(source))


def _axis(source: Tensor, axis: int) -> int:
    """Count an axis from the first. Raises LayoutError if there is no such axis."""
    rank = len(source.shape)
    if not -rank <= axis < rank:
        raise LayoutError(f"{_told(source)} has no axis {axis}")
    return axis % rank


def _told(source: Tensor) -> str:
    """Name a tensor with its shape, for messages."""
    return f"{source.name} {list(source.shape)}"


def _dtypes(sources: Sequence[Tensor]) -> str:
    return " + ".join(dict.fromkeys(source.dtype for source in sources))
