"""What benchmarks/gpu*.py time: sources on a device, and blocks or groups that are made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.library import Matrix, quantize_matrix
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.device import Memory, Stream
from weightcast.quant.cuda.groups import (
    GroupJob,
    copy_groups_out,
    enqueue_groups,
    made_bytes,
    same_groups,
)
from weightcast.quant.cuda.jobs import (
    FOUND_BYTES,
    DeviceMatrix,
    Job,
    Quantizer,
    enqueue,
    scratch_bytes,
)
from weightcast.quant.groups import Groups, empty_groups, quantize_groups
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import TYPES, GroupType, QuantType

N_IN: Final = 6144
LOSSLESS: Final = "Q8_0 lossless"
GROUP_ROWS: Final = {
    "int4-g128": GroupType(4, 128),
    "int4-g128-asym": GroupType(4, 128, symmetric=False),
    "int4-channel": GroupType(4, 0),
    "int8-g128": GroupType(8, 128),
}
DTYPES: Final = {"I8": np.int8, "F32": np.float32, "BF16": ml_dtypes.bfloat16}


# Set by `gpu_session.sh --stand-in`.
STAND_IN: Final = "WEIGHTCAST_STAND_IN"


def python(module: str) -> list[str]:
    """The command that runs a module, on the tests' stand-in for a driver if there is to be one."""
    stand_in = ["tests.cuda.on_stand_in"] if os.environ.get(STAND_IN) else []
    return [sys.executable, "-m", *stand_in, module]


@dataclass(frozen=True)
class Source:
    """One matrix [n_out, n_in] in host and device memory."""

    host: Matrix
    device: DeviceMatrix
    nbytes: int
    held: tuple[Memory, ...]


@dataclass(frozen=True)
class Work:
    """How one row of the table is made: all of it on the device, parts of it on the processors.

    `same(source, row0, row1)` compares rows that were made of a source last.
    """

    nbytes: int
    enqueue: Callable[[Source], object]
    same: Callable[[Source, int, int], bool]
    on_cpu: Callable[[Matrix], object]


