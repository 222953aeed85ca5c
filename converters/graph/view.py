"""Resolve tensors to strided windows on stored arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weightcast.converters.graph.tensor import (
    Dequantize,
    Rows,
    Stack,
    Take,
    Tensor,
    Transpose,
)
from weightcast.errors import LayoutError
from weightcast.formats.array import ITEM_BYTES, RowReader, StoredArray
from weightcast.quant.types import SOURCE_TYPES, TYPES


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a stored array: element of the first index, shape, strides in elements.

    `scales` is the window on the scales of an int8 matrix: [out, groups] beside [out, in].
    """

    array: StoredArray
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    scales: View | None = None

    def transposed(self) -> View:
        def swap(axes: tuple[int, ...]) -> tuple[int, ...]:
            return (*axes[:-2], axes[-1], axes[-2])

        if self.array.is_blocked:
            raise LayoutError(f"{self.array.path}: {self.array.dtype} cannot be transposed")
        scales = None if self.scales is None else self.scales.transposed()
        return View(self.array, self.start, swap(self.shape), swap(self.strides), scales)

    def taken(self, index: int) -> View:
        start = self.start + index * self.strides[0]
        return View(self.array, start, self.shape[1:], self.strides[1:])

    @property
    def dtype(self) -> str:
        """What the rows are in memory."""
        packed = self.array.packed
        return self.array.dtype if packed is None else packed.memory_dtype

    @property
    def is_blocked(self) -> bool:
        """Whether the rows are quantized blocks in memory."""
        return self.dtype not in ITEM_BYTES

    @property
    def is_encoded(self) -> bool:
        """Whether the rows become float32 on the way to what is made of them."""
        return self.is_blocked or (self.array.packed is not None and self.dtype != "I8")

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]


def is_stored_as(tensor: Tensor, type_name: str) -> bool:
    """Whether a tensor is stored in the blocks of a type, so that these can be copied."""
    return all(view.is_blocked and view.dtype == type_name for view in matrices(tensor))


def matrices(tensor: Tensor) -> list[View]:
    """Resolve a tensor [..., out, in] to its matrices in order; [in] is one row."""
    origin = tensor.origin
    if isinstance(origin, StoredArray):
        if origin.packed is not None:
            return [_packed_view(origin, origin.packed)]
        return _planes(View(origin, 0, origin.shape, origin.strides))
    if isinstance(origin, Dequantize):
        pairs = zip(matrices(origin.weight), matrices(origin.scales), strict=True)
        return [replace(weight, scales=scales) for weight, scales in pairs]
    if isinstance(origin, Transpose):
        return [view.transposed() for view in matrices(origin.source)]
    if isinstance(origin, Take):
        assert len(origin.source.shape) > 2
        views = matrices(origin.source)
        count = len(views) // origin.source.shape[0]
        return views[origin.index * count : (origin.index + 1) * count]
    if isinstance(origin, Stack):
        return [view for source in origin.sources for view in matrices(source)]
    if isinstance(origin, Rows):
        array = first_array(origin.source)
        assert array.axis_strides is None
        rows = origin.source.size // origin.length
        return [View(array, 0, (rows, origin.length), (origin.length, 1))]
    return matrices(origin.source)


def _packed_view(array: StoredArray, packed: RowReader) -> View:
    """A packed matrix, which is read in whole rows; int8 codes have their scales beside them."""
    scales = None
    if packed.scales is not None:
        of_array, strides = packed.scales
        groups = of_array.nbytes // ITEM_BYTES[of_array.dtype] // array.shape[0]
        scales = View(of_array, 0, (array.shape[0], groups), strides)
    return View(array, 0, array.shape, array.strides, scales)


def _planes(view: View) -> list[View]:
    """Expand the leading axes of a window."""
    if len(view.shape) == 1:
        shape, strides = (1, *view.shape), (view.shape[0], *view.strides)
        return [View(view.array, view.start, shape, strides)]
    if len(view.shape) <= 2:
        return [view]
    return [plane for n in range(view.shape[0]) for plane in _planes(view.taken(n))]


def first_array(tensor: Tensor) -> StoredArray:
    """Name a stored array that a tensor comes from, to say in messages where it lies."""
    origin = tensor.origin
    while not isinstance(origin, StoredArray):
        if isinstance(origin, Dequantize):
            origin = origin.weight.origin
        elif isinstance(origin, Stack):
            origin = origin.sources[0].origin
        else:
            origin = origin.source.origin
    return origin


def check_readable(tensor: Tensor) -> None:
    """Raise LayoutError if the kernels cannot read a tensor's stored dtype."""
    for view in matrices(tensor):
        dtype = view.dtype
        if view.array.packed is not None:
            continue  # only what can be read is recognized
        if dtype not in TYPES and (dtype not in SOURCE_TYPES or not view.scales):
            raise LayoutError(
                f"{view.array.path}: {tensor.name} is stored as {dtype}, which cannot be converted"
            )
