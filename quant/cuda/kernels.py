"""The kernels of each device: loaded at their first use, and not used before they proved right.

A kernel is compared with the CPU's, byte by byte, on a small matrix. So a compiler, driver or
device that rounds otherwise is found before it writes anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.errors import DeviceError
from weightcast.quant.cpu import library
from weightcast.quant.cpu.library import (
    Matrix,
    ScaleOverflowError,
    dequantize_bytes,
    quantize_matrix,
)
from weightcast.quant.cpu.metrics import measure_moments
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda import launch as cuda_launch
from weightcast.quant.cuda.device import Gpu, Kernel, Memory, Module, Stream
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
    Measurer,
    Quantizer,
    enqueue,
    enqueue_dequantize,
    enqueue_measure,
    moments_bytes,
    scratch_bytes,
)
from weightcast.quant.groups import empty_groups, quantize_groups
from weightcast.quant.metrics import MOMENTS, Baseline
from weightcast.quant.search import EFFORTS, GGML, Search
from weightcast.quant.types import F32, I8, GroupType, QuantType
from weightcast.text import option

# Groups that a kernel is proven with: of one chunk, of some, of whole rows.
_TRIAL_GROUPS: Final = tuple(
    GroupType(bits, size, symmetric, scale_dtype)
    for bits, symmetric, (size, scale_dtype) in product(
        (4, 8), (True, False), ((32, "F32"), (96, "F16"), (0, "BF16"))
    )
)
_FLOATS: Final = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_TRIAL_GROUPS_IN: Final = 288  # half of it, where scales change, is within a chunk


@cache
def _module(gpu: Gpu, unit: str) -> Module:
    return gpu.module(cuda_compile.image(unit, gpu.architecture))


_locks: dict[tuple[object, ...], threading.Lock] = {}


def _lock(*made: object) -> threading.Lock:
    """A lock for each thing that is made once, whoever comes first; setdefault is atomic."""
    return _locks.setdefault(made, threading.Lock())


def quantizer(
    gpu: Gpu, quant_type: QuantType, weighed: bool, source: str, search: Search = GGML
) -> Quantizer:
    """Give the kernels that make a type of a source's ("F32") with an importance or without.

    Those that search for the least error serve both, and all efforts. Raises DeviceError if they
    cannot be compiled or loaded, or make other bytes than the CPU.
    """
    if search.is_least_error and not quant_type.is_plain:
        with _lock(gpu, quant_type, "search", source):
            return _searcher(gpu, quant_type, source)
    # A second one would point the same module to tables of its own, and free them.
    with _lock(gpu, quant_type, weighed, source):
        return _quantizer(gpu, quant_type, weighed, source)


def group_quantizer(gpu: Gpu, weighed: bool, source: str) -> Quantizer:
    """Give the kernels that make groups. Raises DeviceError as `quantizer` does."""
    with _lock(gpu, "groups", weighed, source):
        return _group_quantizer(gpu, weighed, source)


def dequantizer(gpu: Gpu, quant_type: QuantType) -> Kernel:
    """Give the kernel that unpacks a type on a device. Raises DeviceError as `quantizer` does."""
    with _lock(gpu, quant_type):
        return _dequantizer(gpu, quant_type)


def measurer(gpu: Gpu, quant_type: QuantType, source: str) -> Measurer:
    """Give the kernels that measure a type's errors. Raises DeviceError as `quantizer` does."""
    with _lock(gpu, quant_type, source):
        return _measurer(gpu, quant_type, source)


@cache
def _quantizer(gpu: Gpu, quant_type: QuantType, weighed: bool, source: str) -> Quantizer:
    found = _loaded(gpu, quant_type, f"quantize_{'weighed_' if weighed else ''}", source)
    _prove(found, quant_type, weighed=weighed)
    return found


@cache
def _searcher(gpu: Gpu, quant_type: QuantType, source: str) -> Quantizer:
    found = replace(_loaded(gpu, quant_type, "search_", source), searches=True)
    for effort, weighed in product(EFFORTS, (False, True)):
        if weighed or quant_type.importance != "required":
            _prove(found, quant_type, weighed=weighed, search=Search(effort))
    return found


def _loaded(gpu: Gpu, quant_type: QuantType, unit: str, source: str) -> Quantizer:
    """Load the kernels of a unit that begins so, with the tables that they search."""
    name = f"{unit}{quant_type.name}_from_{source}"
    module = _module(gpu, name)
    tables = None
    if quant_type.has_grid:
        with _lock(gpu, quant_type, "tables"):
            tables = _tables(gpu, quant_type)
        stream = gpu.stream()
        setter = module.kernel("weightcast_set_tables")
        stream.launch(setter, (1,), (1,), 0, (ctypes.c_uint64(tables.address),))
        stream.synchronize()
    return _with_checks(module.kernel(f"weightcast_{name}"), source, tables)


