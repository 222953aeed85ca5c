"""The only layer that talks to a CUDA driver: devices, memory, streams, events, copies, launches.

The current context belongs to a thread and is also what torch goes by, so every call pushes the
device's primary context and pops it again: all works from any thread and changes nothing there.
Work on a stream is asynchronous: what fails in it is reported by a later `synchronize`.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import DeviceError, RequestError
from weightcast.quant.cuda.driver import call, check, driver

Host: TypeAlias = "NDArray[Any] | int"  # an array, or an address whose memory the caller keeps
Argument: TypeAlias = "np.generic | ctypes._SimpleCData[Any] | ctypes.Structure"
LEGACY_DEFAULT_STREAM = 1  # stream 0 by a name that no compile-time switch redirects
LARGEST_DIMENSION = 2**31 - 1
_opening = threading.Lock()


def device_count() -> int:
    """Count the CUDA devices, at least 1; DeviceError says what is missing otherwise."""
    count = int(call("counting CUDA devices", "cuDeviceGetCount"))
    if count == 0:
        raise DeviceError("no CUDA device on this machine: the driver is there, but finds none")
    return count


def open_gpu(index: int) -> Gpu:
    """Open a device by its index, once for all threads; DeviceError if there is no such device."""
    with _opening:
        return _open_gpu(index)


@cache
def _open_gpu(index: int) -> Gpu:
    count = device_count()
    if not 0 <= index < count:
        have = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"no device cuda:{index}: this machine has {have}")
    return Gpu(index)


class Gpu:
    """A device and its primary context; made by `open_gpu`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.label = f"cuda:{index}"
        self._device = call(self.label, "cuDeviceGet", index)
        name = call(self.label, "cuDeviceGetName", 256, self._device)
        self.name: str = name.split(b"\0")[0].decode()
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR")
        self.architecture = f"sm_{major}{self._attribute('COMPUTE_CAPABILITY_MINOR')}"
        self.multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.total_bytes = int(call(self.label, "cuDeviceTotalMem", self._device))
        self._context = call(self.label, "cuDevicePrimaryCtxRetain", self._device)

    def _attribute(self, name: str) -> int:
        kind = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call(self.label, "cuDeviceGetAttribute", kind, self._device))

    def __repr__(self) -> str:
        return f"<{self.label} {self.name} {self.architecture}>"

    def __enter__(self) -> Gpu:
        """Make the device current for this thread, on top of what was."""
        call(self.label, "cuCtxPushCurrent", self._context)
        return self

    def __exit__(self, *_: object) -> None:
        call(self.label, "cuCtxPopCurrent")

    def call(self, what: str, function: str, *args: Any) -> Any:
        """Call a function of the driver with this device current; `what` is for the error."""
        with self:
            return call(f"{self.label}: {what}", function, *args)

    def free_bytes(self) -> int:
        """Bytes of device memory that nobody has allocated."""
        return int(self.call("free memory", "cuMemGetInfo")[0])

    def allocate(self, nbytes: int) -> Memory:
        """Allocate device memory, aligned to 256 bytes; DeviceError when it does not fit."""
        with self:
            status, address = driver().cuMemAlloc(max(nbytes, 1))
        if status == driver().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceError(
                f"{self.label}: out of device memory: {nbytes:,} bytes asked for, "
                f"{self.free_bytes():,} free of {self.total_bytes:,}"
            )
        check(f"{self.label}: allocating {nbytes:,} bytes", status)
        return Memory(self, int(address), nbytes)

    def stream(self) -> Stream:
        """Make a stream that does not wait for the default stream."""
        flags = driver().CUstream_flags.CU_STREAM_NON_BLOCKING
        handle = self.call("making a stream", "cuStreamCreate", flags)
        stream = Stream(self, int(handle))
        weakref.finalize(stream, _release, self, "cuStreamDestroy", handle).atexit = False
        return stream

    def borrowed_stream(self, handle: int) -> Stream:
        """Take a caller's stream by its handle; 0 is the legacy default stream."""
        return Stream(self, handle or LEGACY_DEFAULT_STREAM)

    def module(self, image: bytes) -> Module:
        """Load a cubin, of which `Module.kernel` gives the kernels."""
        what = "loading a kernel image"
        library = self.call(what, "cuLibraryLoadData", image, None, None, 0, None, None, 0)
        return Module(self, library)

    def load(self, image: bytes, name: str) -> Kernel:
        """Load a cubin and take one kernel from it."""
        return self.module(image).kernel(name)

    def pin(self, buffer: Any) -> Pinned:
        """Page-lock a writable buffer (mmap, bytearray, array) for copies by all devices."""
        values = np.frombuffer(buffer, np.uint8)
        if values.nbytes == 0 or not values.flags.writeable:
            raise RequestError("only writable buffers of at least one byte can be page-locked")
        address = _host_address(values)
        flags = driver().CU_MEMHOSTREGISTER_PORTABLE
        what = f"page-locking {values.nbytes:,} bytes"
        self.call(what, "cuMemHostRegister", address, values.nbytes, flags)
        return Pinned(self, values)


