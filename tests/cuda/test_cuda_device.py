"""The driver layer: every call of it, on the stand-in or on a device where there is one."""

from __future__ import annotations

import ctypes
import gc
import mmap
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import stand_in
from tests.cuda.stand_in import StandIn
from weightcast.errors import DeviceError, RequestError
from weightcast.quant.cuda import device as cuda_device
from weightcast.quant.cuda.device import Event, Gpu, Memory, Module, Stream, open_gpu

RANDOM = np.random.default_rng(5)


@pytest.fixture
def gpu(driver: StandIn | None) -> Gpu:
    return open_gpu(0)


@pytest.fixture
def two_gpus(driver: StandIn | None) -> tuple[Gpu, Gpu]:
    if cuda_device.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    return open_gpu(0), open_gpu(1)


def compile_toys(source: Path, architecture: str) -> bytes:
    from cuda.core import Program, ProgramOptions

    program = Program(source.read_text(), "c++", ProgramOptions(arch=architecture, fma=False))
    return bytes(program.compile("cubin").code)


@pytest.fixture(scope="session")
def image(toys: Path) -> bytes:
    return compile_toys(toys, open_gpu(0).architecture)


@pytest.fixture
def module(gpu: Gpu, image: bytes) -> Module:
    return gpu.module(image)


