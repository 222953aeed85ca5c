"""`convert` on CUDA devices, which a stand-in plays."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import weightcast
from tests.commands.command_line import growing, names
from tests.stand_in_devices import Backend, Machine
from weightcast.converters import convert as conversion
from weightcast.converters.output import files as output_files
from weightcast.errors import DeviceError


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "prepare", lambda *a, **k: pytest.fail("read the source"))
    monkeypatch.setattr(output_files.OutputFiles, "__enter__", lambda self: pytest.fail("opened"))


def test_convert_on_devices(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("convert", tiny, tmp_path / "a-Q4_K_M.gguf", "--no-tokenizer").code == 0
    machine = Machine(2).install(monkeypatch)
    arguments = ["convert", tiny, "--no-tokenizer"]
    done = run(*arguments, tmp_path / "b-Q4_K_M.gguf", "--device", "cuda")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("B/s read) on cuda:0 (Stand-in), cuda:1 (Stand-in)\n")
    assert len(machine.backends) == 8
    done = run(*arguments, tmp_path / "c-Q4_K_M.gguf", "--device", "cuda:1", "--json")
    assert json.loads(done.out)["devices"] == ["cuda:1"]
    assert [backend.device.index for backend in machine.backends[8:]] == [1] * 4
    done = run(*arguments, tmp_path / "d-Q4_K_M.gguf", "--device", "auto", "--jobs", 3)
    assert (done.code, done.err) == (0, "")
    assert len(machine.backends) == 15
    a, *others = (tmp_path / f"{name}-Q4_K_M.gguf" for name in "abcd")
    assert all(other.read_bytes() == a.read_bytes() for other in others)
    machine.assert_given_back()


def test_auto_says_why_it_is_the_processor(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(0).install(monkeypatch)
    arguments = ["convert", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf", "--device", "auto"]
    reason = "quantizing on the processor: no CUDA driver on this machine: libcuda.so.1 is missing"
    assert run(*arguments).err == f"note: {reason}\n"
    assert run(*arguments, "--quiet").err == ""
    for option in ([], ["--dry-run"]):
        done = run(*arguments, "--json", *option)
        assert done.err == f"note: {reason}\n"
        result = json.loads(done.out)
        assert (result["devices"], result["device_note"]) == (["cpu"], reason)


@pytest.mark.parametrize("option", [[], ["--dry-run"], ["--quiet"], ["--json"]])
@pytest.mark.parametrize(
    ("device", "n_devices", "said"),
    [
        ("cuda", 0, "no CUDA driver on this machine: libcuda.so.1 is missing"),
        ("cuda:0", 0, "no CUDA driver on this machine: libcuda.so.1 is missing"),
        ("cuda:7", 2, "cuda:7: this machine has 2 CUDA devices (cuda:0, cuda:1)"),
        ("cuda:1", 1, "cuda:1: this machine has 1 CUDA device (cuda:0)"),
    ],
)
def test_devices_that_are_not_there(
    run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: list[str],
    device: str,
    n_devices: int,
    said: str,
) -> None:
    Machine(n_devices).install(monkeypatch)
    no_reading(monkeypatch)
    done = run("convert", tiny, tmp_path / "a-Q8_0.gguf", "--device", device, *option)
    assert (done.code, bool(done.out)) == (1, option == ["--json"])
    assert done.err.startswith(f"error: {said}")
    assert done.err.count("\n") == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("device", ["tpu", "gpu", "cuda:x", ""])
def test_an_unknown_device_is_wrong_usage(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    no_reading(monkeypatch)
    done = run("convert", tiny, tmp_path / "a-Q8_0.gguf", "--device", device)
    assert (done.code, done.out) == (2, "")
    possible = "possible: cpu, auto, cuda (all CUDA devices), cuda:N"
    assert done.err == f"usage error: {device!r} is no device; {possible}\n"


def test_dry_run_on_devices(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(2).install(monkeypatch)
    arguments = ["convert", "--dry-run", "--no-tokenizer", tiny, tmp_path / "a-Q4_K_M.gguf"]
    result = json.loads(run(*arguments, "--json", "--device", "cuda").out)
    assert result["devices"] == ["cuda:0", "cuda:1"]
    assert result["pinned_bytes"] == result["buffer_bytes"] > 2 * 1024 * 256 * 4
    assert result["bytes_on_each_device"] > 0
    lines = run(*arguments, "--device", "cuda").out.splitlines()
    pinned, on_each = (
        round(result[key] / 2**20) for key in ("pinned_bytes", "bytes_on_each_device")
    )
    assert f"memory: {pinned} MiB of page-locked buffers for 8 workers" in lines
    assert f"  and {on_each} MiB on each device: cuda:0 (Stand-in), cuda:1 (Stand-in)" in lines
    result = json.loads(run(*arguments, "--json").out)
    assert (result["pinned_bytes"], result["bytes_on_each_device"]) == (0, 0)
    assert not machine.backends
    assert not machine.pins


def test_a_device_that_fails_in_the_middle(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def during(backend: Backend) -> None:
        if backend.tasks == 2:
            raise DeviceError("cuda:0: a kernel failed: CUDA_ERROR_LAUNCH_FAILED")

    machine = Machine(during=during).install(monkeypatch)
    (tmp_path / "a-Q4_K_M.gguf").write_bytes(b"earlier")
    outputs = [tmp_path / "a-Q4_K_M.gguf", tmp_path / "a-bf16"]
    done = run("convert", "--no-tokenizer", tiny, *outputs, "--device", "cuda")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: cuda:0: a kernel failed: CUDA_ERROR_LAUNCH_FAILED\n"
    assert names(tmp_path) == ["a-Q4_K_M.gguf"]
    assert outputs[0].read_bytes() == b"earlier"
    machine.assert_given_back()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_a_lane_works(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What lanes use is given back when they have finished their pieces."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored

    def during(backend: Backend) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)
        time.sleep(0.05)

    machine = Machine(2, during=during).install(monkeypatch)
    arguments = ["convert", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf"]
    done = run(*arguments, tmp_path / "a-bf16", "--device", "cuda")
    assert done.code == 130
    assert "interrupted: nothing incomplete was left behind" in done.err
    assert names(tmp_path) == []
    assert machine.tasks.total()
    machine.assert_given_back()


def test_an_impatient_ctrl_c_in_python(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the command line's handlers every Ctrl-C would raise; lanes are waited for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def during(backend: Backend) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    machine = Machine(during=during).install(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        weightcast.convert(tiny, tmp_path / "a-Q8_0.gguf", no_tokenizer=True, device="cuda", jobs=1)
    assert names(tmp_path) in ([], growing("a-Q8_0.gguf"))
    machine.assert_given_back()
