"""`convert`: full disks, interrupts and bad weights; nothing complete is lost."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.command_line import damaged, growing, names
from weightcast.converters.bundle import release as bundle
from weightcast.converters.engine import executor
from weightcast.converters.files.names import partial_path
from weightcast.converters.graph import first_array
from weightcast.converters.output import files as output_files
from weightcast.converters.sources import open_graph
from weightcast.formats.jax.arrays import read_pickle


def interrupt_after(reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion be interrupted as it reads a slab."""
    real, done = executor.read_slab, []

    def read_slab(*arguments):
        done.append(arguments)
        if len(done) == reads:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)


@pytest.mark.parametrize("name", ["a-F16.gguf", "a-bf16"])
def test_a_failure_leaves_an_earlier_output_as_it_was(run, tmp_path: Path, name: str) -> None:
    source = damaged(tmp_path)
    target = tmp_path / name
    assert run("convert", "--no-tokenizer", source, target).code == 0
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    before = {file: file.read_bytes() for file in files}
    # A NaN scale is found only while weights are read.
    shard = source / "ckpt-0" / "tensor00024_000"
    raw = bytearray(shard.read_bytes())
    raw[-600:-400] = b"\xff" * 200
    shard.write_bytes(raw)
    shard = source / "ckpt-0" / "tensor00018_000"
    raw = bytearray(shard.read_bytes())
    raw[-100:-50] = b"\xff" * 50
    shard.write_bytes(raw)
    done = run("convert", "--no-tokenizer", source, target)
    assert done.code == 1
    assert "a scale that is NaN, infinite or 2**121 and more at [" in done.err
    assert len(done.err.splitlines()) == 1
    assert {file: file.read_bytes() for file in files} == before
    assert names(tmp_path) == sorted(["damaged", name])


def test_too_little_space_is_refused_before_the_first_byte(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
    monkeypatch.setattr(output_files.OutputFiles, "__enter__", lambda self: pytest.fail("opened"))
    done = run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert done.code == 1
    assert "1,000 are free" in done.err
    done = run("convert", "--dry-run", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert done.code == 0
    assert "NOT ENOUGH" in done.out


def test_what_a_killed_run_left_counts_as_free(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 20_000_000
    partial_path(tmp_path / "a-F16.gguf").write_bytes(os.urandom(size))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf").code == 0
    assert names(tmp_path) == ["a-F16.gguf"]


def test_a_disk_that_fills_up_in_the_middle(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    outputs = "a-Q8_0.gguf", "a-bf16"
    done = run("convert", "--no-tokenizer", tiny, *(tmp_path / name for name in outputs))
    assert done.code == 1
    assert "the disk is full" in done.err
    assert "is finished and kept" in done.err
    assert len(done.err.splitlines()) == 1
    assert names(tmp_path) == growing(*outputs)
    monkeypatch.undo()
    done = run("convert", "--no-tokenizer", tiny, *(tmp_path / name for name in outputs))
    assert (done.code, "going on after" in done.err) == (0, True)
    assert names(tmp_path) == list(outputs)


@pytest.mark.parametrize(("reads", "is_kept"), [(1, False), (20, True)])
def test_ctrl_c_keeps_what_is_finished(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int, is_kept: bool
) -> None:
    interrupt_after(reads, monkeypatch)
    outputs = "a-Q8_0.gguf", "a-bf16"
    done = run("convert", "--no-tokenizer", tiny, *(tmp_path / name for name in outputs))
    assert done.code == 130
    said = done.err.splitlines()[-1]
    if is_kept:
        assert "are finished and kept; run the same command again to go on" in said
        assert names(tmp_path) == growing(*outputs)
    else:
        assert "interrupted: nothing incomplete was left behind" in said
        assert names(tmp_path) == []


def test_ctrl_c_when_only_the_bundle_is_to_be_made(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_files(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    monkeypatch.setattr(bundle, "hash_files", hash_files)
    done = run("convert", "--quiet", "--no-tokenizer", "--bundle", tiny, tmp_path / "a-F16.gguf")
    assert done.code == 130
    said = "interrupted: 100% of a-F16.gguf is finished and kept; run the same command again"
    assert said in done.err
    assert names(tmp_path) == growing("a-F16.gguf")


def test_a_signal_during_the_renames_waits_for_them(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = output_files._replace

    def replace(*args: Any) -> Path | None:
        replaced = real(*args)
        os.kill(os.getpid(), signal.SIGINT)
        return replaced

    monkeypatch.setattr(output_files, "_replace", replace)
    done = run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf", tmp_path / "a-bf16")
    assert done.code == 0
    assert names(tmp_path) == ["a-F16.gguf", "a-bf16"]


def test_weights_too_large_for_q8_0_are_refused(run, tmp_path: Path) -> None:
    source = damaged(tmp_path)
    shard = source / "ckpt-0" / "tensor00000_000"
    raw = bytearray(shard.read_bytes())
    at = read_pickle(shard).offset + 4000
    raw[at : at + 4] = np.float32(1e37).tobytes()
    shard.write_bytes(raw)
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-Q8_0.gguf")
    assert done.code == 1
    assert "token_embd.weight: values too large for the float16 scale of Q8_0 at [" in done.err
    remedy = "--tensor-type token_embd.weight=BF16"
    assert done.err.endswith(f"; {remedy} gives it a wider range\n")
    options = shlex.split(remedy)
    assert run("convert", "--no-tokenizer", *options, source, tmp_path / "a-Q8_0.gguf").code == 0
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-f16")
    assert done.code == 1
    assert done.err.endswith("; write a directory in bf16\n")
    assert run("convert", "--no-tokenizer", source, tmp_path / "a-F32.gguf").code == 0


def test_a_bad_value_in_an_expert_names_the_expert(run, tmp_path: Path) -> None:
    source = damaged(tmp_path)
    shard = source / "ckpt-0" / "tensor00003_000"
    raw = bytearray(shard.read_bytes())
    raw[-20:-10] = b"\xff" * 10  # at the end of the scales of the last expert
    shard.write_bytes(raw)
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-F32.gguf")
    assert "blk.0.ffn_down_exps.weight, expert 7: a scale that is NaN" in done.err


def test_a_bad_value_of_a_transposed_matrix(run, tmp_path: Path) -> None:
    source = damaged(tmp_path)
    router = first_array(open_graph(source)["transformer/decoder_layer_0/router/w"])
    assert router.shape == (256, 8)  # [in, out]
    raw = bytearray(router.path.read_bytes())
    at = router.offset + 4 * (5 * router.shape[1] + 3)
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    router.path.write_bytes(raw)
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-F32.gguf")
    assert "blk.0.ffn_gate_inp.weight: NaN or infinity at [3, 5] (out, in)" in done.err