def scale(stream: Stream, module: Module, memory: Memory, count: int, factor: float) -> None:
    """Multiply the first values [count] of `memory` (float32)."""
    address, blocks = np.uint64(memory.address), -(-count // 64)
    args = [address, np.int32(count), np.float32(factor), np.int64(0), ctypes.c_ubyte(1)]
    stream.launch(module.kernel("toy_scale"), (blocks,), (64,), 0, args)


def upload(stream: Stream, values: np.ndarray) -> Memory:
    memory = stream.gpu.allocate(values.nbytes)
    stream.copy_in(memory.address, values)
    return memory


def download(stream: Stream, memory: Memory, like: np.ndarray) -> np.ndarray:
    values = np.empty_like(like)
    stream.copy_out(values, memory.address)
    stream.synchronize()
    return values


# Devices


def test_devices_are_counted_described_and_opened_once(gpu: Gpu) -> None:
    assert open_gpu(0) is gpu
    assert gpu.architecture.startswith("sm_")
    assert int(gpu.architecture[3:]) >= 50
    assert gpu.name
    assert "\0" not in gpu.name
    assert gpu.multiprocessors >= 1
    assert 0 < gpu.free_bytes() <= gpu.total_bytes


@pytest.mark.parametrize("index", [-1, 99])
def test_a_device_that_is_not_there_is_refused(gpu: Gpu, index: int) -> None:
    last = cuda_device.device_count() - 1
    with pytest.raises(DeviceError, match=rf"no device cuda:{index}: this machine has .*{last}$"):
        open_gpu(index)


def test_calls_leave_the_callers_current_context(gpu: Gpu, image: bytes) -> None:
    from cuda.bindings import driver as bindings

    before = int(bindings.cuCtxGetCurrent()[1])
    stream = gpu.stream()
    upload(stream, np.zeros(8, np.float32))
    with pytest.raises(DeviceError):
        gpu.load(image, "no_such_kernel")
    stream.synchronize()
    assert int(bindings.cuCtxGetCurrent()[1]) == before


# Memory and copies


@pytest.mark.parametrize("nbytes", [1, 255, 256, 4096, 100_001])
def test_copies_return_what_was_copied(gpu: Gpu, nbytes: int) -> None:
    values = RANDOM.integers(0, 256, nbytes, dtype=np.uint8)
    stream = gpu.stream()
    memory = upload(stream, values)
    assert memory.address % 256 == 0
    assert np.array_equal(download(stream, memory, values), values)


def test_parts_are_copied_by_address(gpu: Gpu) -> None:
    values, out = np.arange(100, dtype=np.uint8), np.zeros(10, np.uint8)
    stream, memory = gpu.stream(), gpu.allocate(100)
    stream.copy_in(memory.address, values.ctypes.data, 100)
    stream.copy_out(out.ctypes.data, memory.address + 40, 7)
    stream.synchronize()
    assert out.tolist() == [*range(40, 47), 0, 0, 0]


def test_2d_copies_move_columns_and_nothing_beside_them(gpu: Gpu) -> None:
    matrix = RANDOM.integers(0, 256, (13, 40), dtype=np.uint8)
    stream, memory = gpu.stream(), gpu.allocate(13 * 32)
    stream.fill(memory.address, memory.nbytes, 9)
    stream.copy_in_2d(memory.address, 32, matrix[:, 5:], 40, 21, 13)
    on_device = download(stream, memory, np.empty((13, 32), np.uint8))
    assert np.array_equal(on_device[:, :21], matrix[:, 5:26])
    assert np.all(on_device[:, 21:] == 9)

    out = np.full((13, 50), 3, np.uint8)
    stream.copy_out_2d(out[:, 11:], 50, memory.address + 4, 32, 17, 13)
    stream.synchronize()
    assert np.array_equal(out[:, 11:28], matrix[:, 9:26])
    assert np.all(out[:, :11] == 3)
    assert np.all(out[:, 28:] == 3)


def test_copies_on_the_device(gpu: Gpu) -> None:
    values, out = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    stream, memory = gpu.stream(), gpu.allocate(100)
    stream.copy_in(memory.address, values)
    stream.copy(memory.address + 60, memory.address + 10, 30)
    stream.copy(memory.address, memory.address + 50, 0)
    stream.copy_out(out, memory.address)
    stream.synchronize()
    assert out.tolist() == [*range(60), *range(10, 40), *range(90, 100)]


def test_copies_of_nothing_do_nothing(gpu: Gpu) -> None:
    stream, memory = gpu.stream(), gpu.allocate(0)
    stream.copy_in(memory.address, np.empty(0))
    stream.copy_out_2d(np.empty(5), 5, memory.address, 5, 5, 0)
    stream.fill(memory.address, 0)
    stream.synchronize()


def test_host_memory_that_does_not_fit_is_refused(gpu: Gpu) -> None:
    stream, memory = gpu.stream(), gpu.allocate(100)
    fixed = np.zeros(100, np.uint8)
    fixed.flags.writeable = False
    with pytest.raises(RequestError, match="read-only"):
        stream.copy_out(fixed, memory.address)
    with pytest.raises(RequestError, match="follow each other"):
        stream.copy_in(memory.address, np.zeros((10, 20), np.uint8)[:, :10])
    with pytest.raises(RequestError, match="101 bytes of an array of 100"):
        stream.copy_in(memory.address, fixed, 101)
    with pytest.raises(RequestError, match="needs its size"):
        stream.copy_in(memory.address, fixed.ctypes.data)


def test_memory_is_freed_once(only_stand_in: StandIn, gpu: Gpu) -> None:
    before = only_stand_in.live()
    explicit, dropped = gpu.allocate(1000), gpu.allocate(500)
    assert only_stand_in.counter("live_bytes") == before["bytes"] + 1500
    explicit.free()
    explicit.free()
    del explicit, dropped
    gc.collect()
    assert only_stand_in.live() == before


def test_everything_is_given_back(only_stand_in: StandIn, gpu: Gpu, image: bytes) -> None:
    gc.collect()
    before = only_stand_in.live()
    stream, module, pinned = gpu.stream(), gpu.module(image), gpu.pin(bytearray(5000))
    memory, event = upload(stream, np.ones(100, np.float32)), stream.record()
    scale(stream, module, memory, 100, 2)
    during = only_stand_in.live()
    assert all(during[kind] > before[kind] for kind in before)
    del stream, module, pinned, memory, event
    gc.collect()
    assert only_stand_in.live() == before


# Launches


def test_a_kernel_gets_its_arguments(gpu: Gpu, module: Module) -> None:
    values = RANDOM.standard_normal(1000).astype(np.float32)
    stream = gpu.stream()
    memory = upload(stream, values)
    scale(stream, module, memory, 999, 3)
    expected = np.append(values[:999] * np.float32(3), values[999])
    assert np.array_equal(download(stream, memory, values), expected)


def test_arguments_of_every_width(gpu: Gpu, module: Module) -> None:
    values = np.ones(40, np.float32)
    stream = gpu.stream()
    memory = upload(stream, values)
    args = [
        ctypes.c_uint64(memory.address),
        ctypes.c_int32(5),
        ctypes.c_float(-2),
        ctypes.c_int64(7),
        np.uint8(3),
    ]
    stream.launch(module.kernel("toy_scale"), (1,), (32,), 0, args)
    assert np.flatnonzero(download(stream, memory, values) == -2).tolist() == [7, 10, 13, 16, 19]


def test_a_grid_of_three_dimensions_and_several_kernels_of_one_image(
    gpu: Gpu, module: Module
) -> None:
    stream, places = gpu.stream(), np.empty((5 * 3, 4 * 8), np.uint32)
    memory = gpu.allocate(places.nbytes)
    address = np.uint64(memory.address)
    stream.launch(module.kernel("toy_place"), (4, 3, 5), (8,), 0, [address])
    stream.launch(module.kernel("toy_write"), (1,), (1,), 0, [address, np.uint64(3)])
    expected = np.arange(15)[:, None] * 1000 + np.arange(32)
    expected[0, 0] = 7 << 24
    assert np.array_equal(download(stream, memory, places), expected)


def test_a_kernel_keeps_its_image_loaded(gpu: Gpu, image: bytes) -> None:
    kernel, stream = gpu.load(image, "toy_write"), gpu.stream()
    gc.collect()
    memory = gpu.allocate(10)
    stream.fill(memory.address, 10)
    stream.launch(kernel, (1,), (1,), 0, [np.uint64(memory.address), np.uint64(4)])
    assert download(stream, memory, np.empty(10, np.uint8)).tolist() == [0, 0, 0, 0, 7] + [0] * 5


def test_shared_memory_beyond_48_kib_is_asked_for(gpu: Gpu, module: Module) -> None:
    stream, memory = gpu.stream(), gpu.allocate(10)
    args = [np.uint64(memory.address), np.uint64(4)]
    kernel = module.kernel("toy_write")
    for shared_bytes in (48 << 10, 64 << 10, 50 << 10):
        stream.launch(kernel, (1,), (1,), shared_bytes, args)
    stream.synchronize()
    with pytest.raises(DeviceError, match=r"1,024,000 bytes of shared memory .*toy_write: .*VALUE"):
        stream.launch(kernel, (1,), (1,), 1_024_000, args)


@pytest.mark.parametrize(
    ("grid", "block"), [((1,), (1025,)), ((1, 65536), (1,)), ((1,), (32, 33)), ((1,), (1, 1, 65))]
)
def test_a_launch_beyond_the_devices_limits_names_the_kernel(
    gpu: Gpu, module: Module, grid: tuple[int, ...], block: tuple[int, ...]
) -> None:
    with pytest.raises(DeviceError, match=r"^cuda:0: launch of toy_place, grid .*_ERROR_INVALID"):
        gpu.stream().launch(module.kernel("toy_place"), grid, block, 0, [np.uint64(0)])


def test_more_threads_than_the_kernels_bound_are_refused(gpu: Gpu, module: Module) -> None:
    stream, memory = gpu.stream(), gpu.allocate(4 * 256)
    kernel, args = module.kernel("toy_bounded"), [np.uint64(memory.address)]
    stream.launch(kernel, (1,), (128,), 0, args)
    stream.synchronize()
    with pytest.raises(DeviceError, match="launch of toy_bounded"):
        stream.launch(kernel, (1,), (256,), 0, args)


@pytest.mark.parametrize("sizes", [(), (0,), (-1, 2), (1, 1, 1, 1), (2**31,)])
def test_sizes_that_are_none_are_refused(gpu: Gpu, module: Module, sizes: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="a grid or block of"):
        gpu.stream().launch(module.kernel("toy_place"), sizes, (1,), 0, [np.uint64(0)])


def test_images_that_do_not_load(gpu: Gpu, image: bytes, toys: Path) -> None:
    with pytest.raises(DeviceError, match="loading a kernel image: CUDA_ERROR_INVALID"):
        gpu.module(b"no cubin at all, but long enough to look at")
    with pytest.raises(DeviceError, match="looking up the kernel toy_nothing: CUDA_ERROR_NOT_FOUN"):
        gpu.load(image, "toy_nothing")
    other = "sm_80" if gpu.architecture.startswith(("sm_9", "sm_1")) else "sm_90"
    with pytest.raises(DeviceError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        gpu.load(compile_toys(toys, other), "toy_write")


# Streams and events


def test_work_is_deferred_until_something_waits_for_it(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    values, out = np.ones(64, np.float32), np.zeros(64, np.float32)
    pins = [gpu.pin(values), gpu.pin(out)]
    stream, memory = gpu.stream(), gpu.allocate(values.nbytes)
    stream.copy_in(memory.address, values)
    scale(stream, module, memory, 64, 5)
    stream.copy_out(out, memory.address)
    assert only_stand_in.counter("queued") == 3
    assert only_stand_in.counter("staged_copies") == 0
    assert not out.any()
    values[:] = 2  # too early: the copy takes what is there when it runs
    stream.synchronize()
    assert np.all(out == 10)
    for pin in pins:
        pin.unpin()


def test_copies_of_pageable_memory_are_done_when_they_return(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    values, out = np.ones(64, np.float32), np.zeros(64, np.float32)
    stream = gpu.stream()
    memory = upload(stream, values)
    values[:] = 2
    scale(stream, module, memory, 64, 5)
    stream.copy_out(out, memory.address)
    assert np.all(out == 5)
    assert only_stand_in.counter("staged_copies") == 2


def test_device_memory_is_no_zeros(only_stand_in: StandIn, gpu: Gpu) -> None:
    assert np.all(download(gpu.stream(), gpu.allocate(9), np.empty(9, np.uint8)) == 0xA5)


def test_a_stream_waits_for_an_event_of_another(gpu: Gpu, module: Module) -> None:
    values = np.full(50_000, 2, np.float32)
    first, second = gpu.stream(), gpu.stream()
    memory = upload(first, values)
    scale(first, module, memory, values.size, 3)
    second.wait(first.record())
    scale(second, module, memory, values.size, 5)
    assert np.all(download(second, memory, values) == 30)


def test_without_a_wait_streams_are_not_ordered(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    values = np.full(50, 2, np.float32)
    first, second = gpu.stream(), gpu.stream()
    memory = upload(first, values)
    scale(first, module, memory, 50, 3)
    assert np.all(download(second, memory, values) == 2)
    assert np.all(download(first, memory, values) == 6)


def test_an_event_is_waited_for_without_what_follows_it(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    stream = gpu.stream()
    memory = upload(stream, np.ones(10, np.float32))
    scale(stream, module, memory, 10, 2)
    event = stream.record()
    scale(stream, module, memory, 10, 2)
    event.synchronize()
    assert only_stand_in.counter("kernels_run") == 1
    stream.synchronize()
    assert only_stand_in.counter("kernels_run") == 2


def test_time_between_events(gpu: Gpu, module: Module) -> None:
    stream = gpu.stream()
    memory = upload(stream, np.ones(100_000, np.float32))
    start = stream.record(timing=True)
    scale(stream, module, memory, 100_000, 2)
    end = stream.record(timing=True)
    end.synchronize()
    assert 0 < end.elapsed_ms(start) < 60_000
    with pytest.raises(DeviceError, match=r"time between events: CUDA_ERROR_INVALID_HANDLE"):
        untimed(stream).elapsed_ms(start)


def untimed(stream: Stream) -> Event:
    event = stream.record()
    event.synchronize()
    return event


def test_a_borrowed_stream_is_the_callers(gpu: Gpu, module: Module) -> None:
    owner = gpu.stream()
    values = np.ones(10, np.float32)
    memory = upload(owner, values)
    borrowed = gpu.borrowed_stream(owner.handle)
    scale(borrowed, module, memory, 10, 4)
    del borrowed
    gc.collect()
    assert np.all(download(owner, memory, values) == 4)  # in order, and still there


def test_the_default_stream_is_borrowed_as_0(gpu: Gpu, module: Module) -> None:
    stream, values = gpu.borrowed_stream(0), np.ones(10, np.float32)
    assert stream.handle == 1  # CU_STREAM_LEGACY; 0 could also be redirected to the thread's own
    memory = upload(stream, values)
    scale(stream, module, memory, 10, 4)
    assert np.all(download(stream, memory, values) == 4)


def test_own_streams_do_not_wait_for_the_default_stream(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    default, own = gpu.borrowed_stream(0), gpu.stream()
    memory = upload(default, np.ones(10, np.float32))
    scale(default, module, memory, 10, 2)
    own.fill(memory.address, 4)
    own.synchronize()
    assert only_stand_in.counter("kernels_run") == 0
    assert download(default, memory, np.empty(2, np.float32)).tolist() == [0, 2]


def test_a_callers_blocking_stream_and_the_default_stream_wait_for_each_other(
    only_stand_in: StandIn, gpu: Gpu, module: Module
) -> None:
    from cuda.bindings import driver as bindings

    handle = gpu.call("a stream", "cuStreamCreate", 0)
    default, blocking = gpu.borrowed_stream(0), gpu.borrowed_stream(int(handle))
    memory = upload(default, np.ones(10, np.float32))
    scale(default, module, memory, 10, 2)
    scale(blocking, module, memory, 5, 3)
    scale(default, module, memory, 2, 5)
    values = download(default, memory, np.empty(10, np.float32))
    assert values.tolist() == [30] * 2 + [6] * 3 + [2] * 5
    assert bindings.cuStreamDestroy(handle)[0] == 0


# Page-locked memory


def test_page_locked_buffers_of_all_kinds(gpu: Gpu) -> None:
    with mmap.mmap(-1, 1 << 16) as mapped:
        for buffer in (mapped, bytearray(5000), np.zeros((30, 40), np.float32)):
            view = np.frombuffer(buffer, np.uint8)
            view[:] = RANDOM.integers(0, 256, view.size, dtype=np.uint8)
            pinned, stream = gpu.pin(buffer), gpu.stream()
            assert (pinned.address, pinned.nbytes) == (view.ctypes.data, view.nbytes)
            memory = gpu.allocate(pinned.nbytes)
            stream.copy_in(memory.address, pinned.address, pinned.nbytes)
            assert np.array_equal(download(stream, memory, view), view)
            pinned.unpin()
            pinned.unpin()
            del view


def test_a_page_locked_mapping_cannot_go(gpu: Gpu) -> None:
    with mmap.mmap(-1, 4096) as mapped:
        pinned = gpu.pin(mapped)
        with pytest.raises(BufferError):
            mapped.close()
        pinned.unpin()


def test_buffers_that_cannot_be_page_locked(gpu: Gpu) -> None:
    buffer = np.zeros(10_000, np.uint8)
    pinned = gpu.pin(buffer)
    with pytest.raises(DeviceError, match=r"page-locking 10,000 bytes: .*ALREADY_REGISTERED"):
        gpu.pin(buffer)
    pinned.unpin()
    gpu.pin(buffer).unpin()
    for bad in (b"read-only", bytearray(0)):
        with pytest.raises((RequestError, ValueError)):
            gpu.pin(bad)


# Several devices, several threads


def test_devices_work_side_by_side(two_gpus: tuple[Gpu, Gpu], image: bytes) -> None:
    streams = [gpu.stream() for gpu in two_gpus]
    values, out = np.ones(100, np.float32), np.zeros((2, 100), np.float32)
    pinned = two_gpus[0].pin(out)
    memories = [upload(stream, values) for stream in streams]
    for i, (stream, memory) in enumerate(zip(streams, memories, strict=True)):
        scale(stream, stream.gpu.module(image), memory, 100, i + 2)
        stream.copy_out(out[i], memory.address)
    streams[0].wait(streams[1].record())
    streams[0].synchronize()
    assert out[:, 0].tolist() == [2, 3]
    pinned.unpin()


def test_pinned_by_one_device_is_pinned_for_all(
    only_stand_in: StandIn, two_gpus: tuple[Gpu, Gpu]
) -> None:
    values = np.ones(100, np.float32)
    pinned = two_gpus[0].pin(values)
    upload(two_gpus[1].stream(), values)
    assert only_stand_in.counter("staged_copies") == 0
    pinned.unpin()


def test_kernel_and_stream_must_be_of_one_device(two_gpus: tuple[Gpu, Gpu], image: bytes) -> None:
    kernel = two_gpus[0].load(image, "toy_place")
    with pytest.raises(RequestError, match="toy_place is on cuda:0, the stream on cuda:1"):
        two_gpus[1].stream().launch(kernel, (1,), (1,), 0, [np.uint64(0)])


def test_threads_share_devices(driver: StandIn | None, image: bytes) -> None:
    gpus = [open_gpu(i) for i in range(cuda_device.device_count())]
    modules = [gpu.module(image) for gpu in gpus]

    def work(number: int) -> bool:
        gpu, module = gpus[number % len(gpus)], modules[number % len(gpus)]
        values = np.full(1000 + number, number, np.float32)
        stream = gpu.stream()
        memory = upload(stream, values)
        for _ in range(5):
            scale(stream, module, memory, values.size, 2)
        return np.array_equal(download(stream, memory, values), values * 32)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


# Failures


def test_out_of_device_memory_says_how_much(gpu: Gpu) -> None:
    match = (
        r"^cuda:0: out of device memory: 9,000,000,000,000 bytes asked for, [\d,]+ free of [\d,]+$"
    )
    with pytest.raises(DeviceError, match=match):
        gpu.allocate(9 * 10**12)
    gpu.allocate(100).free()  # nothing is spoilt


def test_a_later_allocation_fails(only_stand_in: StandIn, gpu: Gpu) -> None:
    only_stand_in.fail("cuMemAlloc", stand_in.OUT_OF_MEMORY, after=2)
    kept = [gpu.allocate(10), gpu.allocate(10)]
    with pytest.raises(DeviceError, match="out of device memory: 10 bytes"):
        gpu.allocate(10)
    kept.append(gpu.allocate(10))


@pytest.mark.parametrize("by_event", [True, False])
def test_a_kernel_that_fails_is_named_when_it_is_waited_for(
    only_stand_in: StandIn, gpu: Gpu, module: Module, by_event: bool
) -> None:
    stream = gpu.stream()
    memory = upload(stream, np.ones(10, np.float32))
    args = [np.uint64(memory.address), np.uint64(3)]
    stream.launch(module.kernel("toy_write"), (1,), (1,), 0, args)
    stream.synchronize()  # toy_write went well, and is not to be named
    only_stand_in.fail("kernel", stand_in.LAUNCH_FAILED)
    scale(stream, module, memory, 10, 2)
    event = stream.record()
    match = r"^cuda:0: earlier work on the stream failed, with toy_scale in it: \w+_LAUNCH_FAILED "
    with pytest.raises(DeviceError, match=match):
        (event if by_event else stream).synchronize()
    with pytest.raises(DeviceError, match="LAUNCH_FAILED"):  # as on a device, for good
        gpu.allocate(10)
    del memory  # no exception from the garbage collector


@pytest.mark.parametrize("offset", [0, 1, 100_000])
def test_a_kernel_that_writes_beyond_its_memory_fails(
    only_stand_in: StandIn, gpu: Gpu, module: Module, offset: int
) -> None:
    for nbytes in (1000, 1024):
        stream, memory = gpu.stream(), gpu.allocate(nbytes)
        args = [np.uint64(memory.address), np.uint64(nbytes + offset)]
        stream.launch(module.kernel("toy_write"), (1,), (1,), 0, args)
        with pytest.raises(DeviceError, match=r"toy_write.*CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronize()
        only_stand_in.reset()


def test_freed_memory_is_not_to_be_used(only_stand_in: StandIn, gpu: Gpu, module: Module) -> None:
    stream, memory = gpu.stream(), gpu.allocate(100)
    memory.free()
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_VALUE"):
        stream.fill(memory.address, 100)
    args = [np.uint64(memory.address), np.uint64(0)]
    stream.launch(module.kernel("toy_write"), (1,), (1,), 0, args)
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.synchronize()


def test_a_buffer_unlocked_too_early_is_a_failure(only_stand_in: StandIn, gpu: Gpu) -> None:
    values = np.ones(100, np.float32)
    pinned, stream = gpu.pin(values), gpu.stream()
    memory = upload(stream, values)
    pinned.unpin()
    with pytest.raises(DeviceError, match="earlier work on the stream failed: CUDA_ERROR_ILLEGAL"):
        stream.synchronize()
    del memory


@pytest.mark.parametrize("shift", [-1, 1])
def test_copies_outside_of_an_allocation_are_refused(
    only_stand_in: StandIn, gpu: Gpu, shift: int
) -> None:
    memory, values = gpu.allocate(100), np.zeros(100, np.uint8)
    with pytest.raises(DeviceError, match="copy of 100 bytes in: CUDA_ERROR_INVALID_VALUE"):
        gpu.stream().copy_in(memory.address + shift, values)
    with pytest.raises(DeviceError, match=r"copy of 10 rows of 9 bytes out: .*INVALID_VALUE"):
        gpu.stream().copy_out_2d(values, 10, memory.address + 2 * shift, 10, 9, 10)


# Machines without: each in a process of its own, since a driver is loaded once

TRY = "from weightcast.quant.cuda import device as cuda_device\n{}\ncuda_device.open_gpu(0)"
LOAD = "import ctypes; ctypes.CDLL({!r}, ctypes.RTLD_GLOBAL)"


def failure(before: str, **environment: str) -> str:
    """Open a device in another process; return the last line of its traceback."""
    command = [sys.executable, "-c", TRY.format(before)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_without_the_package() -> None:
    line = failure("import sys; sys.modules['cuda.bindings'] = None")
    assert line.endswith("cuda-bindings is not installed: pip install 'weightcast[cuda]'")


def test_without_a_driver(only_stand_in: StandIn) -> None:
    assert "no CUDA driver on this machine: no libcuda.so.1 was found; install" in failure("")


def test_without_a_device(only_stand_in: StandIn) -> None:
    line = failure(LOAD.format(str(only_stand_in.path)), STAND_IN_DEVICES="")
    assert line.endswith("no CUDA device on this machine: the driver is there, but finds none")


def test_with_a_driver_that_does_not_start(only_stand_in: StandIn) -> None:
    path = str(only_stand_in.path)
    line = failure(f"{LOAD.format(path)}.stand_in_fail(b'cuInit', 0, 999)")
    assert "the CUDA driver does not start: CUDA_ERROR_UNKNOWN" in line


def test_with_a_driver_that_is_too_old(only_stand_in: StandIn) -> None:
    load = f"{LOAD.format(str(only_stand_in.path))}; cuda_device.open_gpu(0).module(b'')"
    line = failure(load, STAND_IN_WITHOUT="cuLibraryLoadData")
    assert "the CUDA driver is too old, it has no cuLibraryLoadData" in line


def output(script: str, driver: StandIn, **environment: str) -> str:
    """Run a script with the stand-in in another process; return what it printed."""
    command = [sys.executable, "-c", TRY.format(f"{LOAD.format(str(driver.path))}\n{script}")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def test_with_another_device(only_stand_in: StandIn) -> None:
    script = "print(cuda_device.open_gpu(0).architecture)"
    assert output(script, only_stand_in, STAND_IN_DEVICES="8.6") == "sm_86\n"


OPEN_BY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
sys.setswitchinterval(1e-6)
together = Barrier(16)


def open_at_once(index):
    together.wait()
    return cuda_device.open_gpu(index)


with ThreadPoolExecutor(16) as pool:
    for index in range(cuda_device.device_count()):
        print(len(set(pool.map(open_at_once, [index] * 16))), end="")
"""


def test_threads_that_open_a_device_at_once_get_the_same(only_stand_in: StandIn) -> None:
    devices = ",".join(["9.0"] * 40)
    assert output(OPEN_BY_THREADS, only_stand_in, STAND_IN_DEVICES=devices) == "1" * 40
