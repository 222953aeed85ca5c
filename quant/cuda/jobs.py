"""Matrices in device memory and what the kernels find in them: launches, and errors in our words.

A job is enqueued on a stream and reported on after the stream was synchronized.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.library import (
    BlockCounts,
    bad_groups,
    bad_importance,
    not_finite,
    overflowed,
)
from weightcast.quant.cuda import launch as cuda_launch
from weightcast.quant.cuda.device import Argument, Kernel, Memory, Stream
from weightcast.quant.cuda.launch import Launch
from weightcast.quant.metrics import MOMENTS, Baseline
from weightcast.quant.types import I8, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, SOURCE_TYPES, QuantType

# With an importance, these weigh errors by the mean of squares of a whole row.
ROW_MEAN_TYPES: Final = (Q4_0, Q4_1, Q5_0, Q5_1)
_FIELDS: Final = (
    "not_finite",
    "overflow",
    "bad_scale",
    "bad_importance",
    "exact_blocks",
    "inexact_scales",
)
FOUND_BYTES: Final = 8 * len(_FIELDS)
_NO_PLACE: Final = 0
_LARGEST: Final = 2**64 - 1


class QuantizeArguments(ctypes.Structure):
    """kernels/device/tile.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("data", "scales", "importance", "means", "dst")),
        ("found", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("n_out", "n_in", "stride_out", "stride_in")),
        *((name, ctypes.c_int64) for name in ("group_rows", "scale_stride")),
        *((name, ctypes.c_int64) for name in ("dst_stride", "row_bytes")),
        *((name, ctypes.c_int32) for name in ("source_type", "column_bits", "out_tiles")),
        *((name, ctypes.c_int32) for name in ("word_bytes", "effort", "reserved")),
    ]


class _CheckArguments(ctypes.Structure):
    """kernels/device/checks.h."""

    _fields_ = [
        ("values", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "n_in")),
        ("found", ctypes.c_uint64),
    ]


