"""Jobs on device memory, straight: rows at any address and stride, blocks at any address."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda.comparison import assert_same, assert_same_of, on_cpu
from tests.cuda.stand_in import StandIn
from tests.quant.families import gaussian, grok_like
from tests.quant.kernel_types import importance_of, is_slow, least_importance, with_kinds
from tests.quant.sources import LAYOUTS, assert_same_floats, matrix, place, random_rows
from weightcast.quant.cpu.library import Blocks, Matrix, dequantize_bytes
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import Gpu, Memory, Stream, open_gpu
from weightcast.quant.cuda.jobs import (
    FOUND_BYTES,
    DeviceMatrix,
    Job,
    enqueue,
    enqueue_dequantize,
    report,
    scratch_bytes,
)
from weightcast.quant.cuda.launch import dequantized_together
from weightcast.quant.types import F32, Q4_0, Q4_K, Q8_0, TYPES

pytestmark = pytest.mark.usefixtures("kernels")
with_type = pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
CANARY = 0x3C


@pytest.fixture
def gpu(kernels: StandIn | None) -> Gpu:
    return open_gpu(0)


def upload(stream: Stream, values: NDArray[np.generic], shift: int = 0) -> tuple[Memory, int]:
    """Copy values to the end of device memory, `shift` bytes behind a multiple of 256."""
    memory = stream.gpu.allocate(values.nbytes + shift)
    stream.copy_in(memory.address + shift, values)
    return memory, memory.address + shift


def download(stream: Stream, address: int, nbytes: int) -> NDArray[np.uint8]:
    made = np.empty(nbytes, np.uint8)
    stream.copy_out(made, address)
    stream.synchronize()
    return made


@with_kinds("plain", types=tuple(TYPES.values()))
def test_rows_anywhere(quant_type, kind, gpu):
    """Rows at any address and distance are whole, and the bytes between them are not touched."""
    e = max(32, quant_type.block_elements)
    stream = gpu.stream()
    kernels = cuda_kernels.quantizer(gpu, quant_type, kind != "none", "F32")
    for number, (n_out, n_blocks, layout) in enumerate(
        [(5, 1, "out_in"), (33, 2, "in_out"), (9, 3, "in_out"), (9, 18, "out_in")]
    ):
        if is_slow(quant_type) and number > 1:
            break
        n_in = n_blocks * e - (3 if quant_type.block_elements == 1 else 0)
        x = place(grok_like(np.random.default_rng(60), (n_out, n_in)), layout)
        importance = importance_of(kind, n_in)
        expected = on_cpu(matrix(x), quant_type, importance).rows
        memory, address = upload(stream, x.ravel(order="K"))
        strides = tuple(stride // 4 for stride in x.strides)
        source = DeviceMatrix(address, "F32", n_out, n_in, *strides)
        factors = None if importance is None else upload(stream, importance)
        size = scratch_bytes(quant_type, n_out, weighed=importance is not None)
        scratch = gpu.allocate(size)
        for shift, extra in [(0, 0), (0, 4), (2, 2), (1, 0), (0, 1), (4, 6), (3, 5)]:
            width = quant_type.row_bytes(n_in)
            stride = width + extra
            whole = gpu.allocate(8 + n_out * stride + 8)
            stream.fill(whole.address, whole.nbytes, CANARY)
            first = whole.address + 4 + shift
            job = Job(
                source, quant_type, first, stride, scratch.address, factors[1] if factors else 0
            )
            enqueue(stream, kernels, job)
            made = download(stream, whole.address, whole.nbytes)
            found = download(stream, job.found, FOUND_BYTES).view(np.uint64)
            report(job, found)
            wanted = np.full(whole.nbytes, CANARY, np.uint8)
            rows = np.lib.stride_tricks.as_strided(
                wanted[4 + shift :], (n_out, width), (stride, 1), writeable=True
            )
            rows[...] = expected
            assert np.array_equal(made, wanted), (shift, extra)
            whole.free()
        del memory, factors


@with_type
def test_dequantizers(quant_type, gpu):
    """Any bytes, at any address; counts of blocks around those of a thread block."""
    stream = gpu.stream()
    kernel = cuda_kernels.dequantizer(gpu, quant_type)
    full = dequantized_together(quant_type)
    counts = (1, 2, full - 1, full, full + 1, 2 * full + 3)
    for n_blocks, shift in zip(counts, (0, 1, 2, 3, 4, 6), strict=True):
        blocks = random_rows(n_blocks, quant_type, 1, n_blocks).reshape(-1)
        n = n_blocks * quant_type.block_elements
        source, address = upload(stream, blocks, shift)
        target = gpu.allocate(4 * (n + 4))
        stream.fill(target.address, target.nbytes, CANARY)
        enqueue_dequantize(stream, kernel, quant_type, address, n_blocks, target.address + 8)
        made = download(stream, target.address, target.nbytes)
        assert (made[:8] == CANARY).all()
        assert (made[8 + 4 * n :] == CANARY).all()
        assert_same_floats(
            made[8 : 8 + 4 * n].view(np.float32), dequantize_bytes(quant_type, blocks, n)
        )
        del source


def test_nothing_is_dequantized(gpu):
    stream = gpu.stream()
    kernel = cuda_kernels.dequantizer(gpu, Q4_0)
    enqueue_dequantize(stream, kernel, Q4_0, 0, 0, 0)
    stream.synchronize()


@pytest.mark.parametrize("stride", [0, 5])
def test_rows_that_overlap(stride):
    """Rows that are the same memory, or begin inside each other, go over as they lie."""
    flat = gaussian(np.random.default_rng(61), (1, 4000))[0]
    x = np.lib.stride_tricks.as_strided(flat, (33, 256), (4 * stride, 4))
    assert_same_of(x, Q4_K)
    assert_same_of(x.T[:, :32], Q8_0)


def test_a_part_of_a_matrix():
    """Of slabs of a wider matrix only what belongs to them goes over."""
    wide = gaussian(np.random.default_rng(62), (70, 1024))
    for layout in LAYOUTS:
        x = place(wide, layout)
        assert_same_of(x[3:40, 256:768], Q4_K)
        assert_same_of(x[69:, :256], Q4_K)
    # The same by where element (0, 0) is in a buffer.
    flat = wide.reshape(-1)
    for strides in ((1024, 1), (1, 70), (1000, 2)):
        part = Matrix(flat, "F32", 37, 256, *strides, start=1234)
        assert_same(part, Q4_K)


def test_only_the_matrix_is_copied(only_stand_in: StandIn):
    x = gaussian(np.random.default_rng(63), (64, 1024))
    cuda_kernels.quantizer(open_gpu(0), Q8_0, False, "F32")
    before = only_stand_in.counter("bytes_in")
    assert_same_of(x[:, 32:96], Q8_0)
    assert_same_of(np.asfortranarray(x)[5:9, :64], Q8_0)
    assert only_stand_in.counter("bytes_in") - before == 4 * (64 * 64 + 4 * 64)


def test_a_backend_serves_matrices_of_any_size(only_stand_in: StandIn):
    rng = np.random.default_rng(64)
    with closing(CudaBackend(0, 1000, 1000)) as backend:
        for n_out, n_in, name in [
            *((3, 256, "Q8_0"), (70, 1024, "Q4_K"), (1, 256, "Q4_0"), (33, 512, "F32")),
            *((33, 512, "Q5_1"), (200, 256, "Q4_0"), (5, 256, "IQ4_XS")),
        ]:
            x = grok_like(rng, (n_out, n_in))
            for importance in (None, importance_of("plain", n_in)):
                assert_same_of(x, TYPES[name], None, importance, backend)
            codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
            scales = rng.uniform(0.1, 1, (2, n_out)).astype(np.float32)
            assert_same_of(np.asfortranarray(codes), TYPES[name], scales, None, backend)
            rows = np.empty((n_out, Q8_0.row_bytes(n_in)), np.uint8)
            rows[...] = on_cpu(matrix(x), Q8_0).rows
            assert_same(Blocks(rows.reshape(-1), Q8_0, n_out, n_in), TYPES[name], None, backend)
    live = only_stand_in.live()["bytes"]
    with closing(CudaBackend(0, 5000, 7000)):
        assert only_stand_in.live()["bytes"] == live + 12000
    assert only_stand_in.live()["bytes"] == live


def test_backends_of_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(65)
    sources = [grok_like(rng, (40 + n, 512)) for n in range(8)]
    types = [TYPES[name] for name in ("Q4_K", "IQ3_S", "Q8_0", "IQ2_S")]

    def work(number: int) -> None:
        with closing(CudaBackend(0, 0, 0)) as backend:
            for n in range(3):
                quant_type = types[(number + n) % 4]
                importance = least_importance(quant_type, 512)
                assert_same_of(sources[number], quant_type, None, importance, backend)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_another_device():
    from weightcast.quant.cuda.device import device_count

    if device_count() < 2:
        pytest.skip("needs a second CUDA device")
    x = gaussian(np.random.default_rng(66), (33, 512))
    with closing(CudaBackend(1, 0, 0)) as backend:
        assert_same_of(x, Q4_K, None, None, backend)
        assert_same_of(x, F32, None, None, backend)


def test_strided_scales_go_over_alone():
    rng = np.random.default_rng(67)
    wide = rng.uniform(0.01, 1, (6, 90)).astype(np.float32)
    codes = rng.integers(-128, 128, (33, 96)).astype(np.int8)
    assert_same_of(codes, Q8_0, wide[::2, 5:38])
    assert_same_of(codes[:1], Q8_0, wide[::2, 5:6])
