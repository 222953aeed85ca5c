"""Resolve tensors to matrices: each one window on a stored array, or an assembly of several.

A tensor is taken apart into boxes, each of which lies in one array. An axis of a box is a row of
modes, the slowest first, each with a stride: so axes can be permuted, merged and split at will, and
a box becomes several windows only where an axis of a matrix is no single stride in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from weightcast.converters.graph.assembly import Assembly, Part, Window, assemble
from weightcast.converters.graph.sums import Factors, Patch, StoredMatrix, Sum
from weightcast.converters.graph.tensor import (
    AddLowRank,
    Affine,
    Concat,
    Dequantize,
    Operation,
    Permute,
    Quantize,
    Reshape,
    Rows,
    Scaled,
    Slice,
    Stack,
    Take,
    Tensor,
    Transpose,
    is_sum,
    sources_of,
)
from weightcast.converters.graph.view import View
from weightcast.errors import LayoutError
from weightcast.formats.array import ITEM_BYTES, StoredArray, dense_strides
from weightcast.quant.types import F32, TYPES

# Of one tensor: more than heads of all layers, fewer than what shapes in a hostile file could ask.
MAX_BOXES: Final = 1 << 17

_Found = TypeVar("_Found")


@lru_cache(maxsize=1 << 12)  # opening, describing and planning a model all ask
def matrices(tensor: Tensor) -> tuple[StoredMatrix, ...]:
    """Resolve a tensor [..., out, in] to its matrices in order; [in] is one row, [] one value.

    A tensor without values has none, whatever it is made of.

    Raises LayoutError for blocks along another axis than `in`, and for too many parts.
    """
    if not tensor.size:
        return ()
    origin = tensor.origin
    while isinstance(origin, Quantize):
        origin = origin.source.origin
    if isinstance(origin, Rows):
        array = first_array(origin.source)
        assert array.axis_strides is None
        rows = origin.source.size // origin.length
        return (View(array, 0, (rows, origin.length), (origin.length, 1)),)
    found = _without_sums(tensor)
    return _with_sums(tensor, found) if is_sum(tensor) else found


def _without_sums(tensor: Tensor) -> tuple[View | Assembly, ...]:
    """Resolve a tensor to its matrices, leaving out what is added to it."""
    shape, boxes = tensor.shape, _boxes(tensor)
    while len(shape) < 2:
        shape = (1, *shape)
        boxes = [box.with_first(0, _Mode(1, prod(shape))) for box in boxes]
    return tuple(_matrix(shape[-2:], plane, tensor.name) for plane in _planes(boxes, shape))


def windows(tensor: Tensor) -> Iterator[View]:
    """List all windows that a tensor is read from."""
    for matrix in matrices(tensor):
        yield from matrix.views


def is_stored_as(tensor: Tensor, type_name: str) -> bool:
    """Tell whether a tensor is stored in blocks of a type, so that they can be copied."""
    return all(matrix.is_blocked and matrix.dtype == type_name for matrix in matrices(tensor))


def first_array(tensor: Tensor) -> StoredArray:
    """Name a stored array that a tensor comes from, to say in messages where it lies."""
    origin = tensor.origin
    while not isinstance(origin, StoredArray):
        origin = sources_of(origin)[0].origin
    return origin


def check_readable(tensor: Tensor, name: str = "") -> None:
    """Raise LayoutError if the kernels cannot read a tensor's stored dtype.

    The message calls it by `name`, if it is another than its own.
    """
    for view in windows(tensor):
        if not view.is_readable:
            raise LayoutError(
                f"{view.path}: {name or tensor.name} is stored as {view.dtype}, which cannot be "
                "converted"
            )


# Boxes.


class _Mode(NamedTuple):
    """Part of an axis: its size, and the strides of values and scales, in elements."""

    size: int
    stride: int
    scale: int = 0


_Axis = tuple[_Mode, ...]


class _Span(NamedTuple):
    """Part of an axis: where it starts there, and how far that is in values and in scales."""

    at: int
    start: int
    scale: int
    axis: _Axis

    def moved(self, at: int, mode: _Mode, index: int) -> _Span:
        """Move the span by `index` steps of an outer mode, which puts it `at` elements further."""
        start, scale = self.start + index * mode.stride, self.scale + index * mode.scale
        return _Span(self.at + at, start, scale, self.axis)


class _Box(NamedTuple):
    """A box of a tensor that lies in one array: where it starts along each axis, and its axes."""

    at: tuple[int, ...]
    axes: tuple[_Axis, ...]
    array: StoredArray
    start: int = 0
    scales: StoredArray | None = None
    scale_start: int = 0
    affine: tuple[tuple[float, float], ...] = ()

    def size(self, axis: int) -> int:
        return _size(self.axes[axis])

    def ordered(self, order: Sequence[int]) -> _Box:
        """Put its axes in another order."""
        at, axes = tuple(self.at[n] for n in order), tuple(self.axes[n] for n in order)
        return self._replace(at=at, axes=axes)

    def with_first(self, at: int, mode: _Mode) -> _Box:
        """Add a first axis."""
        return self._replace(at=(at, *self.at), axes=((mode,), *self.axes))

    def times(self, factor: float) -> _Box:
        """Multiply its values; by 1 they stay what is stored."""
        return self if factor == 1 else self._replace(affine=(*self.affine, (factor, 0.0)))

    def moved(self, axis: int, distance: int) -> _Box:
        at = (*self.at[:axis], self.at[axis] + distance, *self.at[axis + 1 :])
        return self._replace(at=at)

    def replaced(self, axis: int, count: int, start: int, scale: int, *new: _Placed) -> _Box:
        """Put new axes in the place of `count` old ones, after moving the first element."""
        at, axes = [at for at, _ in new], [modes for _, modes in new]
        return self._replace(
            at=(*self.at[:axis], *at, *self.at[axis + count :]),
            axes=(*self.axes[:axis], *axes, *self.axes[axis + count :]),
            start=self.start + start,
            scale_start=self.scale_start + scale,
        )


_Placed = tuple[int, _Axis]
_ONE: Final = (_Mode(1, 0),)


def _boxes(tensor: Tensor) -> list[_Box]:
    """Take a tensor apart. Raises LayoutError for more than MAX_BOXES."""
    return _bounded(_boxes_of(tensor), tensor.name)


def _boxes_of(tensor: Tensor) -> Iterable[_Box]:
    origin = tensor.origin
    if isinstance(origin, StoredArray):
        return [_stored(origin)]
    if isinstance(origin, Dequantize):
        return [_dequantized(origin)]
    if isinstance(origin, Stack):
        return [
            box.with_first(n, _ONE[0])
            for n, source in enumerate(origin.sources)
            for box in _boxes(source)
        ]
    if isinstance(origin, Concat):
        return _concatenated(origin)
    if isinstance(origin, Take) and isinstance(origin.source.origin, Stack) and origin.axis == 0:
        return _boxes(origin.source.origin.sources[origin.index])
    boxes = _boxes(origin.source)
    if isinstance(origin, Affine):
        step = (origin.scale, origin.shift)
        return [box._replace(affine=(*box.affine, step)) for box in boxes]
    if isinstance(origin, Scaled):
        return _scaled(boxes, origin.factors)
    if isinstance(origin, Transpose | Permute):
        order = origin.axes if isinstance(origin, Permute) else _last_two(len(tensor.shape))
        return [box.ordered(order) for box in boxes]
    if isinstance(origin, Take):
        return (made for box in boxes for made in _taken(box, origin.axis, origin.index))
    if isinstance(origin, Slice):
        return (made for box in boxes for made in _sliced(box, origin))
    if isinstance(origin, Reshape):
        return _reshaped(boxes, origin.source, tensor.shape)
    return boxes


def _last_two(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _stored(array: StoredArray) -> _Box:
    scales = None
    axes: list[_Axis] = [
        (_Mode(size, stride),) for size, stride in zip(array.shape, array.strides, strict=True)
    ]
    if array.packed is not None and array.packed.scales is not None:
        # A packed matrix is read in whole rows; int8 codes have their scales beside them.
        scales, (per_row, per_group) = array.packed.scales
        n_out, n_in = array.shape
        groups = scales.nbytes // ITEM_BYTES[scales.dtype] // n_out
        axes = [(_Mode(n_out, n_in, per_row),), _grouped(n_in, 1, groups, per_group)]
    return _Box((0,) * len(axes), tuple(axes), array, scales=scales)


def _dequantized(origin: Dequantize) -> _Box:
    """Pair weights [..., in, out] with scales [..., groups, out]."""
    weight, scales = first_array(origin.weight), first_array(origin.scales)
    axes: list[_Axis] = [
        (_Mode(*mode),) for mode in zip(weight.shape, weight.strides, scales.strides, strict=True)
    ]
    n_in, groups = weight.shape[-2], scales.shape[-2]
    axes[-2] = _grouped(n_in, weight.strides[-2], groups, scales.strides[-2])
    return _Box((0,) * len(axes), tuple(axes), weight, scales=scales)


def _grouped(n_in: int, stride: int, groups: int, scale_stride: int) -> _Axis:
    """Make an axis along which each scale belongs to several neighbours."""
    size = n_in // groups
    return _joined((_Mode(groups, size * stride, scale_stride), _Mode(size, stride)))


def _scaled(boxes: list[_Box], factors: Sequence[float]) -> Iterator[_Box]:
    """Multiply all by one factor, or cut the first axis and multiply each entry by its own."""
    for box in boxes:
        if len(factors) == 1:
            yield box.times(factors[0])
            continue
        for n in range(box.size(0)):
            at, (start, scale) = box.at[0] + n, _distance(box.axes[0], n)
            yield box.replaced(0, 1, start, scale, (at, _ONE)).times(factors[at])


def _concatenated(origin: Concat) -> Iterator[_Box]:
    at = 0
    for source in origin.sources:
        for box in _boxes(source):
            yield box.moved(origin.axis, at)
        at += source.shape[origin.axis]


def _taken(box: _Box, axis: int, index: int) -> Iterator[_Box]:
    inside = index - box.at[axis]
    if 0 <= inside < box.size(axis):
        start, scale = _distance(box.axes[axis], inside)
        yield box.replaced(axis, 1, start, scale)


def _sliced(box: _Box, origin: Slice) -> Iterator[_Box]:
    axis, step, at = origin.axis, origin.step, box.at[origin.axis]
    # Entries of the slice that lie in the box.
    first = -(-max(0, at - origin.start) // step)
    last = -(-(min(at + box.size(axis), origin.stop) - origin.start) // step)
    if first < last:
        begin = origin.start + first * step - at
        for span in _cut(box.axes[axis], begin, last - first, step):
            yield box.replaced(axis, 1, span.start, span.scale, (first + span.at, span.axis))


# Axes.


def _size(axis: _Axis) -> int:
    return prod(mode.size for mode in axis)


def _joined(modes: Iterable[_Mode]) -> _Axis:
    """Join modes that are one stride, and leave out those of one element beside others."""
    joined: list[_Mode] = []
    for mode in modes:
        if joined and (mode.size == 1 or joined[-1].size == 1):
            if mode.size > 1:
                joined[-1] = mode
        elif joined and _is_one_stride(joined[-1], mode):
            joined[-1] = _Mode(joined[-1].size * mode.size, mode.stride, mode.scale)
        else:
            joined.append(mode)
    return tuple(joined)


def _is_one_stride(outer: _Mode, inner: _Mode) -> bool:
    is_one = outer.stride == inner.stride * inner.size
    return is_one and outer.scale == inner.scale * inner.size


def _distance(axis: _Axis, index: int) -> tuple[int, int]:
    """Measure from the first element of an axis to another, in values and in scales."""
    start = scale = 0
    for mode in reversed(axis):
        index, here = divmod(index, mode.size)
        start += here * mode.stride
        scale += here * mode.scale
    return start, scale


def _cut(axis: _Axis, first: int, count: int, step: int = 1) -> Iterator[_Span]:
    """Cut `count` elements, `step` apart, out of an axis: as few spans as its modes allow."""
    outer, inner = axis[0], axis[1:]
    if count == 1:
        yield _Span(0, *_distance(axis, first), _ONE)
        return
    if not inner:
        thinned = (_Mode(count, outer.stride * step, outer.scale * step),)
        yield _Span(0, *_distance(axis, first), thinned)
        return
    length = _size(inner)
    if step > 1 and length % step == 0:
        # The same elements of each inner run: what is left has no steps.
        spans = list(_cut(inner, first % step, length // step, step))
        if len(spans) == 1:
            for span in _cut(_joined((outer, *spans[0].axis)), first // step, count):
                start, scale = span.start + spans[0].start, span.scale + spans[0].scale
                yield _Span(span.at, start, scale, span.axis)
            return
    if step > 1:
        for n in range(count):
            for span in _cut(axis, first + n * step, 1):
                yield span._replace(at=n)
        return
    at = 0
    while at < count:
        index, offset = divmod(first + at, length)
        runs = (count - at) // length
        if offset == 0 and runs > 0:
            whole = _joined((_Mode(runs, outer.stride, outer.scale), *inner))
            yield _Span(0, 0, 0, whole).moved(at, outer, index)
            at += runs * length
            continue
        here = min(count - at, length - offset)
        for span in _cut(inner, offset, here):
            yield span.moved(at, outer, index)
        at += here


def _split(axis: _Axis, inner_size: int) -> tuple[_Axis, _Axis] | None:
    """Split an axis in two, the second of `inner_size`; None where a mode does not divide so."""
    outer, inner = list(axis), []
    left = inner_size
    while left > 1:
        mode = outer.pop()
        if left % mode.size == 0:
            inner.append(mode)
            left //= mode.size
        elif mode.size % left == 0:
            inner.append(_Mode(left, mode.stride, mode.scale))
            outer.append(_Mode(mode.size // left, mode.stride * left, mode.scale * left))
            left = 1
        else:
            return None
    return _joined(outer) or _ONE, _joined(reversed(inner)) or _ONE


# Shapes.


def _reshaped(boxes: list[_Box], source: Tensor, target: tuple[int, ...]) -> list[_Box]:
    """Give boxes of a tensor another shape, by merging and splitting axes where these differ."""
    for axis in reversed(range(len(source.shape))):
        if source.shape[axis] == 1:
            boxes = [box.replaced(axis, 1, 0, 0) for box in boxes]
    shape = [size for size in source.shape if size > 1]
    wanted = [size for size in target if size > 1]
    for axis, size in enumerate(wanted):
        # All axes before this one are as they are wanted.
        while shape[axis] % size:
            inner = shape[axis + 1]
            made = (made for box in boxes for made in _merged(box, axis, inner))
            boxes = _bounded(made, source.name)
            shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
        if shape[axis] > size:
            rest = shape[axis] // size
            made = (made for box in boxes for made in _divided(box, axis, rest))
            boxes = _bounded(made, source.name)
            shape[axis : axis + 1] = [size, rest]
    for axis, size in enumerate(target):
        if size == 1:
            boxes = [box.replaced(axis, 0, 0, 0, (0, _ONE)) for box in boxes]
    return boxes


def _merged(box: _Box, axis: int, size: int) -> Iterator[_Box]:
    """Merge an axis with the next one, which is of `size`."""
    (outer, inner), (at, at_inner) = box.axes[axis : axis + 2], box.at[axis : axis + 2]
    if _size(inner) == size:
        yield box.replaced(axis, 2, 0, 0, (at * size, _joined((*outer, *inner))))
        return
    for n in range(_size(outer)):
        yield box.replaced(axis, 2, *_distance(outer, n), ((at + n) * size + at_inner, inner))


def _divided(box: _Box, axis: int, size: int) -> Iterator[_Box]:
    """Split an axis in two, the second of `size`."""
    modes, at, count = box.axes[axis], box.at[axis], box.size(axis)
    done = 0
    while done < count:
        index, offset = divmod(at + done, size)
        runs = (count - done) // size
        if offset == 0 and runs > 0:
            spans = list(_cut(modes, done, runs * size))
            parts = _split(spans[0].axis, size) if len(spans) == 1 else None
            if parts is not None:
                (outer, inner), start, scale = parts, spans[0].start, spans[0].scale
                yield box.replaced(axis, 1, start, scale, (index, outer), (0, inner))
                done += runs * size
                continue
        here = min(count - done, size - offset)
        for span in _cut(modes, done, here):
            at_inner = (offset + span.at, span.axis)
            yield box.replaced(axis, 1, span.start, span.scale, (index, _ONE), at_inner)
        done += here


# Matrices.


def _planes(boxes: list[_Box], shape: tuple[int, ...]) -> list[list[_Box]]:
    """Sort boxes of [..., out, in] by the matrices that they are parts of."""
    planes = [boxes]
    for size in shape[:-2]:
        planes = [plane for of_all in planes for plane in _taken_all(of_all, size)]
    return planes


def _taken_all(boxes: list[_Box], size: int) -> list[list[_Box]]:
    """Take all entries of the first axis."""
    taken: list[list[_Box]] = [[] for _ in range(size)]
    for box in boxes:
        for n in range(box.size(0)):
            taken[box.at[0] + n].append(box.replaced(0, 1, *_distance(box.axes[0], n)))
    return taken


def _matrix(shape: tuple[int, ...], boxes: list[_Box], name: str) -> View | Assembly:
    """Make one window of a matrix, or an assembly."""
    n_out, n_in = shape
    parts = _bounded((part for box in boxes for part in _parts(box)), name)
    first = parts[0]
    if len(parts) == 1 and first.window is None and not first.affine and _is_compact(first.view):
        return first.view
    return assemble((n_out, n_in), parts)


def _is_compact(view: View) -> bool:
    """Tell whether pieces of rows can be used where they lie, with little between them."""
    stride_out, stride_in = view.strides
    return stride_out >= stride_in or stride_out == 1 or 1 in view.shape


class _Segment(NamedTuple):
    """Modes of an axis that are one stride in values, and groups of it that share a scale."""

    modes: tuple[_Mode, ...]

    @property
    def size(self) -> int:
        return _size(self.modes)

    @property
    def stride(self) -> int:
        return max(self.modes[-1].stride, 1)  # an axis of one element may have any

    @property
    def groups(self) -> tuple[int, int] | None:
        """Count the groups, and give the stride of their scales; None if they are irregular."""
        modes = list(self.modes)
        while modes and not modes[-1].scale:
            modes.pop()
        scales = _joined(_Mode(mode.size, mode.scale) for mode in modes)
        if len(scales) > 1:
            return None
        return (scales[0].size, scales[0].stride) if scales else (1, 1)


def _parts(box: _Box) -> Iterator[Part]:
    """List the windows of a box [out, in]."""
    rows = _spread([_Segment((mode,)) for mode in box.axes[0]])
    columns = list(_spread(_segments(box.axes[1])))
    for row, out in rows:
        for column, in_ in columns:
            at, steps = (box.at[0] + row.at, box.at[1] + column.at), (row.step, column.step)
            start = box.start + row.start + column.start
            scales = None
            if box.scales is not None:
                regular = in_.groups
                assert regular is not None
                groups, scale_stride = regular
                first = box.scale_start + row.scale + column.scale
                strides = out.modes[0].scale, scale_stride
                scales = View(box.scales, first, (out.size, groups), strides)
            view = View(box.array, start, (out.size, in_.size), (out.stride, in_.stride), scales)
            yield _readable(Part(view, *at, *steps, affine=box.affine))


def _segments(axis: _Axis) -> list[_Segment]:
    """Join modes along `in` as far as they are one stride with regular groups."""
    segments = [_Segment((axis[-1],))]
    for mode in reversed(axis[:-1]):
        inner = segments[0]
        joined = _Segment((mode, *inner.modes))
        if mode.stride == inner.stride * inner.size and joined.groups is not None:
            segments[0] = joined
        else:
            segments.insert(0, _Segment((mode,)))
    return segments


class _Place(NamedTuple):
    """The start of a window along an axis, in values and in scales, and its step there."""

    at: int
    start: int
    scale: int
    step: int


def _spread(segments: Sequence[_Segment]) -> Iterator[tuple[_Place, _Segment]]:
    """Keep the longest segment of an axis, once for each element of the others."""
    if len(segments) == 1:
        yield _Place(0, 0, 0, 1), segments[0]
        return
    sizes = [segment.size for segment in segments]
    kept = sizes.index(max(sizes))
    weights = dense_strides(tuple(sizes))
    for index in product(*(range(1 if n == kept else size) for n, size in enumerate(sizes))):
        at = start = scale = 0
        for segment, n, weight in zip(segments, index, weights, strict=True):
            distance = _distance(segment.modes, n)
            at, start, scale = at + n * weight, start + distance[0], scale + distance[1]
        yield _Place(at, start, scale, weights[kept]), segments[kept]


def _readable(part: Part) -> Part:
    """Cut a window on blocks, or on a packed matrix, from whole rows unless it is some of these.

    Raises LayoutError if its rows are no parts of stored rows.
    """
    view, array = part.view, part.view.array
    if part.is_plain:
        return part
    (n_out, n_in), (stride_out, stride_in) = view.shape, view.strides
    is_dense = (stride_out == n_in or n_out == 1) and (stride_in == 1 or n_in == 1)
    if array.packed is not None:
        if is_dense and view.start == 0 and view.shape == array.shape:
            return part
    elif is_dense and not view.start % n_in and _fits(array.dtype, n_in):
        return part
    length = array.shape[-1]
    if n_in > 1 and (stride_in >= length or (n_out > 1 and stride_out < stride_in)):
        raise LayoutError(f"{array.path}: {array.dtype} cannot be transposed")
    whole = View(array, 0, (prod(array.shape) // length, length), (length, 1))
    return replace(part, view=whole, window=Window(view.start, view.shape, view.strides))


def _fits(dtype: str, n_in: int) -> bool:
    return dtype not in TYPES or TYPES[dtype].fits(n_in)


# Sums.


@dataclass(frozen=True)
class _Addresses(StoredArray):
    """Stands for a product [..., out, in], to follow its elements through other operations.

    An element's place in it says which row of b and which column of a make it: row * `pitch` +
    column, each counted over all matrices of a stack. The pitch is more than the columns are, so
    that the end of a row and the start of the next are no neighbours.
    """

    added: AddLowRank | None = None

    @property
    def pitch(self) -> int:
        return prod(self.shape[:-2]) * self.shape[-1] + 1


def _addresses(path: Path, shape: tuple[int, ...], added: AddLowRank) -> _Addresses:
    *lead, n_out, n_in = shape
    pitch = prod(lead) * n_in + 1
    strides = (*(n_out * pitch + n_in for _ in lead), pitch, 1)
    return _Addresses(path, 0, 0, F32.name, shape, strides, added=added)


def _added(tensor: Tensor) -> Tensor:
    """Make a tensor of what is added alone: addresses, and any array for the rest."""
    origin = tensor.origin
    made: StoredArray | Operation
    if isinstance(origin, AddLowRank):
        made = _addresses(first_array(tensor).path, tensor.shape, origin)
    elif isinstance(origin, StoredArray | Dequantize):
        made = StoredArray(first_array(tensor).path, 0, 0, F32.name, tensor.shape)
    elif isinstance(origin, Stack | Concat):
        made = replace(origin, sources=tuple(map(_added, origin.sources)))
    else:
        made = replace(origin, source=_added(origin.source))
    return Tensor(tensor.name, tensor.shape, F32.name, made)


def _with_sums(tensor: Tensor, found: Iterable[View | Assembly]) -> tuple[StoredMatrix, ...]:
    """Add to each matrix what is added to its elements."""
    summed: list[StoredMatrix] = []
    for matrix, added in zip(found, _without_sums(_added(tensor)), strict=True):
        patches: dict[Factors, list[Patch]] = {}
        for part in added.parts if isinstance(added, Assembly) else (Part(added),):
            if isinstance(part.view.array, _Addresses):
                factors, patch = _patch(tensor.name, part, part.view.array)
                patches.setdefault(factors, []).append(patch)
        held = tuple((factors, tuple(places)) for factors, places in patches.items())
        summed.append(Sum(matrix, held) if held else matrix)
    return tuple(summed)


def _patch(name: str, part: Part, array: _Addresses) -> tuple[Factors, Patch]:
    """Tell which rows of b and columns of a make a part. Raises LayoutError if these vary."""
    added, (*_, n_out, n_in) = array.added, array.shape
    assert added is not None
    row, column = divmod(part.view.start, array.pitch)
    steps = [
        divmod(stride, array.pitch) if size > 1 else (0, 0)
        for stride, size in zip(part.view.strides, part.shape, strict=True)
    ]
    is_turned = bool(steps[0][1] or steps[1][0])
    (along_b, not_b), (not_a, along_a) = reversed(steps) if is_turned else steps
    if not_b or not_a:
        raise LayoutError(f"{name}: what is added lies across several matrices")
    number = row // n_out
    factors = Factors(
        tuple(matrices(a)[number] for a in added.a),
        tuple(matrices(b)[number] for b in added.b),
        tuple(prod((by, *(scale for scale, _ in part.affine))) for by in added.multipliers),
    )
    size_b, size_a = reversed(part.shape) if is_turned else part.shape
    rows = range(row % n_out, row % n_out + max(along_b, 1) * size_b, max(along_b, 1))
    cols = range(column % n_in, column % n_in + max(along_a, 1) * size_a, max(along_a, 1))
    return factors, Patch(part, rows, cols, is_turned)


def _bounded(found: Iterable[_Found], name: str) -> list[_Found]:
    """List boxes or parts. Raises LayoutError if they are too many."""
    listed = list(islice(found, MAX_BOXES + 1))
    if len(listed) > MAX_BOXES:
        raise LayoutError(f"{name} lies in more than {MAX_BOXES} pieces")
    return listed