@cache
def _tables(gpu: Gpu, quant_type: QuantType) -> Memory:
    """Copy the tables of a type with a grid to a device, once for all its kernels."""
    values = library.grid_tables(quant_type)
    tables = gpu.allocate(values.nbytes)
    stream = gpu.stream()
    stream.copy_in(tables.address, values)
    stream.synchronize()
    return tables


def _with_checks(kernel: Kernel, source: str, tables: Memory | None = None) -> Quantizer:
    """A kernel that quantizes, with those that look at its input first."""
    checks = _module(kernel.gpu, "checks")
    return Quantizer(
        kernel,
        checks.kernel("weightcast_check_scales"),
        checks.kernel("weightcast_check_importance"),
        checks.kernel("weightcast_row_means"),
        source,
        tables=tables,
    )


@cache
def _group_quantizer(gpu: Gpu, weighed: bool, source: str) -> Quantizer:
    name = f"make_{'weighed_' if weighed else ''}groups_from_{source}"
    found = _with_checks(_module(gpu, name).kernel(f"weightcast_{name}"), source)
    for group_type in _TRIAL_GROUPS:
        _prove_groups(found, group_type, weighed=weighed)
    return found


@cache
def _dequantizer(gpu: Gpu, quant_type: QuantType) -> Kernel:
    name = f"dequantize_{quant_type.name}"
    kernel = _module(gpu, name).kernel(f"weightcast_{name}")
    n_blocks = 300
    blocks = _noise(n_blocks * quant_type.block_bytes)
    n_elements = n_blocks * quant_type.block_elements
    source, target = gpu.allocate(blocks.nbytes), gpu.allocate(4 * n_elements)
    made = np.empty(n_elements, np.float32)
    stream = gpu.stream()
    stream.copy_in(source.address, blocks)
    enqueue_dequantize(stream, kernel, quant_type, source.address, n_blocks, target.address)
    stream.copy_out(made, target.address)
    stream.synchronize()
    wanted = dequantize_bytes(quant_type, blocks, n_elements)
    same = (made.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(made) & np.isnan(wanted))
    _require(bool(same.all()), gpu, kernel)
    return kernel


@cache
def _measurer(gpu: Gpu, quant_type: QuantType, source: str) -> Measurer:
    name = f"measure_{quant_type.name}_from_{source}"
    module = _module(gpu, name)
    add_chunks = module.kernel("weightcast_add_chunks")
    found = Measurer(module.kernel(f"weightcast_{name}"), add_chunks, source)
    _prove_measures(found, quant_type)
    return found


def _require(right: bool, gpu: Gpu, kernel: Kernel) -> None:
    if not right:
        raise DeviceError(
            f"{gpu.label} ({gpu.name}): {kernel.name} makes other bytes than the CPU; "
            f"use {option('device', 'cpu')} and report this with the versions of driver and "
            "nvidia-cuda-nvrtc"
        )


def _noise(n: int) -> NDArray[np.uint8]:
    """The same n bytes each time."""
    return np.random.default_rng(n).integers(0, 256, n, np.uint8)


def _trial(n_in: int, dtype: str) -> Matrix:
    """Make a small matrix: sizes far apart, zeros, one sign, constants; tiles that are not full."""
    n_out = 37
    rng = np.random.default_rng(n_in)
    if dtype == I8.name:
        values = rng.integers(-128, 128, (n_in, n_out), np.int8)
        # Two groups, which split a block; every third scale is exact in float16.
        scales = (2.0 ** rng.uniform(-14, 3, (2, n_out))).astype(np.float32)
        scales[:, ::3] = scales[:, ::3].astype(np.float16)
        return Matrix(values.reshape(-1), "I8", n_out, n_in, 1, n_out, scales=scales)
    x = rng.standard_normal((n_out, n_in)) * 10.0 ** rng.uniform(-6, 3, (n_out, 1))
    x[:4] = np.array([0.0, 1.0, -3.0, 1e-40])[:, None]
    x[4:8] = np.abs(x[4:8]) * np.array([1, -1, 1, -1])[:, None]
    x[8:16] = np.round(x[8:16] / np.abs(x[8:16]).max(axis=1, keepdims=True) * 8)
    stored = x.astype(_FLOATS[dtype]).reshape(-1)
    values = stored if dtype == F32.name else stored.view(np.uint16)
    return Matrix(values, dtype, n_out, n_in, n_in, 1)


