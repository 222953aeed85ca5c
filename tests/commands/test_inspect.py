"""`inspect`: what is in a checkpoint, and one line for what is none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests import gguf_files
from tests.commands.command_line import damaged, names
from weightcast.converters.sources import open_graph


def test_bad_input_is_one_line_and_exit_1(run, tmp_path: Path) -> None:
    source = damaged(tmp_path)
    shard = source / "ckpt-0" / "tensor00004_000"
    for command in (["inspect", source], ["convert", source, tmp_path / "a-F16.gguf"]):
        shard.write_bytes(shard.read_bytes()[:500_000])
        done = run(*command)
        assert done.code == 1
        assert done.out == ""
        assert len(done.err.splitlines()) == 1
        assert done.err.startswith(f"error: {shard} at byte ")
        assert "truncated" in done.err
    assert names(tmp_path) == ["damaged"]


@pytest.mark.parametrize("name", ["nothing", "empty", "file.txt"])
def test_sources_that_are_none(run, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    done = run("inspect", tmp_path / name)
    assert done.code == 1
    assert str(tmp_path / name) in done.err
    assert len(done.err.splitlines()) == 1


def test_a_directory_of_gguf_files_gets_a_hint(run, tiny: Path, tmp_path: Path) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert "did you mean" in run("inspect", tmp_path).err


def test_an_unreadable_shard(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = damaged(tmp_path)
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith("tensor00003_000"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    done = run("inspect", source)
    assert done.code == 1
    assert "tensor00003_000: cannot be read: Permission denied" in done.err


def test_a_relative_source_finds_what_lies_beside_it(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(damaged(tmp_path) / "ckpt-0")
    assert run("inspect", ".").code == 0
    assert run("inspect", "..").code == 0


def test_a_foreign_tensor_name_is_shown_in_one_short_line(run, tiny: Path, tmp_path: Path) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-f16")
    (tmp_path / "a-f16" / "model-2.safetensors").write_bytes(
        save({"evil\n\x1b[31m" + "x" * 5000: np.zeros(1, np.float32)})
    )
    done = run("inspect", tmp_path / "a-f16")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert len(done.err) < 500
    assert "\x1b" not in done.err


def test_inspect_lists_tensors_and_json(run, tiny: Path) -> None:
    done = run("inspect", "--all", tiny)
    assert "tensor00013_000" in done.out
    values = json.loads(run("inspect", "--json", tiny).out)
    assert values["parameters"] == open_graph(tiny).parameters
    assert len(values["tensors"]) == 26
    assert values["tensors"][1]["stored_as"] == "I8 x BF16[1]"


def test_inspect_of_every_output(run, tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16"]
    run("convert", "--no-tokenizer", tiny, *outputs)
    for output in outputs:
        done = run("inspect", output)
        assert done.code == 0
        assert f"{open_graph(tiny).parameters:,} parameters" in done.out


def test_inspect_any_gguf(run, any_gguf: Path) -> None:
    done = run("inspect", any_gguf)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{any_gguf}: my-arch, 1,024 parameters"
    assert lines[1] == "2 tensors in 1 file, 4,096 bytes (4.10 kB)"
    assert "  my-arch.block_count                          3" in lines
    assert "  tokenizer.ggml.tokens        26 x string" in lines
    assert "\x1b" not in done.out
    assert lines[-1].split() == ["layer", "N:", "a.weight", "2", "x", "256", "F32", "x", "2"]
    all_lines = run("inspect", "--all", any_gguf).out
    assert "blk.0.a.weight" in all_lines
    assert "blk.1.a.weight" in all_lines


def test_inspect_any_gguf_as_json(run, any_gguf: Path) -> None:
    done = run("inspect", "--json", any_gguf)
    values = json.loads(done.out)
    assert values["family"] == "my-arch"
    assert values["hyperparameters"]["my-arch.block_count"] == 3
    assert values["hyperparameters"]["tokenizer.ggml.tokens"] == {"array": "string", "length": 26}
    assert [tensor["name"] for tensor in values["tensors"]] == ["blk.0.a.weight", "blk.1.a.weight"]
    assert values["tensors"][0]["stored_as"] == "F32"


def test_inspect_a_grok_that_is_not_grok_1(run, any_gguf: Path) -> None:
    x = gguf_files.floats(np.ones((2, 32), np.float32))
    gguf_files.write(any_gguf, {"general.architecture": gguf_files.string("grok")}, {"a.weight": x})
    done = run("inspect", any_gguf)
    assert done.code == 0
    assert done.out.splitlines()[0] == f"{any_gguf}: grok, 64 parameters"
    assert "note: not a Grok-1 that could be written as a directory: " in done.out
    assert "not a Grok-1" in json.loads(run("inspect", "--json", any_gguf).out)["notes"][0]
    assert run("convert", any_gguf, any_gguf.parent / "a-Q8_0.gguf").code == 0
