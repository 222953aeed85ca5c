"""Every byte of every output is written once: of all kinds, and of the whole release's size."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import pytest

import weightcast
from weightcast.converters import convert as conversion
from weightcast.converters.engine import Meter, Progress, executor
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import write_checkpoint
from weightcast.converters.graph.read import Slab
from weightcast.converters.output.files import OutputFiles
from weightcast.converters.output.journal import Contents, FinishedRows, Write
from weightcast.converters.plan.plan import Destination, Plan
from weightcast.converters.plan.workers import Workers
from weightcast.converters.sources.options import ConvertOptions
from weightcast.quant.backend import CpuBackend
from weightcast.quant.cpu.library import BlockCounts

ALIGNMENT = 32  # of tensors in GGUF files; those of safetensors follow each other
Intervals = dict[tuple[int, int], list[tuple[int, int]]]


def check_coverage(plan: Plan, written: Intervals) -> None:
    """Raise AssertionError for a byte that is written twice or never, padding aside."""
    for number, output in enumerate(plan.outputs):
        for index, file in enumerate(output.files):
            spans = [(0, len(file.header)), *written[number, index]]
            spans += [(o, o + len(data)) for f, o, data in output.constants if f == index]
            end = 0
            for start, stop in sorted(spans):
                assert 0 <= start - end < ALIGNMENT, (file.path.name, end, start)
                end = stop
            assert 0 <= file.size - end < ALIGNMENT, (file.path.name, end, file.size)


class NoFiles:
    """Outputs of any size that take no room: places are noted, bytes forgotten."""

    written: ClassVar[Intervals] = defaultdict(list)

    def __init__(self, plan: Plan, *, resume: bool) -> None:
        NoFiles.written.clear()

    def __enter__(self) -> NoFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def earlier(self, output: int) -> Contents:
        return Contents()

    def forget_earlier(self) -> None: ...

    def write(self, destination: Destination, data: memoryview, offset: int) -> Write:
        self.written[destination.output, destination.file].append((offset, offset + len(data)))
        return Write(destination.file, offset, len(data), 1, 0, "")

    def note_rows(self, output: int, finished: FinishedRows) -> None: ...

    def flush(self, on_progress: object) -> None: ...

    def commit(self, beside: object) -> None: ...


class NoKernels(CpuBackend):
    """A backend that makes nothing."""

    def quantize(self, *arguments: Any) -> BlockCounts:
        return BlockCounts()


def no_slab(view: Any, out0: int, out1: int, buffer: memoryview) -> Slab:
    """A slab that nobody reads, but for the few small tensors that are copied."""
    copied = (out1 - out0) * view.shape[1] * view.item_bytes if view.dtype == "F32" else 0
    return Slab(view, out1 - out0, np.frombuffer(buffer[:copied], np.uint8), 1, None)


def test_the_release_goes_through_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """770 sparse shards, 314 billion weights; 1.16 TB of outputs, no kernels, no disk."""
    write_checkpoint(tmp_path / "grok-1", RELEASE, sparse=True)
    outputs = [tmp_path / name for name in ("g-Q8_0.gguf", "g-Q4_K_M.gguf", "g-bf16")]
    plan = conversion.prepare(
        tmp_path / "grok-1", outputs, ConvertOptions(no_tokenizer=True, split="48G")
    )
    monkeypatch.setattr(executor, "OutputFiles", NoFiles)
    monkeypatch.setattr(executor, "CpuBackend", NoKernels)
    monkeypatch.setattr(executor, "read_slab", no_slab)
    done: list[Progress] = []
    executor.run(plan, Workers(3), Meter(done.append))
    assert max(each.done_bytes for each in done if each.phase == "convert") == plan.read_bytes
    assert plan.read_bytes > 318e9
    assert plan.write_bytes > 1.1e12
    check_coverage(plan, NoFiles.written)


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_byte_is_written_once(
    jobs: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "x-Q8_0.gguf",
        "x-IQ4_NL.gguf",
        "x-F16.gguf",
        "x-bf16",
        "x-int8-g32",
        "x-int4-g32-asym",
    ]
    names += ["x-int8-g32-gptq", "x-int4-g32-awq", "x-int4-g64-weightcast", "x-mxfp4", "x-nvfp4"]
    names += ["x-fp8", "x-fp8-block"]
    monkeypatch.setattr("weightcast.converters.plan.budget.SLAB_BYTES", 1 << 16)
    monkeypatch.setattr("weightcast.converters.plan.budget.TASK_BYTES", 1 << 14)
    written: Intervals = defaultdict(list)
    real = OutputFiles.write_runs

    def write_runs(self: Any, output: int, file: int, runs: Any, offset: int, stride: int) -> Write:
        for number in range(len(runs)):
            start = offset + number * stride
            written[output, file].append((start, start + runs.shape[1]))
        return real(self, output, file, runs, offset, stride)

    monkeypatch.setattr(OutputFiles, "write_runs", write_runs)
    outputs = [tmp_path / name for name in names]
    summary = weightcast.convert(tiny, *outputs, no_tokenizer=True, jobs=jobs, split="300K")
    check_coverage(summary.plan, written)
