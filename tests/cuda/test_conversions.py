"""Whole conversions on devices: the CPU's files, through the driver and from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests import imatrices
from tests.cuda.stand_in import StandIn
from tests.gguf_files import read
from tests.support import Golden
from weightcast.converters.plan import budget as memory

WIDE = Golden("wide").path
Run = Callable[..., subprocess.CompletedProcess[str]]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def importance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    weightcast.convert(WIDE, folder / "m-F32.gguf", no_tokenizer=True)
    shapes = {name: part.shape for name, part in read(folder / "m-F32.gguf").tensors.items()}
    return imatrices.write_gguf(folder / "i.gguf", imatrices.model_entries(shapes))


@pytest.mark.parametrize(
    ("outputs", "weighed"),
    [
        (["a-Q8_0.gguf", "a-bf16", "a-F32.gguf"], False),
        (["a-Q4_K_M.gguf", "a-Q5_K_S.gguf", "a-Q4_0.gguf"], False),
        (["a-Q4_K_M.gguf", "a-IQ2_XS.gguf", "a-Q4_1.gguf"], True),
        (["a-int4-g32", "a-int4-g64-asym-awq", "a-int8-g32", "a-int8-channel-asym"], False),
        (["a-int4-g64-asym", "a-int4-channel-gptq", "a-Q4_K_M.gguf"], True),
        (["a-mxfp4", "a-nvfp4", "a-fp8-block"], False),
    ],
)
def test_files_are_those_of_the_cpu(
    kernels: StandIn | None,
    importance: Path,
    outputs: list[str],
    weighed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "SLAB_BYTES", 200_000)
    monkeypatch.setattr(memory, "DEVICE_TASK_BYTES", 50_000)
    folders = {device: tmp_path / device for device in ("cpu", "cuda")}
    summaries = {}
    for device, folder in folders.items():
        folder.mkdir()
        monkeypatch.chdir(folder)
        summaries[device] = weightcast.convert(
            WIDE,
            *outputs,
            no_tokenizer=True,
            imatrix=importance if weighed else None,
            device=device,
            report="report.json",
            baseline="bf16" if weighed else None,
        )
    assert contents(folders["cuda"]) == contents(folders["cpu"])
    assert summaries["cuda"].counts == summaries["cpu"].counts
    if kernels is not None:
        assert kernels.counter("pinned_bytes") == 0
        assert kernels.counter("kernels_run") > 100


def test_a_quantized_source_is_unpacked_on_the_device(
    kernels: StandIn | None, tmp_path: Path
) -> None:
    source = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(WIDE, source, no_tokenizer=True)
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        target = tmp_path / device / "a-Q4_K_M.gguf"
        weightcast.convert(source, target, device=device, allow_requantize=True)
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")


def test_what_is_not_finite_is_named(kernels: StandIn | None, tmp_path: Path) -> None:
    source = tmp_path / "m-F32.gguf"
    weightcast.convert(WIDE, source, no_tokenizer=True)
    part = read(source).tensors["blk.0.attn_q.weight"]
    raw = bytearray(source.read_bytes())
    first = np.frombuffer(part.data, np.float32)[:8].tobytes()
    at = raw.index(first) + 4 * (3 * part.shape[-1] + 5)
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    source.write_bytes(raw)
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(weightcast.CheckpointError) as error:
            weightcast.convert(source, tmp_path / "a-Q4_K_M.gguf", device=device)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "blk.0.attn_q.weight" in said[0]
    assert not (tmp_path / "a-Q4_K_M.gguf").exists()


@pytest.fixture
def command(loaded_driver: StandIn | None, host_kernels: Path) -> Run:
    """Run the command in a process that finds the driver by itself."""

    def run(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables}
        if loaded_driver is not None:
            environment["LD_LIBRARY_PATH"] = str(loaded_driver.path.parent)
            environment["STAND_IN_KERNELS"] = str(host_kernels)
        program = str(Path(sys.executable).with_name("weightcast"))
        return subprocess.run(
            [program, *map(str, args)], capture_output=True, text=True, env=environment, check=False
        )

    return run


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_command(command: Run, tmp_path: Path, device: str) -> None:
    paths = [tmp_path / name / "a-Q4_K_M.gguf" for name in ("cpu", "device")]
    for path in paths:
        path.parent.mkdir()
    weightcast.convert(WIDE, paths[0], no_tokenizer=True)
    done = command("convert", "--no-tokenizer", "--json", "--device", device, WIDE, paths[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"][0] == "cuda:0"
    assert paths[1].read_bytes() == paths[0].read_bytes()


def test_command_without_devices(command: Run, only_stand_in: StandIn, tmp_path: Path) -> None:
    arguments = ("convert", "--no-tokenizer", WIDE, tmp_path / "a-Q8_0.gguf", "--device")
    refused = command(*arguments, "cuda", STAND_IN_DEVICES="")
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: no CUDA device on this machine: the driver is there, but finds none\n"
    )
    assert not list(tmp_path.iterdir())
    done = command(*arguments, "auto", STAND_IN_DEVICES="")
    assert done.returncode == 0
    assert "quantizing on the processor: no CUDA device on this machine" in done.stderr
    assert (tmp_path / "a-Q8_0.gguf").exists()


def test_command_on_a_device_that_is_too_old(
    command: Run, only_stand_in: StandIn, tmp_path: Path
) -> None:
    target = tmp_path / "a-Q8_0.gguf"
    arguments = ("convert", "--no-tokenizer", WIDE, target, "--device", "cuda")
    done = command(*arguments, STAND_IN_DEVICES="6.1")
    assert done.returncode == 1
    assert "makes no code for sm_61 devices" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_command_runs_out_of_device_memory(
    command: Run, only_stand_in: StandIn, tmp_path: Path
) -> None:
    target = tmp_path / "a-Q8_0.gguf"
    target.write_text("earlier")
    arguments = ("convert", "--no-tokenizer", WIDE, target, "--device", "cuda")
    done = command(*arguments, STAND_IN_BYTES="100000")
    assert done.returncode == 1
    assert "out of device memory" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-Q8_0.gguf"]
    assert target.read_text() == "earlier"