def _copied(
    stream: Stream, matrix: Matrix, more: NDArray[np.generic] | None
) -> tuple[DeviceMatrix, int, Memory]:
    """Copy a matrix and more numbers to a device; both are where the memory is."""
    parts: list[NDArray[np.generic] | None] = [matrix.data, matrix.scales, more]
    addresses, nbytes = [], 0
    for part in parts:
        addresses.append(nbytes)
        nbytes += 0 if part is None else -(-part.nbytes // 16) * 16
    memory = stream.gpu.allocate(nbytes)
    for place, part in enumerate(parts):
        addresses[place] = 0 if part is None else memory.address + addresses[place]
        if part is not None:
            stream.copy_in(addresses[place], part)
    on_device = DeviceMatrix(
        addresses[0],
        matrix.dtype,
        matrix.n_out,
        matrix.n_in,
        matrix.stride_out,
        matrix.stride_in,
        scales=addresses[1],
        groups=1 if matrix.scales is None else len(matrix.scales),
        scale_stride=matrix.n_out,
    )
    return on_device, addresses[2], memory


def _prove_measures(found: Measurer, quant_type: QuantType) -> None:
    """Raise DeviceError unless the errors of any blocks are the CPU's, bit by bit."""
    gpu = found.measure.gpu
    # More than one chunk, the last not full; also infinite scales.
    matrix = _trial(cuda_launch.CHUNK + 768, found.source)
    row_bytes = quant_type.row_bytes(matrix.n_in)
    rows = _noise(matrix.n_out * row_bytes)
    rows[: row_bytes * 2] = 0  # blocks of zeros, of zeros and others
    importance = _noise(matrix.n_in).astype(np.float32)
    made = np.ones(matrix.n_out, MOMENTS)
    moments = gpu.allocate(moments_bytes(matrix.n_out, matrix.n_in))
    stream = gpu.stream()
    after = -(-rows.nbytes // 16) * 16
    more = np.concatenate(
        [rows, np.zeros(after - rows.nbytes, np.uint8), importance.view(np.uint8)]
    )
    on_device, blocks, _source = _copied(stream, matrix, more)
    for weights, baseline in ((None, Baseline.STORED), (importance, Baseline.BF16)):
        wanted = measure_moments(matrix, quant_type, rows, weights, baseline)
        factors = 0 if weights is None else blocks + after
        job = Job(on_device, quant_type, blocks, row_bytes, scratch=0, importance=factors)
        enqueue_measure(stream, found, job, moments.address, baseline)
        stream.copy_out(made.view(np.uint8), moments.address)
        stream.synchronize()
        same = all(
            np.array_equal(made[name], wanted[name], equal_nan=True) for name in MOMENTS.names or ()
        )
        _require(same, gpu, found.measure)


def _prove(
    found: Quantizer, quant_type: QuantType, *, weighed: bool, search: Search = GGML
) -> None:
    """Raise DeviceError unless a small matrix gets the CPU's bytes."""
    gpu = found.quantize.gpu
    matrix = _trial(3 * max(quant_type.block_elements, 32), found.source)
    shape = (matrix.n_out, quant_type.row_bytes(matrix.n_in))
    wanted, made = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    importance = _noise(matrix.n_in).astype(np.float32) if weighed else None
    with contextlib.suppress(ScaleOverflowError):  # the blocks are complete all the same
        quantize_matrix(matrix, quant_type, wanted, importance, search)
    target = gpu.allocate(made.nbytes)
    scratch = gpu.allocate(scratch_bytes(quant_type, matrix.n_out, weighed=weighed))
    stream = gpu.stream()
    on_device, factors, _source = _copied(stream, matrix, importance)
    addresses = (target.address, shape[1], scratch.address, factors)
    job = Job(on_device, quant_type, *addresses, search.effort)
    enqueue(stream, found, job)
    stream.copy_out(made, target.address)
    stream.synchronize()
    _require(np.array_equal(made, wanted), gpu, found.quantize)


def _prove_groups(found: Quantizer, group_type: GroupType, *, weighed: bool) -> None:
    """Raise DeviceError unless the groups of a small matrix are the CPU's bytes."""
    gpu = found.quantize.gpu
    matrix = _trial(_TRIAL_GROUPS_IN, found.source)
    importance = _noise(matrix.n_in).astype(np.float32) if weighed else None
    wanted = quantize_groups(matrix, group_type, importance)
    made = empty_groups(group_type, matrix.n_out, matrix.n_in)
    target, scratch = gpu.allocate(made_bytes(made)), gpu.allocate(FOUND_BYTES)
    stream = gpu.stream()
    stream.fill(target.address, target.nbytes, 0xA5)
    on_device, factors, _source = _copied(stream, matrix, importance)
    job = GroupJob(on_device, group_type, target.address, scratch.address, factors)
    enqueue_groups(stream, found, job, made)
    copy_groups_out(stream, job, made)
    stream.synchronize()
    _require(same_groups(made, wanted), gpu, found.quantize)
