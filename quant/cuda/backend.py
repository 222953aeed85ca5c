"""From host memory over a device and back: what a worker of a conversion quantizes with."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.library import (
    BlockCounts,
    Blocks,
    Matrix,
    check_matrix,
    shaped_importance,
    used_importance,
)
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.device import Gpu, Memory, open_gpu
from weightcast.quant.cuda.groups import (
    GroupJob,
    copy_groups_out,
    enqueue_groups,
    made_bytes,
    report_groups,
)
from weightcast.quant.cuda.jobs import (
    FOUND_BYTES,
    DeviceMatrix,
    Job,
    Measurer,
    enqueue,
    enqueue_dequantize,
    enqueue_measure,
    moments_bytes,
    report,
    scratch_bytes,
)
from weightcast.quant.groups import Groups, empty_groups, measure_groups
from weightcast.quant.metrics import MOMENTS, Baseline, Errors, of_moments
from weightcast.quant.search import GGML, USUAL_EFFORT, Search
from weightcast.quant.types import F32, SOURCE_TYPES, GroupType, QuantType

# Rows on the device start at multiples of this, so that runs of them can be read 16 bytes at once.
_ROW_ALIGNMENT: Final = 64


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


class _Room:
    """Device memory that grows with what is asked of it; what was in it is lost then."""

    def __init__(self, gpu: Gpu, nbytes: int = 0) -> None:
        self._gpu = gpu
        self._memory: Memory | None = gpu.allocate(nbytes) if nbytes else None

    def address(self, nbytes: int) -> int:
        """Give an address with room for nbytes. Raises DeviceError if the device has no more."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self.free()  # first: both may not fit
            self._memory = self._gpu.allocate(nbytes)
        return self._memory.address

    def free(self) -> None:
        if self._memory is not None:
            self._memory.free()
            self._memory = None


def _dtype(source: Matrix | Blocks) -> str:
    """The type of a source's elements on a device, where blocks are unpacked."""
    return F32.name if isinstance(source, Blocks) else source.dtype


def _no_errors(source: Matrix | Blocks) -> Errors:
    """The errors of rows without weights, or of no rows."""
    return of_moments(np.zeros(source.n_out, MOMENTS), source.n_in)