def quantized_floats(n_out: int, exact: bool) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [in, out] and scales [1, out]; scales that float16 cannot hold make Q8_0 requantize."""
    rng = np.random.default_rng(1)
    some = np.clip(rng.standard_normal((N_IN, 1024), np.float32) * 40, -128, 127).astype(np.int8)
    codes = np.tile(some, (1, -(-n_out // 1024)))[:, :n_out].copy()
    scales = (10 ** rng.uniform(-4, -2, (1, n_out))).astype(np.float32)
    return codes, scales.astype(ml_dtypes.bfloat16).astype(np.float32) if exact else scales


def upload(stream: Stream, values: NDArray[Any]) -> Memory:
    memory = stream.gpu.allocate(values.nbytes)
    stream.copy_in(memory.address, values.reshape(-1).view(np.uint8))
    stream.synchronize()
    return memory


def make_source(stream: Stream, dtype: str, n_out: int, exact: bool) -> Source:
    """Put a matrix on the device: int8 [in, out] with scales, or floats [out, in]."""
    codes, scales = quantized_floats(n_out, exact)
    if dtype == "I8":
        held = (upload(stream, codes), upload(stream, scales))
        host = Matrix(codes.reshape(-1), "I8", n_out, N_IN, 1, n_out, scales=scales)
        addresses = (held[0].address, held[1].address)
        device = DeviceMatrix(addresses[0], "I8", n_out, N_IN, 1, n_out, addresses[1], 1, n_out)
        return Source(host, device, codes.nbytes + scales.nbytes, held)
    values = np.ascontiguousarray((codes * scales).T).astype(DTYPES[dtype])
    memory = upload(stream, values)
    flat = values.reshape(-1)
    host = Matrix(flat.view(np.uint16) if dtype == "BF16" else flat, dtype, n_out, N_IN, N_IN, 1)
    device = DeviceMatrix(memory.address, dtype, n_out, N_IN, N_IN, 1)
    return Source(host, device, values.nbytes, (memory,))


class Sources:
    """Matrices of one size on a device, each made at its first use."""

    def __init__(self, stream: Stream, n_out: int) -> None:
        self._stream, self._n_out = stream, n_out
        self._made: dict[tuple[str, bool], Source] = {}

    def source(self, dtype: str, *, exact: bool) -> Source:
        """Give the matrix of a dtype; `exact`: with scales that float16 holds."""
        key = (dtype, exact)
        if key not in self._made:
            self._made[key] = make_source(self._stream, dtype, self._n_out, exact)
        return self._made[key]


def part(matrix: Matrix, row0: int, row1: int) -> Matrix:
    """Rows of a matrix in host memory."""
    return Matrix(
        matrix.data,
        matrix.dtype,
        row1 - row0,
        matrix.n_in,
        matrix.stride_out,
        matrix.stride_in,
        start=row0 * matrix.stride_out,
        scales=None if matrix.scales is None else matrix.scales[:, row0:row1],
    )


def importance_for(quant_type: QuantType, weighed: bool) -> NDArray[np.float32] | None:
    if quant_type.importance == "required" or (weighed and quant_type.importance == "optional"):
        return noise_importance()
    return None


def noise_importance() -> NDArray[np.float32]:
    return np.square(np.random.default_rng(2).standard_normal(N_IN, np.float32))


def block_work(
    stream: Stream,
    row: str,
    n_out: int,
    weighed: bool,
    kernels: Callable[[str], Quantizer] | None = None,
    search: Search = GGML,
) -> Work:
    """Make rows of blocks, by the package's kernels or by others for a type of source."""
    quant_type, gpu = TYPES[row.split()[0]], stream.gpu
    factors = importance_for(quant_type, weighed)
    row_bytes = quant_type.row_bytes(N_IN)
    target = gpu.allocate(n_out * row_bytes)
    scratch = gpu.allocate(scratch_bytes(quant_type, n_out, weighed=factors is not None))
    uploaded = None if factors is None else upload(stream, factors)

    def own(dtype: str) -> Quantizer:
        return cuda_kernels.quantizer(gpu, quant_type, factors is not None, dtype, search)

    def start(source: Source) -> None:
        importance = 0 if uploaded is None else uploaded.address
        addresses = (target.address, row_bytes, scratch.address, importance)
        dtype = source.device.dtype
        made_by = kernels(dtype) if kernels else own(dtype)
        enqueue(stream, made_by, Job(source.device, quant_type, *addresses, search.effort))

    def on_cpu(matrix: Matrix) -> NDArray[np.uint8]:
        rows = np.zeros((matrix.n_out, row_bytes), np.uint8)
        quantize_matrix(matrix, quant_type, rows, factors, search)
        return rows

    def same(source: Source, row0: int, row1: int) -> bool:
        made = np.zeros((row1 - row0, row_bytes), np.uint8)
        stream.copy_out(made, target.address + row0 * row_bytes)
        stream.synchronize()
        return np.array_equal(made, on_cpu(part(source.host, row0, row1)))

    return Work(n_out * row_bytes, start, same, on_cpu)


def group_work(stream: Stream, row: str, n_out: int, weighed: bool) -> Work:
    """Make groups, searched for."""
    group_type, gpu = GROUP_ROWS[row], stream.gpu
    factors = noise_importance() if weighed else None
    made = empty_groups(group_type, n_out, N_IN)
    target, scratch = gpu.allocate(made_bytes(made)), gpu.allocate(FOUND_BYTES)
    uploaded = None if factors is None else upload(stream, factors)

    def job(source: Source) -> GroupJob:
        importance = 0 if uploaded is None else uploaded.address
        return GroupJob(source.device, group_type, target.address, scratch.address, importance)

    def on_cpu(matrix: Matrix) -> Groups:
        return quantize_groups(matrix, group_type, factors)

    def same(source: Source, row0: int, row1: int) -> bool:
        copy_groups_out(stream, job(source), made)
        stream.synchronize()
        zero_points = made.zero_points
        some = Groups(
            made.codes[row0:row1],
            made.scales[row0:row1],
            None if zero_points is None else zero_points[row0:row1],
        )
        return same_groups(some, on_cpu(part(source.host, row0, row1)))

    def start(source: Source) -> None:
        kernels = cuda_kernels.group_quantizer(gpu, weighed, source.device.dtype)
        enqueue_groups(stream, kernels, job(source), made)

    return Work(made_bytes(made), start, same, on_cpu)
