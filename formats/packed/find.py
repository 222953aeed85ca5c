"""Tools for a layout's `find`: the tensors of one module among all of a directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.formats.packed.layout import (
    AnyMatrixLayout,
    MatrixShape,
    PackedLayout,
    PackedMatrix,
)
from weightcast.quant.types import WeightType


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """The tensors of a directory as the module `name` sees them: by suffix.

    `seen` are those that it sees otherwise.
    """

    name: str
    arrays: Mapping[str, StoredArray]
    seen: Mapping[str, StoredArray] = field(default_factory=dict)

    def has(self, suffix: str) -> bool:
        return self.name + suffix in self.arrays

    def part(self, suffix: str) -> StoredArray:
        """Give a tensor of the module. Raises MissingTensorError."""
        if not self.has(suffix):
            raise MissingTensorError(
                f"{self.name}{suffix} is not there, but other parts of {self.name} are"
            )
        return self.seen.get(suffix) or self.arrays[self.name + suffix]

    def seen_as(self, suffix: str, dtype: str, shape: tuple[int, ...]) -> ModuleTensors:
        """Take a tensor for one of another dtype and shape, where its bytes mean the same."""
        array = replace(self.part(suffix), dtype=dtype, shape=shape)
        return replace(self, seen={**self.seen, suffix: array})

    def matrix(self, suffix: str) -> StoredArray:
        """Give a tensor with two axes. Raises MissingTensorError, LayoutError."""
        array = self.part(suffix)
        if len(array.shape) != 2 or 0 in array.shape:
            raise LayoutError(f"{suffix} is {list(array.shape)}, not a matrix")
        return array


def modules_with(suffix: str, arrays: Mapping[str, StoredArray]) -> list[ModuleTensors]:
    """List the modules that have a tensor of this suffix, by name."""
    names = sorted(name.removesuffix(suffix) for name in arrays if name.endswith(suffix))
    return [ModuleTensors(name, arrays) for name in names]


def find_each(
    modules: Iterable[ModuleTensors], find: Callable[[ModuleTensors], PackedMatrix]
) -> dict[str, PackedMatrix]:
    """Find the matrix of each module; a refusal names the module."""
    found = {}
    for module in modules:
        try:
            found[module.name] = find(module)
        except LayoutError as problem:
            raise LayoutError(f"{module.name}: {problem}") from None
    return found


def packed_matrix(
    layout: PackedLayout,
    shape: MatrixShape[WeightType],
    module: ModuleTensors,
    stored_as: AnyMatrixLayout | None = None,
) -> PackedMatrix:
    """Take the parts of a matrix; raise LayoutError unless each has its dtype and shape."""
    stored_as = stored_as or layout.matrix_layout(shape.type)
    parts = {}
    for part in stored_as.parts(shape):
        array = module.part(part.suffix)
        if (array.dtype, array.shape) != (part.dtype, part.shape):
            raise LayoutError(
                f"{part.suffix} is {array.dtype} {list(array.shape)}, where {part.dtype} "
                f"{list(part.shape)} belongs"
            )
        parts[part.suffix] = array
    return PackedMatrix(layout, stored_as, shape, parts)


def group_size(n_in: int, n_groups: int) -> int:
    """Tell the size of groups, 0 for one a row. Raises LayoutError if they are not equal."""
    if n_in % n_groups:
        raise LayoutError(f"{n_groups} groups in rows of {n_in} values are not equal")
    return 0 if n_groups == 1 else n_in // n_groups


def read_bytes(array: StoredArray, start: int, end: int) -> NDArray[np.uint8]:
    """Read bytes [start, end) of an array. Raises FormatError if its file ends before."""
    buffer = np.empty(end - start, np.uint8)
    fd = os.open(array.path, os.O_RDONLY)
    try:
        read_stored(fd, array, start, buffer.data)
    finally:
        os.close(fd)
    return buffer
