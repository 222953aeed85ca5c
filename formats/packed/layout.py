"""Packed layouts: matrices of weights as several tensors of safetensors files.

A layout stores one matrix [out, in] as several tensors, its parts: codes packed into bytes or
words, scales, maybe zero points. Rows are packed as they come, in any order and number; each
layout says where in its parts their bytes go.

`PackedLayout` is what the table LAYOUTS holds: how a directory says in config.json what it is, how
its matrices are found, which weight types it stores. `MatrixLayout` is one way to store a matrix:
a layout has one for each of its weight types, and is one itself if it has only that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final, Generic, Protocol, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import ITEM_BYTES, StoredArray
from weightcast.formats.packed.coding import CodedRows, Coding, T_contra
from weightcast.formats.packed.readers import Readers
from weightcast.quant.types import WeightType

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
T_co = TypeVar("T_co", bound=WeightType, covariant=True)


@dataclass(frozen=True, slots=True)
class MatrixShape(Generic[T_co]):
    """A matrix [n_out, n_in] of a weight type."""

    type: T_co
    n_out: int
    n_in: int

    def of_rows(self, rows: int) -> MatrixShape[T_co]:
        """Give the shape of some rows of the matrix."""
        return replace(self, n_out=rows)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in the file: its name is that of the matrix and then `suffix`.

    `rows_each` rows of the matrix lie side by side in an element along `out_axis`; a part without
    that axis belongs to all rows.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    out_axis: int | None = 0
    rows_each: int = 1

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a part: `data` is uint8 [n, run_bytes], n runs of bytes, each contiguous.

    Run i starts at byte `offset + i * stride` of the part. The data may be those of the rows that
    were packed, not a copy.
    """

    suffix: str
    data: NDArray[np.uint8]
    offset: int
    stride: int


@dataclass(frozen=True, slots=True)
class Scheme:
    """Modules that share a weight type.

    `targets` are class names ("Linear"), module names, or "re:" and a regular expression that
    matches from a module name's start.
    """

    targets: tuple[str, ...]
    type: WeightType


class MatrixLayout(Protocol[T_contra, CodedRows]):
    """One way to store matrices of a kind of weight types as tensors.

    Methods raise LayoutError for a matrix that cannot be stored so.
    """

    @property
    def name(self) -> str: ...

    @property
    def coding(self) -> Coding[T_contra, CodedRows]:
        """Give the arithmetic between weights and the rows that are packed."""
        ...

    @property
    def scales(self) -> str:
        """Give the suffix of the part that holds the scales."""
        ...

    @property
    def is_written(self) -> bool:
        """Tell whether outputs are stored so; what only others write is read, never packed."""
        ...

    def parts(self, shape: MatrixShape[T_contra]) -> tuple[Part, ...]:
        """Name the tensors of a matrix, codes first."""
        ...

    def row_multiple(self, weight_type: T_contra) -> int:
        """Count the rows that share words: pieces start at multiples, only the last ends between.

        Always a power of two, so that pieces fit several outputs.
        """
        ...

    def pack(self, rows: CodedRows, shape: MatrixShape[T_contra], row0: int) -> Iterator[Segment]:
        """Place the bytes of `rows`, which begin at row `row0` of the matrix."""
        ...

    def constants(self, shape: MatrixShape[T_contra]) -> dict[str, bytes]:
        """Give the parts that do not depend on the weights, whole; `pack` leaves them out."""
        ...

    def unpack(self, parts: Mapping[str, NDArray[Any]], shape: MatrixShape[T_contra]) -> CodedRows:
        """Read a whole matrix. Raises LayoutError or MissingTensorError if a part is not right."""
        ...


# A weight type and the layout that stores it go together, which a table of them cannot express.
AnyMatrixLayout = MatrixLayout[Any, Any]


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed matrix in files: the directory's layout, the matrix's own, parts by suffix."""

    layout: PackedLayout
    stored_as: AnyMatrixLayout
    shape: MatrixShape[WeightType]
    parts: Mapping[str, StoredArray]


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about a layout.

    `quant_method` is that of its quantization_config; layouts may share one. `readers` says what
    runtimes make of it. `marks` are suffixes that only packed matrices have: such tensors must not
    stay unexplained. `types` maps names of outputs to types that are not integers in groups, or not
    the usual ones: "mxfp4". A layout `describes_itself` if its files say what they hold, so that no
    quantization_config is needed. One that `ignores_words` names the modules to leave alone by
    words in their names, not by patterns.
    """

    quant_method: str
    readers: Readers
    marks: tuple[str, ...] = ()
    types: Mapping[str, WeightType] = field(default_factory=dict)
    describes_itself: bool = False
    ignores_words: bool = False


class PackedLayout(Protocol):
    """One way to store the packed matrices of a directory, and to describe and find them."""

    @property
    def name(self) -> str:
        """Name the layout in outputs (grok-1-int4-g128-NAME), messages and reports."""
        ...

    @property
    def traits(self) -> Traits: ...

    def holds(self, weight_type: WeightType) -> bool:
        """Tell whether the layout stores matrices of a type."""
        ...

    def why_not(self, weight_type: WeightType, main: WeightType) -> str | None:
        """Say why a rule cannot ask for a packed type beside `main`, the type of most matrices."""
        ...

    def matrix_layout(self, weight_type: WeightType) -> AnyMatrixLayout:
        """Give the way to store matrices of a type. Raises LayoutError if there is none."""
        ...

    def header_metadata(self, matrices: Mapping[str, MatrixShape[Any]]) -> dict[str, str]:
        """Describe the packed matrices of one file in its header, by module names."""
        ...

    def quantization_config(
        self,
        schemes: Sequence[Scheme],
        ignore: Sequence[str] = (),
        block_modules: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Describe the weights in config.json. Raises LayoutError if the layout cannot.

        `ignore` names modules that stay floats, as `targets` do. `block_modules` are the
        ends of the names of all packed modules, which only GPTQ writes.
        """
        ...

    def find(
        self, config: Mapping[str, Any], arrays: Mapping[str, StoredArray]
    ) -> dict[str, PackedMatrix]:
        """Find the packed matrices among all tensors of a directory, by their modules' names.

        `config` is its quantization_config, {} if there is none. Raises LayoutError or
        MissingTensorError, with the tensor's name, for parts that do not go together.
        """
        ...

    def contradiction(
        self, config: Mapping[str, Any], shape: MatrixShape[Any]
    ) -> tuple[str, str] | None:
        """Say what a matrix is and what its quantization_config says, if that is another thing."""
        ...


def check_parts(
    layout: str, wanted: Iterable[Part], found: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], ...]:
    """Give the parts in the order asked for; refuse missing ones, wrong dtypes and shapes."""
    arrays = []
    for part in wanted:
        if part.suffix not in found:
            raise MissingTensorError(f"{layout} needs {part.suffix}, which is not there")
        array = found[part.suffix]
        check_array(part.suffix, array, NUMPY_DTYPES[part.dtype], part.shape)
        arrays.append(array)
    return tuple(arrays)


def check_array(
    name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """Raise LayoutError unless an array has a dtype and a shape."""
    if array.dtype != dtype or array.shape != shape:
        raise LayoutError(
            f"{name} is {array.dtype} {list(array.shape)}, where {dtype} {list(shape)} belongs"
        )


def check_divides(layout: str, axis: str, count: int, divisor: int) -> None:
    """Raise LayoutError unless `count` values along an axis fill whole words."""
    if count % divisor:
        raise LayoutError(f"{layout} packs {divisor} values along `{axis}` a word, not {count}")
