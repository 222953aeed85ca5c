"""Read values of tensors as numpy arrays: all of them, some entries, or one chunk after another.

Other than the conversions, this refuses nothing that a file can hold: NaN and infinity are values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index as as_integer
from typing import Any, Final, SupportsIndex

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from weightcast.converters.graph.gather import DTYPES, array_of, floats_into
from weightcast.converters.graph.read import opened, read_slab
from weightcast.converters.graph.resolve import first_array, matrices, windows
from weightcast.converters.graph.sums import StoredMatrix
from weightcast.converters.graph.tensor import Rows, Scaled, Tensor, sliced, take
from weightcast.converters.graph.view import View
from weightcast.errors import CheckpointError, LayoutError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.quant.cpu.library import Blocks, Matrix, SourceValueError, quantize_matrix
from weightcast.quant.types import F32, TYPES

# Of values at a time: enough for disks, little beside a large tensor.
CHUNK_BYTES: Final = 1 << 26
_LEAST_BYTES: Final = 1 << 20
# Numbers that are no weights.
_NUMBERS: Final = ("BOOL", "U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64", "F64")
_FLOATS: Final = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))

Index = tuple[int | slice, ...]


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """Give the dtype of values: float32 for weights, that of the file for other numbers."""
    found = {"" if view.is_readable else view.dtype for view in windows(tensor)}
    if not tensor.size:
        found = {first_array(tensor).dtype}
    only = found.pop() if len(found) == 1 else ""
    return DTYPES[only] if only in _NUMBERS else np.dtype(np.float32)


def checked_dtype(tensor: Tensor, dtype: DTypeLike | None) -> np.dtype[Any]:
    """Give the dtype that is asked for, or the values' own. Raises LayoutError if it is none."""
    own = dtype_of(tensor)
    if dtype is None:
        return own
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise LayoutError(f"{tensor.name}: {dtype!r} is not a dtype of numpy") from None
    if wanted in _FLOATS if own in _FLOATS else np.can_cast(own, wanted):
        return wanted
    known = "float32, float16, bfloat16 or float64" if own in _FLOATS else str(own)
    raise LayoutError(f"{tensor.name}: values cannot be {wanted}; use {known}")


