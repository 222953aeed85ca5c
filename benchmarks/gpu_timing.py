"""Times on a device by its own events, speeds of copies, and the names of what was measured."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np

from weightcast.quant.cpu.library import isa
from weightcast.quant.cuda.compile import nvrtc_version
from weightcast.quant.cuda.device import Gpu, Memory, Stream
from weightcast.quant.cuda.driver import call

_PATIENCE_S: Final = 1.5  # slow work is repeated no longer than this


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report in one step: whoever writes it may be stopped at any time."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    new.replace(path)


def driver_version() -> str:
    """The driver's release as nvidia-smi knows it, and the CUDA version it serves."""
    number = int(call("asking for the driver's version", "cuDriverGetVersion"))
    cuda = f"CUDA {number // 1000}.{number % 1000 // 10}"
    program = shutil.which("nvidia-smi")
    if program is None:
        return cuda
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = said.stdout.split()
    return f"{lines[0]} ({cuda})" if said.returncode == 0 and lines else cuda


def describe_machine(gpu: Gpu) -> dict[str, Any]:
    """Name device, driver, compiler and processors."""
    return {
        "date": date.today().isoformat(),
        "device": f"{gpu.name} ({gpu.architecture}, {gpu.multiprocessors} multiprocessors)",
        "driver": driver_version(),
        "nvrtc": nvrtc_version(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "isa": isa(),
    }


class Clock:
    """Times work on one stream; the host runs ahead of the device, so gaps do not count."""

    def __init__(self, stream: Stream, ahead: Memory, repeat: int) -> None:
        self.stream, self._ahead, self._repeat = stream, ahead, repeat

    def times_ms(self, work: Callable[[], object]) -> list[float]:
        """Milliseconds of some work on the device, after a first time that is left out."""
        work()
        self.stream.synchronize()
        found = []
        begin = time.monotonic()
        while not found or (len(found) < self._repeat and time.monotonic() - begin < _PATIENCE_S):
            for _ in range(4):
                self.copy()
            start = self.stream.record(timing=True)
            work()
            end = self.stream.record(timing=True)
            end.synchronize()
            found.append(end.elapsed_ms(start))
        return found

    def median_ms(self, work: Callable[[], object]) -> float:
        return statistics.median(self.times_ms(work))

    def copy(self) -> None:
        """Copy half of the memory that is there for it to the other half."""
        half = self._ahead.nbytes // 2
        self.stream.copy(self._ahead.address, self._ahead.address + half, half)

    def copy_gb_s(self) -> float:
        """GB/s of a copy in device memory, bytes read and bytes written."""
        return 2 * (self._ahead.nbytes // 2) / self.median_ms(self.copy) / 1e6

    def link_gb_s(self, nbytes: int) -> dict[str, float]:
        """GB/s between page-locked host memory and the device, one way at a time."""
        stream = self.stream
        memory, host = stream.gpu.allocate(nbytes), np.zeros(nbytes, np.uint8)
        pinned = stream.gpu.pin(host)
        ways = {
            "to_device": lambda: stream.copy_in(memory.address, host),
            "to_host": lambda: stream.copy_out(host, memory.address),
        }
        found = {name: nbytes / self.median_ms(way) / 1e6 for name, way in ways.items()}
        pinned.unpin()
        return found