class _DequantizeArguments(ctypes.Structure):
    """kernels/device/blocks.h."""

    _fields_ = [
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("n_blocks", ctypes.c_int64),
        ("word_bytes", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """A source matrix [n_out, n_in] in device memory: address of element (0, 0), its strides.

    Strides count elements. int8 needs `scales`, the address of float32 [groups, n_out], groups
    `scale_stride` elements apart.
    """

    address: int
    dtype: str
    n_out: int
    n_in: int
    stride_out: int
    stride_in: int
    scales: int = 0
    groups: int = 1
    scale_stride: int = 0


@dataclass(frozen=True, slots=True)
class Quantizer:
    """The kernels that one type, or groups, take on one device, from one type of source ("F32").

    `searches`: they search for the least error. `tables` are kept while they are in use.
    """

    quantize: Kernel
    check_scales: Kernel
    check_importance: Kernel
    row_means: Kernel
    source: str
    searches: bool = False
    tables: Memory | None = None


@dataclass(frozen=True, slots=True)
class Measurer:
    """The kernels that measure one type's errors on one device, against one type of source."""

    measure: Kernel
    add_chunks: Kernel
    source: str


@dataclass(frozen=True, slots=True)
class Job:
    """The result of a matrix, all in addresses: rows of blocks at `dst`, `dst_stride` apart.

    `importance` is float32 [n_in], or 0 for none. `scratch` has `scratch_bytes` for the job alone.
    `effort` is that of the search for the least error, 0 for ggml's rule.
    """

    matrix: DeviceMatrix
    type: QuantType
    dst: int
    dst_stride: int
    scratch: int
    importance: int = 0
    effort: int = 0

    @property
    def found(self) -> int:
        """Address of what the kernels find, `FOUND_BYTES`."""
        return self.scratch


def scratch_bytes(quant_type: QuantType, n_out: int, *, weighed: bool) -> int:
    """Bytes of device memory that a job needs beside source and rows, a multiple of 8."""
    means = n_out if weighed and quant_type in ROW_MEAN_TYPES else 0
    return FOUND_BYTES + 8 * -(-means // 2)


def enqueue_launch(stream: Stream, kernel: Kernel, launch: Launch, *args: Argument) -> None:
    """Launch a kernel of one dimension."""
    stream.launch(kernel, (launch.thread_blocks,), (launch.threads,), launch.shared_bytes, args)


def enqueue_checks(
    stream: Stream, quantizer: Quantizer, matrix: DeviceMatrix, importance: int, found: int
) -> None:
    """Start looking at scales and importance. `found`: the address of `FOUND_BYTES`, cleared here.

    Raises LayoutError if int8 has no scales, or as many as do not divide a row.
    """
    assert matrix.dtype == quantizer.source
    stream.fill(found, FOUND_BYTES)
    if matrix.dtype == I8.name:
        if not matrix.scales or matrix.n_in % matrix.groups:
            raise bad_groups(matrix.n_in)
        arguments = _CheckArguments(
            matrix.scales, matrix.groups, matrix.n_out, matrix.scale_stride, matrix.n_in, found
        )
        launch = cuda_launch.check_launch(matrix.groups * matrix.n_out)
        enqueue_launch(stream, quantizer.check_scales, launch, arguments)
    if importance:
        n_in = matrix.n_in
        arguments = _CheckArguments(importance, 1, n_in, n_in, n_in, found)
        launch = cuda_launch.check_launch(n_in)
        enqueue_launch(stream, quantizer.check_importance, launch, arguments)


def enqueue(stream: Stream, quantizer: Quantizer, job: Job) -> None:
    """Start a job. The matrix must have at least one block, n_in must be whole blocks.

    Raises LayoutError if int8 has no scales, or as many as do not divide a row, DeviceError for a
    launch that is refused.
    """
    matrix, quant_type = job.matrix, job.type
    assert quantizer.searches == (job.effort > 0 and not quant_type.is_plain)
    enqueue_checks(stream, quantizer, matrix, job.importance, job.found)
    launch = cuda_launch.quantize_launch(
        quant_type,
        matrix.n_out,
        matrix.n_in,
        along_in=matrix.stride_in == 1,
        dst=job.dst,
        dst_stride=job.dst_stride,
    )
    arguments = _arguments(job, launch)
    if job.importance and quant_type in ROW_MEAN_TYPES:
        means = job.found + FOUND_BYTES
        arguments.means = means
        each = cuda_launch.check_launch(matrix.n_out)
        enqueue_launch(stream, quantizer.row_means, each, arguments, ctypes.c_uint64(means))
    enqueue_launch(stream, quantizer.quantize, launch, arguments)


def _arguments(job: Job, launch: Launch) -> QuantizeArguments:
    arguments = source_arguments(job.matrix)
    arguments.importance = job.importance
    arguments.dst, arguments.dst_stride = job.dst, job.dst_stride
    arguments.found = job.found
    arguments.row_bytes = job.type.row_bytes(job.matrix.n_in)
    arguments.column_bits = launch.columns.bit_length() - 1
    arguments.out_tiles = -(-job.matrix.n_out // launch.columns)
    arguments.word_bytes = launch.word_bytes
    arguments.effort = job.effort
    return arguments


def source_arguments(matrix: DeviceMatrix) -> QuantizeArguments:
    """Describe a source to the kernels; what is made of it is left empty."""
    return QuantizeArguments(
        data=matrix.address,
        scales=matrix.scales,
        n_out=matrix.n_out,
        n_in=matrix.n_in,
        stride_out=matrix.stride_out,
        stride_in=matrix.stride_in,
        group_rows=matrix.n_in // matrix.groups,
        scale_stride=matrix.scale_stride,
        source_type=SOURCE_TYPES[matrix.dtype].ggml_id,
    )


def moments_bytes(n_out: int, n_in: int) -> int:
    """Bytes of device memory that measuring needs, whose first MOMENTS [n_out] are the result."""
    return MOMENTS.itemsize * n_out * cuda_launch.chunks_of(n_in)


def enqueue_measure(
    stream: Stream,
    measurer: Measurer,
    job: Job,
    moments: int,
    baseline: Baseline = Baseline.STORED,
) -> None:
    """Start comparing a matrix with the blocks at `dst`, which a job may still have to make.

    `moments` is the address of `moments_bytes`. The job's importance weighs the weighted sums, its
    scratch is not used. Raises LayoutError if scales do not divide rows.
    """
    matrix = job.matrix
    assert matrix.dtype == measurer.source
    if matrix.dtype == I8.name and (not matrix.scales or matrix.n_in % matrix.groups):
        raise bad_groups(matrix.n_in)
    chunks = cuda_launch.chunks_of(matrix.n_in)
    launch = cuda_launch.error_launch(matrix.n_out * chunks)
    parts, rounded = ctypes.c_uint64(moments), ctypes.c_int32(baseline is Baseline.BF16)
    enqueue_launch(stream, measurer.measure, launch, _arguments(job, launch), rounded, parts)
    if chunks > 1:
        sizes = ctypes.c_int64(matrix.n_out), ctypes.c_int64(chunks)
        launch = cuda_launch.error_launch(matrix.n_out)
        enqueue_launch(stream, measurer.add_chunks, launch, parts, *sizes)


def enqueue_dequantize(
    stream: Stream, kernel: Kernel, quant_type: QuantType, src: int, n_blocks: int, dst: int
) -> None:
    """Start unpacking blocks at `src` to float32 at `dst`, both addresses."""
    if n_blocks:
        launch = cuda_launch.dequantize_launch(quant_type, n_blocks, src)
        arguments = _DequantizeArguments(src, dst, n_blocks, launch.word_bytes)
        enqueue_launch(stream, kernel, launch, arguments)


def report(job: Job, found: NDArray[np.uint64]) -> BlockCounts:
    """Say what a finished job found, uint64 [6], in the order in which the CPU would refuse it.

    Raises what `library.quantize_matrix` raises. Of several elements that are not finite the first
    row's is named, where the CPU names that of the first tile.
    """
    matrix = job.matrix
    overflow = refuse_source(matrix, found)
    counts = BlockCounts()
    if job.type == Q8_0:
        values = dict(zip(_FIELDS, map(int, found), strict=True))
        exact = values["exact_blocks"]
        n_blocks = matrix.n_out * (matrix.n_in // Q8_0.block_elements)
        counts = BlockCounts(exact, n_blocks - exact, values["inexact_scales"])
    if overflow is not None:
        raise overflowed(job.type, *overflow, counts)
    return counts


def refuse_source(matrix: DeviceMatrix, found: NDArray[np.uint64]) -> tuple[int, int] | None:
    """Raise the error for a source or importance that kernels refused, of uint64 [6].

    Else gives the first place [out, in] whose output overflows, None if there is none.
    """
    values = dict(zip(_FIELDS, map(int, found), strict=True))

    def place(field: str, row: int) -> tuple[int, int]:
        return divmod(_LARGEST - values[field], row)

    if values["bad_scale"] != _NO_PLACE:
        group, out = place("bad_scale", matrix.n_out)
        raise not_finite(True, out, group * (matrix.n_in // matrix.groups))
    if values["bad_importance"] != _NO_PLACE:
        raise bad_importance(_LARGEST - values["bad_importance"])
    if values["not_finite"] != _NO_PLACE:
        raise not_finite(False, *place("not_finite", matrix.n_in))
    return place("overflow", matrix.n_in) if values["overflow"] != _NO_PLACE else None
