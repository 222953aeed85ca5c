"""Builds, loads and controls the stand-in for a CUDA driver (see stand_in/stand_in.h)."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.builds import built_once, digest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "quant" / "kernels"
HOST_KERNELS = HERE / "host_kernels.cpp"
STRICT = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC")

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719

FIND_DEVICE = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int(0)
raise SystemExit(0 if driver.cuInit(0) == 0 == driver.cuDeviceGetCount(ctypes.byref(count))
                 and count.value > 0 else 1)
"""


def has_real_device() -> bool:
    """Ask, in a process of its own, whether there is a real driver with a device."""
    command = [sys.executable, "-c", FIND_DEVICE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compile_cpp(*args: object) -> None:
    """Run g++ with strict warnings; fail with what it says."""
    command = ["g++", *STRICT, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def build() -> Path:
    """Give the compiled stand-in, which takes the place of the driver once it is loaded."""
    sources = sorted((HERE / "stand_in").glob("*.*"))
    made = built_once("stand_in", digest((Path(__file__), *sources)), _build)
    return made / "libcuda.so.1"


def _build(folder: Path) -> Path:
    sources = sorted((HERE / "stand_in").glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        jobs = zip(sources, objects, strict=True)
        list(
            pool.map(
                lambda job: compile_cpp("-fvisibility=hidden", "-c", job[0], "-o", job[1]), jobs
            )
        )
    library = folder / "libcuda.so.1"
    compile_cpp("-shared", "-Wl,-soname,libcuda.so.1", *objects, "-o", library, "-ldl")
    return folder


def build_kernels(source: Path, library: Path, *flags: object) -> Path:
    """Compile the host forms of kernels for `StandIn.use_kernels`."""
    compile_cpp("-shared", *flags, source, "-o", library)
    return library


def build_host_kernels() -> Path:
    """Give the compiled host forms of the package's own kernels, a shared library."""
    headers = sorted(KERNELS.rglob("*.h")) + sorted(KERNELS.rglob("*.inc"))
    sources = (Path(__file__), HOST_KERNELS, *headers)
    return built_once("host_kernels", digest(sources), _build_host_kernels)


def _build_host_kernels(folder: Path) -> Path:
    # As the package's library is: contraction would change bytes.
    flags = ("-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas", f"-I{KERNELS}")
    jobs = {
        folder / "registers.o": ("-DWC_IN_REGISTERS=true",),
        folder / "memory.o": ("-DWC_IN_REGISTERS=false",),
    }
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda job: compile_cpp(*flags, *job[1], "-c", HOST_KERNELS, "-o", job[0]),
                jobs.items(),
            )
        )
    library = folder / "host_kernels.so"
    compile_cpp("-shared", *jobs, "-o", library)
    return library


class StandIn:
    """The loaded stand-in. Everything in this process that looks for a driver now finds it."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.stand_in_counter.restype = ctypes.c_int64

    def use_kernels(self, library: Path) -> None:
        """Take kernels' host forms from a shared library, before those named earlier."""
        assert self._library.stand_in_use_kernels(str(library).encode()) == 0

    def fail(self, function: str, status: int, after: int = 0) -> None:
        """Let the next call of a driver's function fail, or the one `after` calls later.

        "cuMemAlloc", "cuLaunchKernel" and so on; "kernel" is a kernel's run, which comes later
        than its launch and spoils the context until `reset`.
        """
        self._library.stand_in_fail(function.encode(), after, status)

    def counter(self, name: str) -> int:
        """Read a counter.

        live_bytes, live_allocations, live_streams, live_events, live_libraries, pinned_bytes,
        queued (operations) are what is there now; peak_bytes, allocations, copies, staged_copies
        (of memory that is not page-locked), bytes_in, bytes_out, launches, kernels_run, overruns
        (memory written outside of allocations) are counted since `reset`.
        """
        return int(self._library.stand_in_counter(name.encode()))

    def live(self) -> dict[str, int]:
        """Read what is there now, to compare before and after."""
        kinds = ("bytes", "allocations", "streams", "events", "libraries")
        return {kind: self.counter(f"live_{kind}") for kind in kinds} | {
            "pinned": self.counter("pinned_bytes")
        }

    def reset(self) -> None:
        """Forget failures and queued work, count from 0; what is allocated stays."""
        self._library.stand_in_reset()