def _release(gpu: Gpu, function: str, *args: Any) -> None:
    """Give something back. A failure is that of earlier work, which `synchronize` reports."""
    driver().cuCtxPushCurrent(gpu._context)
    getattr(driver(), function)(*args)
    driver().cuCtxPopCurrent()


class Memory:
    """Device memory; freed by `free` or with the last reference, when all work has ended."""

    def __init__(self, gpu: Gpu, address: int, nbytes: int) -> None:
        self.gpu = gpu
        self.address = address
        self.nbytes = nbytes
        self._finalizer = weakref.finalize(self, _release, gpu, "cuMemFree", address)
        self._finalizer.atexit = False

    def free(self) -> None:
        self._finalizer()


class Pinned:
    """A page-locked buffer as bytes [nbytes]; keeps the buffer alive until `unpin`."""

    def __init__(self, gpu: Gpu, values: NDArray[np.uint8]) -> None:
        self.address = _host_address(values)
        self.nbytes = values.nbytes
        # The finalizer alone holds the buffer: it cannot go before it is unlocked.
        self._finalizer = weakref.finalize(self, _unpin, gpu, values)
        self._finalizer.atexit = False

    def unpin(self) -> None:
        """Unlock and let go of the buffer. No copy of it may be under way."""
        self._finalizer()


def _unpin(gpu: Gpu, values: NDArray[np.uint8]) -> None:
    _release(gpu, "cuMemHostUnregister", _host_address(values))


class Module:
    """A loaded cubin. It stays loaded while it or one of its kernels is referred to."""

    def __init__(self, gpu: Gpu, library: Any) -> None:
        self.gpu = gpu
        self._library = library
        weakref.finalize(self, _release, gpu, "cuLibraryUnload", library).atexit = False

    def kernel(self, name: str) -> Kernel:
        """Look up a kernel by its symbol; DeviceError if the image has none of that name."""
        what = f"looking up the kernel {name}"
        handle = self.gpu.call(what, "cuLibraryGetKernel", self._library, name.encode())
        return Kernel(self, name, handle)


class Kernel:
    """One kernel of a loaded module, on one device."""

    def __init__(self, module: Module, name: str, handle: Any) -> None:
        self.gpu = module.gpu
        self.name = name
        self._module = module  # keeps it loaded
        self._handle = handle
        self.function = driver().CUfunction(int(handle))
        kinds = driver().CUfunction_attribute
        self._limit = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        what, device = f"the kernel {name}", self.gpu._device
        value = self.gpu.call(what, "cuKernelGetAttribute", self._limit, handle, device)
        self._shared_bytes = int(value)

    def allow_shared(self, nbytes: int) -> None:
        """Raise the limit of dynamic shared memory, at first 48 KiB, to `nbytes` if it is lower."""
        if nbytes > self._shared_bytes:
            what = f"{nbytes:,} bytes of shared memory for the kernel {self.name}"
            args = (self._limit, nbytes, self._handle, self.gpu._device)
            self.gpu.call(what, "cuKernelSetAttribute", *args)
            self._shared_bytes = nbytes