def load(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Load all values [..., out, in] in a dtype that `checked_dtype` gave."""
    result = np.empty(tensor.shape, dtype)
    # Entries that lie far apart are read one by one, not with all that is between them.
    limit = min(CHUNK_BYTES, max(_LEAST_BYTES, 4 * result.nbytes))
    for index, values in chunks(tensor, limit, result if dtype == np.float32 else None):
        if not np.may_share_memory(values, result):
            with np.errstate(over="ignore"):
                result[index] = values
    return result


def chunks(
    tensor: Tensor, limit_bytes: int = CHUNK_BYTES, into: NDArray[np.float32] | None = None
) -> Iterator[tuple[Index, NDArray[Any]]]:
    """Read values in order, whole rows of about `limit_bytes` at a time, with their index.

    Weights are float32, and are put in their place in `into` if it is given; other numbers are as
    they are stored. Raises CheckpointError.
    """
    shape, tensor = tensor.shape, _whole(tensor)
    is_weights = dtype_of(tensor) == np.float32
    places = list(np.ndindex(shape[:-2])) if tensor.size else []
    for place, view in zip(places, matrices(tensor), strict=True):
        rows = _rows_at_once(view, limit_bytes)
        for out0 in range(0, view.shape[0], rows):
            out1 = min(out0 + rows, view.shape[0])
            index = (*place, slice(out0, out1)) if len(shape) > 1 else (slice(None),) * len(shape)
            target = None if into is None else into[index].reshape(out1 - out0, view.shape[1])
            values = _read(view, out0, out1, target, is_weights=is_weights)
            yield index, values if len(shape) > 1 else values.reshape(shape)


def _whole(tensor: Tensor) -> Tensor:
    """Give a tensor without the rows that it is cut into for conversions."""
    return tensor.origin.source if isinstance(tensor.origin, Rows) else tensor


def _rows_at_once(view: StoredMatrix, limit_bytes: int) -> int:
    n_in, multiple = view.shape[1], view.row_multiple
    rows = min(view.rows_per_slab(limit_bytes), limit_bytes // (4 * n_in))
    return max(rows // multiple, 1) * multiple


def _read(
    view: StoredMatrix,
    out0: int,
    out1: int,
    target: NDArray[np.float32] | None,
    *,
    is_weights: bool,
) -> NDArray[Any]:
    buffer = memoryview(bytearray(view.slab_bytes(out0, out1)))
    with _explained(view):
        piece = read_slab(view, out0, out1, buffer).matrix(0, out1 - out0)
    if not is_weights:
        assert isinstance(piece, Matrix)
        return np.ascontiguousarray(array_of(piece))
    values = np.empty((out1 - out0, view.shape[1]), np.float32) if target is None else target
    _fill(values, piece)
    return values


def _fill(values: NDArray[np.float32], piece: Matrix | Blocks) -> None:
    """Fill rows with float32: by the kernels, which stop at what is not finite, or by numpy."""
    if values.flags.c_contiguous and isinstance(piece, Matrix) and piece.dtype in _KERNELS:
        try:
            quantize_matrix(piece, F32, values.reshape(-1).view(np.uint8))
        except SourceValueError:
            floats_into(values, piece)
    else:
        floats_into(values, piece)


_KERNELS: Final = ("F32", "F16", "BF16", "I8")


@contextmanager
def _explained(view: StoredMatrix) -> Iterator[None]:
    """Turn failures of the system into CheckpointError."""
    try:
        yield
    except OSError as problem:
        raise CheckpointError(
            f"{problem.filename or view.path}: cannot be read: {problem.strerror}"
        ) from None


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries of a tensor: a smaller tensor, and how the result is had from its values.

    `tensor` is None if there are no entries. Its values get `shape`, which has no axes for single
    entries, and axes in `flipped` are turned, as they are read forwards.
    """

    tensor: Tensor | None
    shape: tuple[int, ...]
    flipped: tuple[int, ...] = ()

    def load(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Read the entries, and nothing else if it can be avoided."""
        if self.tensor is None:
            return np.empty(self.shape, dtype)
        values: NDArray[Any] = load(self.tensor, dtype).reshape(self.shape)
        return np.ascontiguousarray(np.flip(values, self.flipped)) if self.flipped else values


def select(tensor: Tensor, index: object) -> Selection:
    """Take entries as numpy's basic indexing does: whole numbers, slices and `...`.

    Raises IndexError for entries that are not there, TypeError for other indices.
    """
    found = _whole(tensor)
    shape: list[int] = []
    flipped = []
    is_empty = False
    axis = 0
    for n, (given, size) in enumerate(zip(_expanded(tensor, index), tensor.shape, strict=True)):
        if not isinstance(given, slice):
            at = _entry(tensor, n, given)
            # What is left stays a matrix, so that rows are read as rows.
            is_of_matrix = n >= len(tensor.shape) - 2
            found = sliced(found, axis, at, at + 1) if is_of_matrix else take(found, at, axis)
            axis += is_of_matrix
            continue
        wanted = range(*given.indices(size))
        shape.append(len(wanted))
        is_empty |= not wanted
        if wanted.step < 0:
            flipped.append(len(shape) - 1)
            wanted = wanted[::-1]
        if wanted and len(wanted) < size:
            found = sliced(found, axis, wanted[0], wanted[-1] + 1, wanted.step)
        axis += 1
    return Selection(None if is_empty else found, tuple(shape), tuple(flipped))


def _expanded(tensor: Tensor, index: object) -> list[object]:
    """Give an index for each axis."""
    given = list(index) if isinstance(index, tuple) else [index]
    rank = len(tensor.shape)
    dots = [n for n, each in enumerate(given) if each is Ellipsis]
    if len(dots) > 1:
        raise IndexError(f"{tensor.name}: an index can only have one ellipsis ('...')")
    if len(given) - len(dots) > rank:
        raise IndexError(f"{tensor.name}: {len(given)} indices for {rank} axes")
    at = dots[0] if dots else len(given)
    missing = rank - len(given) + len(dots)
    return [*given[:at], *[slice(None)] * missing, *given[at + 1 :]]


def _entry(tensor: Tensor, axis: int, given: object) -> int:
    is_array = bool(getattr(given, "ndim", 0))
    is_bool = np.dtype(bool) == getattr(given, "dtype", None) or isinstance(given, bool)
    if is_bool or is_array or not isinstance(given, SupportsIndex):
        raise TypeError(
            f"{tensor.name}: index with whole numbers, slices and ..., not with "
            f"{type(given).__name__}; what else numpy knows works on .numpy()"
        )
    size, at = tensor.shape[axis], as_integer(given)
    if not -size <= at < size:
        raise IndexError(f"{tensor.name}: index {at} is out of bounds for axis {axis} of {size}")
    return at % size


def load_stored(tensor: Tensor) -> dict[str, NDArray[Any]]:
    """Load the parts of a tensor as they are stored, by their names; see Tensor.stored.

    Raises LayoutError if matrices are put together from several arrays, or stored unlike others.
    """
    if not tensor.size:
        return _nothing_stored(tensor)
    if isinstance(tensor.origin, Scaled):
        factors = np.array(tensor.origin.factors, np.float32)
        return {**load_stored(tensor.origin.source), "factors": factors}
    views = [matrix.single for matrix in matrices(_whole(tensor))]
    parts: dict[str, list[NDArray[Any]]] = {}
    for view in views:
        if view is None:
            raise LayoutError(f"{tensor.name}: is not stored as one matrix; use .numpy()")
        for name, array in _parts_of(view).items():
            parts.setdefault(name, []).append(array)
    lead = tensor.shape[:-2]
    for arrays in parts.values():
        if len(arrays) != len(views) or len({(a.dtype, a.shape) for a in arrays}) > 1:
            raise LayoutError(f"{tensor.name}: its matrices are stored in different ways")
    return {
        name: np.stack(arrays).reshape(*lead, *arrays[0].shape[len(tensor.shape) < 2 :])
        for name, arrays in parts.items()
    }


def _nothing_stored(tensor: Tensor) -> dict[str, NDArray[Any]]:
    """Give the parts of a tensor without values."""
    dtype = first_array(tensor).dtype
    if dtype in DTYPES:
        return {"values": np.empty(tensor.shape, DTYPES[dtype])}
    row_bytes = TYPES[dtype].row_bytes(tensor.shape[-1])
    return {"blocks": np.empty((*tensor.shape[:-1], row_bytes), np.uint8)}


def _parts_of(view: View) -> dict[str, NDArray[Any]]:
    n_out = view.shape[0]
    with _explained(view):
        if view.array.packed is not None:
            stored = view.array.packed.parts
            return {suffix.lstrip("."): _array(part) for suffix, part in stored.items()}
        slab = read_slab(view, 0, n_out, memoryview(bytearray(view.slab_bytes(0, n_out))))
        piece = slab.matrix(0, n_out)
    if isinstance(piece, Blocks):
        return {"blocks": piece.data.reshape(n_out, -1)}
    values = np.ascontiguousarray(array_of(piece))
    if piece.scales is None:
        return {"values": values}
    return {"codes": values, "scales": np.ascontiguousarray(piece.scales.T)}


def _array(stored: StoredArray) -> NDArray[Any]:
    """Read a stored array, row-major, in its own dtype."""
    raw = bytearray(stored.nbytes)
    with opened(stored.path) as fd:
        read_stored(fd, stored, 0, memoryview(raw))
    return np.frombuffer(raw, DTYPES[stored.dtype]).reshape(stored.shape)
