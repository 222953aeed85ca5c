"""Quantize rows of the source again in each plausible way, and compare them with the artifact.

Other tools start from rounded weights, so rows made of those are tried too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare import PairedTask, floats
from weightcast.converters.targets.packing import Packing
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray, read_stored
from weightcast.formats.packed.layout import Segment
from weightcast.quant.backend import Backend, as_matrix
from weightcast.quant.cpu.library import Blocks, Matrix, SourceValueError
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.metrics import Errors
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import F32, Q8_0, TYPES, QuantType

# Origins of rows: the source itself, or roundings that other tools start from.
SOURCE: Final = "the source"
SYMMETRIC: Final = "the source, in symmetric groups"
TRUNCATED: Final = "bf16, cut"
_ROUNDED: Final[dict[str, Any]] = {
    "float32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
}


@dataclass(frozen=True, slots=True)
class RowComparison:
    """Rows of an artifact compared with rows made of the source.

    `origin` is what they were made of, None if it was not found; then `different` counts bytes
    unlike the likest, the first of them at file offset `first`, and `expected` are the errors that
    the type makes.
    """

    nbytes: int
    origin: str | None
    different: int = 0
    first: int | None = None
    expected: Errors | None = None


def compare(
    task: PairedTask,
    importance: NDArray[np.float32] | None,
    backend: Backend,
    search: Search = GGML,
) -> RowComparison:
    """Make rows again and compare them; those of a `search` may be ggml's all the same.

    Raises CheckpointError if the source cannot be read.
    """
    found = _compare(_Requantized(task, importance, backend, search))
    if found.origin is None and search != GGML:
        by_ggml = _compare(_Requantized(task, importance, backend, GGML))
        found = found if by_ggml.origin is None else by_ggml
    return found


def _compare(made: _Requantized) -> RowComparison:
    likest: tuple[int, int | None] | None = None
    for origin in made.origins() if made.is_written else ():
        try:
            nbytes, different, first = made.difference(origin)
        except LayoutError as problem:
            # Of asymmetric groups, GPTQ has zero points that cannot be written: only measured.
            is_expected = made.has_lookalike or isinstance(problem, SourceValueError)
            if origin == SOURCE and not is_expected:
                raise
            continue  # values beyond the type: it was not made of them
        if not different:
            return RowComparison(nbytes, origin)
        if likest is None or different < likest[0]:
            likest = different, first
    expected = made.expected()
    nbytes = made.nbytes or made.weights  # of rows that are only measured, a byte a weight
    different, first = likest or (nbytes, None)
    return RowComparison(nbytes, None, different, first, expected)


class _Requantized:
    """Rows of an artifact, quantized again from each origin."""

    def __init__(
        self,
        task: PairedTask,
        importance: NDArray[np.float32] | None,
        backend: Backend,
        search: Search,
    ) -> None:
        self._task = task
        self._backend = backend
        self._search = search
        self._source = task.source.matrix(task.row0, task.row1)
        self._output = task.rows.output
        self._array = self._output.views[0].array
        self._packing = packing_of(self._array, search)
        self._importance = importance
        self._floats: NDArray[np.float32] | None = None
        self.nbytes = 0

    @property
    def weights(self) -> int:
        return (self._task.row1 - self._task.row0) * self._output.shape[1]

    @property
    def is_written(self) -> bool:
        """Tell whether rows can be made as these are stored."""
        return self._packing is None or self._packing.layout.is_written

    @property
    def has_lookalike(self) -> bool:
        return self._packing is not None and self._packing.type.lookalike is not None

    def origins(self) -> Iterator[str]:
        """Name the origins to try, the likeliest first."""
        yield SOURCE
        is_int8 = isinstance(self._source, Matrix) and self._source.scales is not None
        quant_type = self._type
        if is_int8 and (quant_type == Q8_0 or self._may_keep_codes):
            yield "float32"
        if self.has_lookalike:
            yield SYMMETRIC
        for name in ("bf16", "f16"):
            if quant_type is None or quant_type.name != name.upper():
                yield name
        yield TRUNCATED

    @property
    def _type(self) -> QuantType | None:
        return None if self._packing is not None else TYPES.get(self._output.views[0].dtype)

    @property
    def _may_keep_codes(self) -> bool:
        return self._packing is not None and self._packing.type.carries_codes

    def _made_of(self, origin: str) -> Matrix | Blocks:
        if origin in (SOURCE, SYMMETRIC):
            return self._source
        if self._floats is None:
            task = self._task
            self._floats = floats(task.source, task.row0, task.row1)
        if origin == TRUNCATED:
            rounded = (self._floats.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        else:
            with np.errstate(over="ignore"):
                rounded = self._floats.astype(_ROUNDED[origin]).astype(np.float32)
        n_out, n_in = rounded.shape
        return Matrix(rounded.reshape(-1), F32.name, n_out, n_in, n_in, 1)

    def difference(self, origin: str) -> tuple[int, int, int | None]:
        """Quantize and compare: bytes, those that differ, file offset of the first."""
        if self._packing is not None:
            nbytes, different, first = self._packed_difference(origin)
        else:
            there = self._task.output.stored_rows(self._task.row0, self._task.row1)
            unlike = np.flatnonzero(self._rows(origin) != there)
            nbytes, different = there.size, unlike.size
            first = self._offset(int(unlike[0])) if different else None
        self.nbytes = nbytes
        return nbytes, different, first

    def _offset(self, index: int) -> int | None:
        """Tell where a byte of the rows lies; None if several files have a share of each row."""
        view = self._output.single
        if view is None:
            return None
        n_in = view.shape[1]
        if view.is_blocked:
            row = view.start // n_in + self._task.start
            return self._array.offset + row * TYPES[view.dtype].row_bytes(n_in) + index
        row, column = divmod(index // view.item_bytes, n_in)
        stride_out, stride_in = view.strides
        at = view.start + (self._task.start + row) * stride_out + column * stride_in
        return self._array.offset + at * view.item_bytes + index % view.item_bytes

    def _rows(self, origin: str) -> NDArray[np.uint8]:
        source, quant_type = self._made_of(origin), self._type
        assert quant_type is not None
        if isinstance(source, Blocks) and source.type == quant_type:
            return source.data
        made = np.empty(source.n_out * quant_type.row_bytes(source.n_in), np.uint8)
        importance = self._importance
        if importance is None and quant_type.importance == "required":
            importance = np.ones(source.n_in, np.float32)
        self._backend.quantize(source, quant_type, made, importance, self._search)
        return made

    def _packed_difference(self, origin: str) -> tuple[int, int, int | None]:
        nbytes = different = 0
        first = None
        constants = self._constants(origin)
        for segment in (*self._segments(origin), *constants):
            part, there = _stored_segment(self._array, segment)
            unlike = np.argwhere(segment.data != there)
            nbytes += there.size
            different += len(unlike)
            if len(unlike):
                run, byte = map(int, unlike[0])
                offset = part.offset + segment.offset + run * segment.stride + byte
                first = offset if first is None else min(first, offset)
        return nbytes, different, first

    def _segments(self, origin: str) -> list[Segment]:
        packing, source = self._packing_for(origin), self._made_of(origin)
        has_codes = isinstance(source, Matrix) and source.scales is not None
        keeps_codes = self._may_keep_codes and has_codes
        packing = replace(packing, keeps_codes=keeps_codes, allow_requantize=True)
        n_out, start = self._output.shape[0], self._task.start
        try:
            made = packing.pack(source, n_out, start, self._importance, self._backend)
        except LayoutError:
            if not keeps_codes:
                raise
            packing = replace(packing, keeps_codes=False)  # groups straddle the source's
            made = packing.pack(source, n_out, start, self._importance, self._backend)
        return list(made.segments)

    def _packing_for(self, origin: str) -> Packing:
        packing = self._packing
        assert packing is not None
        if origin != SYMMETRIC:
            return packing
        assert packing.type.lookalike is not None
        return replace(packing, type=packing.type.lookalike)

    def _constants(self, origin: str) -> Iterator[Segment]:
        """Give the zero points of symmetric groups, which do not depend on the weights."""
        if origin != SYMMETRIC:
            return
        n_out, n_in = self._output.shape
        for suffix, raw in self._packing_for(origin).constants(n_out, n_in).items():
            data = np.frombuffer(raw, np.uint8).reshape(1, -1)
            yield Segment(suffix, data, 0, data.size)

    def expected(self) -> Errors | None:
        """Measure the errors that the type makes of these rows, from the worst right origin."""
        matrix = as_matrix(self._source)
        worst: Errors | None = None
        for origin in self.origins():
            if origin == TRUNCATED:
                continue
            try:
                errors = self._errors_of(matrix, origin)
            except LayoutError:  # values beyond the type
                continue
            if worst is None or errors.total().relative_rms > worst.total().relative_rms:
                worst = errors
        return worst

    def _errors_of(self, matrix: Matrix, origin: str) -> Errors:
        if self._packing is None:
            quant_type = self._type
            assert quant_type is not None
            return measure_matrix(matrix, quant_type, self._rows(origin))
        coding, weight_type = self._packing.layout.coding, self._packing.type
        source = as_matrix(self._made_of(origin))
        made = coding.quantize(
            source, weight_type, self._importance, self._backend, None, self._search
        )
        return measure_matrix(matrix, *coding.values(made.rows, weight_type))


def packing_of(array: StoredArray, search: Search = GGML) -> Packing | None:
    """Tell how a matrix of a directory was packed; None for plain floats and GGUF."""
    if array.packed is None:
        return None
    return Packing(array.packed.stored_as, array.packed.type, search=search)


def _stored_segment(array: StoredArray, segment: Segment) -> tuple[StoredArray, NDArray[np.uint8]]:
    """Read the bytes that a segment would be written to."""
    assert array.packed is not None
    part = array.packed.parts[segment.suffix]
    runs, run_bytes = segment.data.shape
    there = np.empty((runs, run_bytes), np.uint8)
    fd = os.open(part.path, os.O_RDONLY)
    try:
        if segment.stride == run_bytes:
            read_stored(fd, part, segment.offset, there.reshape(-1).data)
        else:
            for number, run in enumerate(there):
                read_stored(fd, part, segment.offset + number * segment.stride, run.data)
    finally:
        os.close(fd)
    return part, there