class CudaBackend:
    """One stream of one device with buffers of its own, for one thread at a time.

    Several backends of a device overlap: while one computes, others copy. Sizes are of the largest
    source and the largest output expected, in bytes; larger ones only cost an allocation.
    """

    def __init__(self, device: int, source_bytes: int, blocks_bytes: int) -> None:
        self._gpu = open_gpu(device)
        self._stream = self._gpu.stream()
        self._source = _Room(self._gpu, source_bytes)
        self._rows = _Room(self._gpu, blocks_bytes)
        rooms = (_Room(self._gpu) for _ in range(5))
        self._floats, self._scales, self._importance, self._scratch, self._moments = rooms

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        """Write the rows of a matrix in host memory into dst: `library.quantize_matrix` elsewhere.

        Both are free for other use at the return. Copies of page-locked memory run beside those of
        other backends. Raises DeviceError, and what `quantize_matrix` raises.
        """
        job = self._quantize(source, quant_type, dst, importance, search)
        return BlockCounts() if job is None else self._report(job)

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        search: Search = GGML,
    ) -> tuple[BlockCounts, Errors]:
        """Do as `quantize` does, and compare the rows with the matrix while both are there.

        The importance weighs the weighted sums, whether the type uses it or not.
        """
        kernels = cuda_kernels.measurer(self._gpu, quant_type, _dtype(source))
        job = self._quantize(source, quant_type, dst, importance, search)
        if job is None:
            return BlockCounts(), _no_errors(source)
        if importance is not None and not job.importance:
            importance = shaped_importance(importance, source.n_in)
            job = replace(job, importance=self._copy(self._importance, importance))
        moments = self._measure(kernels, job, baseline)
        counts = self._report(job)
        return counts, of_moments(moments, source.n_in)

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        *,
        effort: int = USUAL_EFFORT,
    ) -> Groups:
        """Make groups of a matrix in host memory, there too: `groups.quantize_groups` elsewhere.

        Raises DeviceError, and what `quantize_groups` raises.
        """
        groups = empty_groups(group_type, source.n_out, source.n_in)
        if importance is not None:
            importance = shaped_importance(importance, source.n_in)
        if groups.codes.size == 0:
            return groups
        weighed = importance is not None
        kernels = cuda_kernels.group_quantizer(self._gpu, weighed, _dtype(source))
        job = GroupJob(
            self._copied_in(source),
            group_type,
            self._rows.address(made_bytes(groups)),
            self._scratch.address(FOUND_BYTES),
            self._copy(self._importance, importance),
            effort,
        )
        enqueue_groups(self._stream, kernels, job, groups)
        copy_groups_out(self._stream, job, groups)
        report_groups(job, self._found(job.found))
        return groups

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        *,
        effort: int = USUAL_EFFORT,
    ) -> tuple[Groups, Errors]:
        """Do as `quantize_groups` does, and compare the groups with the matrix on the processor."""
        groups = self.quantize_groups(source, group_type, importance, effort=effort)
        matrix = source.dequantized() if isinstance(source, Blocks) else source
        return groups, measure_groups(matrix, groups, group_type, importance, baseline)

    def measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        rows: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> Errors:
        """Compare a matrix in host memory with its rows: `error_library.measure_matrix` elsewhere.

        Raises DeviceError, and what `measure_matrix` raises.
        """
        row_bytes = quant_type.row_bytes(source.n_in)
        nbytes = source.n_out * row_bytes
        if nbytes == 0:
            return _no_errors(source)
        assert rows.flags.c_contiguous
        assert rows.nbytes >= nbytes
        kernels = cuda_kernels.measurer(self._gpu, quant_type, _dtype(source))
        matrix = self._copied_in(source)
        blocks = self._copy(self._rows, rows.reshape(-1).view(np.uint8)[:nbytes])
        if importance is not None:
            importance = shaped_importance(importance, source.n_in)
        factors = self._copy(self._importance, importance)
        job = Job(matrix, quant_type, blocks, row_bytes, scratch=0, importance=factors)
        moments = self._measure(kernels, job, baseline)
        self._stream.synchronize()
        return of_moments(moments, source.n_in)

    def _quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None,
        search: Search,
    ) -> Job | None:
        """Start making rows and copying them to dst; None if there are none."""
        importance = used_importance(quant_type, importance, source.n_in, search)
        nbytes = source.n_out * quant_type.row_bytes(source.n_in)
        assert dst.flags.c_contiguous
        assert dst.nbytes >= nbytes
        if nbytes == 0:
            return None
        weighed = importance is not None
        kernels = cuda_kernels.quantizer(self._gpu, quant_type, weighed, _dtype(source), search)
        size = scratch_bytes(quant_type, source.n_out, weighed=weighed)
        job = Job(
            self._copied_in(source),
            quant_type,
            self._rows.address(nbytes),
            nbytes // source.n_out,
            self._scratch.address(size),
            self._copy(self._importance, importance),
            search.effort,
        )
        enqueue(self._stream, kernels, job)
        self._stream.copy_out(dst.reshape(-1).view(np.uint8)[:nbytes], job.dst)
        return job

    def _measure(self, kernels: Measurer, job: Job, baseline: Baseline) -> NDArray[np.void]:
        """Start measuring; the MOMENTS [n_out] are there once the stream was synchronized."""
        n_out, n_in = job.matrix.n_out, job.matrix.n_in
        address = self._moments.address(moments_bytes(n_out, n_in))
        enqueue_measure(self._stream, kernels, job, address, baseline)
        moments = np.empty(n_out, MOMENTS)
        self._stream.copy_out(moments.view(np.uint8), address)
        return moments

    def _report(self, job: Job) -> BlockCounts:
        """Wait for a job that makes rows, and say what it found."""
        return report(job, self._found(job.found))

    def _found(self, address: int) -> NDArray[np.uint64]:
        """Wait for a job, and copy what its kernels found."""
        found = np.zeros(FOUND_BYTES // 8, np.uint64)
        self._stream.copy_out(found, address)
        self._stream.synchronize()
        return found

    def close(self) -> None:
        """Give the device memory back."""
        for room in (self._source, self._rows, self._floats, self._scales, self._importance):
            room.free()
        self._scratch.free()
        self._moments.free()

    def _copy(self, room: _Room, values: NDArray[np.generic] | None) -> int:
        """Copy contiguous values to the device; 0 for none."""
        if values is None:
            return 0
        address = room.address(values.nbytes)
        self._stream.copy_in(address, values)
        return address

    def _copied_in(self, source: Matrix | Blocks) -> DeviceMatrix:
        if isinstance(source, Blocks):
            return self._copy_blocks(source)
        return self._copy_matrix(source)

    def _copy_blocks(self, source: Blocks) -> DeviceMatrix:
        """Copy blocks and unpack them there."""
        n_out, n_in = source.n_out, source.n_in
        nbytes = n_out * source.type.row_bytes(n_in)
        address = self._copy(self._source, source.data[:nbytes])
        floats = self._floats.address(4 * n_out * n_in)
        n_blocks = nbytes // source.type.block_bytes
        kernel = cuda_kernels.dequantizer(self._gpu, source.type)
        enqueue_dequantize(self._stream, kernel, source.type, address, n_blocks, floats)
        return DeviceMatrix(floats, F32.name, n_out, n_in, n_in, 1)

    def _copy_matrix(self, matrix: Matrix) -> DeviceMatrix:
        """Copy a matrix, of runs along `out` or `in` only what is in it, and its scales."""
        check_matrix(matrix)
        item = SOURCE_TYPES[matrix.dtype].block_bytes
        first = matrix.data.ctypes.data + matrix.start * item
        along_in = matrix.stride_in == 1
        run, runs, step = matrix.n_out, matrix.n_in, matrix.stride_in
        if along_in:
            run, runs, step = matrix.n_in, matrix.n_out, matrix.stride_out
        if not (along_in or matrix.stride_out == 1) or step < run:
            # Neither way contiguous, or rows that overlap: everything from the first to the last.
            last = (matrix.n_out - 1) * matrix.stride_out + (matrix.n_in - 1) * matrix.stride_in
            nbytes = (last + 1) * item
            address = self._source.address(nbytes)
            self._stream.copy_in(address, first, nbytes)
            strides = (matrix.stride_out, matrix.stride_in)
        else:
            pitch = _aligned(run * item)
            address = self._source.address(runs * pitch)
            self._stream.copy_in_2d(address, pitch, first, step * item, run * item, runs)
            strides = (pitch // item, 1) if along_in else (1, pitch // item)
        scales = matrix.scales
        if scales is not None:
            scales = np.ascontiguousarray(scales)
        return DeviceMatrix(
            address,
            matrix.dtype,
            matrix.n_out,
            matrix.n_in,
            *strides,
            scales=self._copy(self._scales, scales),
            groups=1 if scales is None else len(scales),
            scale_stride=matrix.n_out,
        )