class Stream:
    """An ordered queue of device work. Host memory in it must live until it was synchronized."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu = gpu
        self.handle = handle
        self._launched: dict[str, None] = {}  # since the last synchronization, for its error

    def copy_in(self, address: int, source: Host, nbytes: int | None = None) -> None:
        """Copy `nbytes` from host memory to a device address."""
        nbytes = _host_bytes(source, nbytes)
        if nbytes:
            args = (address, _host_address(source), nbytes, self.handle)
            self.gpu.call(f"copy of {nbytes:,} bytes in", "cuMemcpyHtoDAsync", *args)

    def copy_out(self, destination: Host, address: int, nbytes: int | None = None) -> None:
        """Copy `nbytes` from a device address to host memory."""
        nbytes = _host_bytes(destination, nbytes)
        if nbytes:
            args = (_host_address(destination, writable=True), address, nbytes, self.handle)
            self.gpu.call(f"copy of {nbytes:,} bytes out", "cuMemcpyDtoHAsync", *args)

    def copy_in_2d(
        self, address: int, pitch: int, source: Host, source_pitch: int, row_bytes: int, rows: int
    ) -> None:
        """Copy `rows` of `row_bytes`, `source_pitch` bytes apart, to rows `pitch` bytes apart."""
        copy = driver().CUDA_MEMCPY2D()
        copy.srcMemoryType = driver().CUmemorytype.CU_MEMORYTYPE_HOST
        copy.srcHost = _host_address(source)
        copy.srcPitch = source_pitch
        copy.dstMemoryType = driver().CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice = address
        copy.dstPitch = pitch
        self._copy_2d(copy, "in", row_bytes, rows)

    def copy_out_2d(
        self,
        destination: Host,
        pitch: int,
        address: int,
        device_pitch: int,
        row_bytes: int,
        rows: int,
    ) -> None:
        """Copy `rows` of `row_bytes`, `device_pitch` bytes apart, to rows `pitch` bytes apart."""
        copy = driver().CUDA_MEMCPY2D()
        copy.srcMemoryType = driver().CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice = address
        copy.srcPitch = device_pitch
        copy.dstMemoryType = driver().CUmemorytype.CU_MEMORYTYPE_HOST
        copy.dstHost = _host_address(destination, writable=True)
        copy.dstPitch = pitch
        self._copy_2d(copy, "out", row_bytes, rows)

    def _copy_2d(self, copy: Any, direction: str, row_bytes: int, rows: int) -> None:
        copy.WidthInBytes, copy.Height = row_bytes, rows
        if row_bytes and rows:
            what = f"copy of {rows:,} rows of {row_bytes:,} bytes {direction}"
            self.gpu.call(what, "cuMemcpy2DAsync", copy, self.handle)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy `nbytes` from one device address to another."""
        if nbytes:
            args = (to, source, nbytes, self.handle)
            self.gpu.call(f"copy of {nbytes:,} bytes", "cuMemcpyDtoDAsync", *args)

    def fill(self, address: int, nbytes: int, value: int = 0) -> None:
        """Set `nbytes` of device memory to one byte's value."""
        if nbytes:
            args = (address, value, nbytes, self.handle)
            self.gpu.call(f"filling {nbytes:,} bytes", "cuMemsetD8Async", *args)

    def launch(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Argument],
    ) -> None:
        """Launch a kernel over `grid` (1 to 3 dimensions) blocks of `block` threads.

        `args` are ctypes or numpy scalars, or ctypes structures, of exactly the types of the
        kernel's parameters; device addresses are 64 bits wide. DeviceError names the kernel.
        """
        if kernel.gpu is not self.gpu:
            raise RequestError(
                f"the kernel {kernel.name} is on {kernel.gpu.label}, the stream on {self.gpu.label}"
            )
        kernel.allow_shared(shared_bytes)
        values = [_as_ctypes(arg) for arg in args]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        sizes = (*_three(grid), *_three(block), shared_bytes)
        what = f"launch of {kernel.name}, grid {tuple(grid)}, block {tuple(block)}"
        packed = (*sizes, self.handle, ctypes.addressof(pointers), 0)
        self.gpu.call(what, "cuLaunchKernel", kernel.function, *packed)
        self._launched[kernel.name] = None

    def synchronize(self) -> None:
        """Wait until all work so far is done; DeviceError if any of it failed."""
        self.gpu.call(self._pending(), "cuStreamSynchronize", self.handle)
        self._launched.clear()

    def record(self, timing: bool = False) -> Event:
        """Mark this point of the stream; `timing` for `Event.elapsed_ms`."""
        kinds = driver().CUevent_flags
        flags = int(kinds.CU_EVENT_BLOCKING_SYNC)  # waiting leaves the processor to others
        if not timing:
            flags |= int(kinds.CU_EVENT_DISABLE_TIMING)
        event = Event(self, self.gpu.call("making an event", "cuEventCreate", flags))
        self.gpu.call("recording an event", "cuEventRecord", event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """Let later work of this stream wait for an event of any stream or device."""
        self.gpu.call("waiting for an event", "cuStreamWaitEvent", self.handle, event.handle, 0)

    def _pending(self) -> str:
        if not self._launched:
            return "earlier work on the stream failed"
        return f"earlier work on the stream failed, with {', '.join(self._launched)} in it"


class Event:
    """A point in a stream's work; made by `Stream.record`."""

    def __init__(self, stream: Stream, handle: Any) -> None:
        self.handle = handle
        self._gpu = stream.gpu
        self._failure = stream._pending()
        weakref.finalize(self, _release, stream.gpu, "cuEventDestroy", handle).atexit = False

    def synchronize(self) -> None:
        """Wait until the stream has come to this point; DeviceError if its work failed."""
        self._gpu.call(self._failure, "cuEventSynchronize", self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds of device time from `since`; both recorded with timing, both reached."""
        what = "time between events"
        return float(self._gpu.call(what, "cuEventElapsedTime", since.handle, self.handle))


def _host_address(memory: Host, writable: bool = False) -> int:
    if isinstance(memory, int):
        return memory
    address, read_only = memory.__array_interface__["data"]
    if writable and read_only:
        raise RequestError("the destination of a copy is read-only")
    return int(address)


def _host_bytes(memory: Host, nbytes: int | None) -> int:
    """Size of a copy: that of the array unless given, then at most that."""
    if isinstance(memory, int):
        if nbytes is None:
            raise RequestError("a copy at a bare address needs its size")
        return nbytes
    if not memory.flags.c_contiguous:
        raise RequestError("a copy needs an array whose values follow each other")
    if nbytes is not None and nbytes > memory.nbytes:
        raise RequestError(f"a copy of {nbytes:,} bytes of an array of {memory.nbytes:,}")
    return memory.nbytes if nbytes is None else nbytes


def _as_ctypes(value: Argument) -> Any:
    if isinstance(value, np.generic):
        kind: Any = value.dtype
        return np.ctypeslib.as_ctypes_type(kind)(value.item())
    return value


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Pad a grid or block to three dimensions, each checked to fit the driver's type."""
    if not 1 <= len(sizes) <= 3 or not all(0 < size <= LARGEST_DIMENSION for size in sizes):
        raise RequestError(f"a grid or block of {tuple(sizes)}")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z
