"""The command line as a user meets it: exit codes, one-line errors, nothing lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import weightcast
from tests import gguf_files
from tests.stand_in_devices import Lane, Machine
from tests.support import GOLDEN
from weightcast import cli
from weightcast.commands import progress
from weightcast.converters import convert as conversion
from weightcast.converters.bundle import release as bundle
from weightcast.converters.compare import measure
from weightcast.converters.engine import executor
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.files.names import partial_path
from weightcast.converters.graph.view import first_array
from weightcast.converters.output import files as output_files
from weightcast.converters.output.disk_space import DiskSpace, disk_space
from weightcast.errors import DeviceError, OutputError
from weightcast.formats.jax.arrays import read_pickle


class Done:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["weightcast", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt_after(reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion be interrupted as it reads a slab."""
    real, done = executor.read_slab, []

    def read_slab(*arguments):
        done.append(arguments)
        if len(done) == reads:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)


def growing(*outputs: str) -> list[str]:
    """The names of what an interrupted run keeps of outputs."""
    return sorted(f".{name}.{what}" for name in outputs for what in ("journal", "partial"))


def test_several_outputs_of_one_read(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", tiny, tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16", "--no-tokenizer")
    assert (done.code, done.err) == (0, "")
    assert names(tmp_path) == ["a-Q8_0.gguf", "a-bf16"]
    assert "14 tensors carry the source's int8 codes and scales unchanged: lossless" in done.out
    assert "quantized: token_embd.weight" in done.out


def test_json_result(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--json", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf")
    result = json.loads(done.out)
    (output,) = result["outputs"]
    assert output["bytes"] == (tmp_path / "a-Q8_0.gguf").stat().st_size
    assert output["types"] == {"F32": 11, "Q8_0": 15}
    assert output["q8_0"]["quantized"] == ["token_embd.weight"]


def test_quiet_prints_nothing(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--quiet", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_dry_run_writes_nothing(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--dry-run", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert done.code == 0
    assert names(tmp_path) == []
    done_json = run(
        "convert", "--dry-run", "--json", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf"
    )
    size = json.loads(done_json.out)["outputs"][0]["bytes"]
    assert f"{size:,} bytes" in done.out
    run("convert", "--quiet", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert (tmp_path / "a-F16.gguf").stat().st_size == size


def test_types_by_option(run, tiny: Path, tmp_path: Path) -> None:
    arguments = ["--type", "q8_0", "--type", "BF16", tiny, tmp_path / "a.gguf", tmp_path / "b"]
    assert run("convert", "--no-tokenizer", *arguments).code == 0
    assert names(tmp_path) == ["a.gguf", "b"]
    assert (tmp_path / "b" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.gguf"], "the name does not end in a type (BF16, F16, F32, IQ1_M"),
        (["model-Q9_9.gguf"], "Q9_9 is not a type of a GGUF file; known: BF16, F16, F32, IQ1_M"),
        (["model-q8.0k.gguf"], "the name does not end in a type"),
        (["model-int7"], "int7 is not a type of a safetensors directory; known: bf16, f16, f32"),
        (["model"], "the name does not end in a type (bf16, f16, f32, int8,"),
        (["model-F16.gguf/"], "leave the slash out"),
        (["--split", "9" * 400, "a-F16.gguf"], "is not a sensible size"),
        (["--jobs", "100000", "a-F16.gguf"], "Invalid value for '--jobs'"),
        (["a-bf16", "a-bf16/b-F16.gguf"], "another output lies in it"),
        (["model-Q8_0"], "Q8_0 is not a type of a safetensors directory"),
        (["m-F16.safetensors"], "safetensors are written as a directory"),
        (["--type", "Q9", "m.gguf"], "Q9 is not a type of a GGUF file"),
        (["--type", "F16", "a.gguf", "b.gguf"], "1 types for 2 outputs"),
        (["a-F16.gguf", "./a-F16.gguf"], "two outputs have the same name"),
        (["--tensor-type", "attn_v", "a-F16.gguf"], "attn_v: write it as REGEX=TYPE"),
        (["--tensor-type", "attn_v=Q9", "a-F16.gguf"], "attn_v=Q9: unknown type 'Q9'; known: BF"),
        (["m-Q4_K_M"], "fp8, fp8-block; the name of a GGUF file ends in .gguf"),
        (["--split", "many", "a-F16.gguf"], "'many' is not a size"),
        (["--split", "0", "a-F16.gguf"], "'0' is not a sensible size"),
        (["--jobs", "0", "a-F16.gguf"], "Invalid value for '--jobs'"),
        (["--tokenizer", "t.model", "a-F16.gguf"], "a tokenizer and no tokenizer"),
        (["--tpye", "F16", "a.gguf"], "No such option '--tpye'"),
        ([], "Missing argument 'OUT...'"),
    ],
)
def test_wrong_usage_is_exit_2(
    run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("convert", "--no-tokenizer", tiny, *arguments)
    assert done.code == 2
    assert said in done.err
    assert names(tmp_path) == []


def test_an_unknown_command_is_exit_2(run) -> None:
    assert run("covnert").code == 2


def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(GOLDEN / "wide", folder, ignore=lambda *_: ["logits_fp32.npz"])
    return folder


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


def test_an_output_is_replaced_whole(run, tiny: Path, tmp_path: Path) -> None:
    for name in ("a-f16", "a-F16.gguf"):
        assert run("convert", "--no-tokenizer", tiny, tmp_path / name, "--split", "3M").code == 0
        assert run("convert", "--no-tokenizer", tiny, tmp_path / name).code == 0
    assert names(tmp_path / "a-f16") == [
        "config.json",
        "configuration_grok1.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_grok1.py",
    ]


def test_foreign_directories_are_not_replaced(run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "docs-bf16").mkdir()
    (tmp_path / "docs-bf16" / "thesis.txt").write_text("years of work")
    done = run("convert", "--no-tokenizer", tiny, tmp_path / "docs-bf16")
    assert done.code == 1
    assert "holds thesis.txt, which no conversion wrote" in done.err
    assert (tmp_path / "docs-bf16" / "thesis.txt").read_text() == "years of work"


def test_the_source_is_not_overwritten(run, tiny: Path, tmp_path: Path) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-F32.gguf", tmp_path / "a-f32")
    before = (tmp_path / "a-F32.gguf").read_bytes()
    done = run("convert", "--no-tokenizer", tmp_path / "a-F32.gguf", tmp_path / "a-F32.gguf")
    assert (done.code, "is or holds the source" in done.err) == (1, True)
    assert (tmp_path / "a-F32.gguf").read_bytes() == before
    done = run("convert", "--no-tokenizer", tmp_path / "a-f32", tmp_path / "a-f32")
    assert (done.code, "is or holds the source" in done.err) == (1, True)


def test_a_missing_output_directory(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--no-tokenizer", tiny, tmp_path / "typo" / "a-F16.gguf")
    assert done.code == 1
    assert f"{tmp_path / 'typo'}: no such directory" in done.err


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
        assert "is finished and kept; run the same command again" in said
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_first_moment(number: int) -> None:
    """While the command is imported, wherever that is: no traceback."""
    script = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        f"            os.kill(os.getpid(), {number:d})\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from weightcast.start import main\n"
        "print('started', flush=True)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "started\n", "interrupted\n")


def test_the_command_starts_there() -> None:
    (script,) = entry_points(group="console_scripts", name="weightcast")
    assert script.value == "weightcast.start:main"


def test_sigterm_ends_a_real_process_cleanly(tiny: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from weightcast.converters.engine import executor as execute\n"
        "real = execute.read_slab\n"
        "def slow(*a):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return real(*a)\n"
        "execute.read_slab = slow\n"
        "from weightcast.cli import main\n"
        "main()\n"
    )
    arguments = ["convert", "--no-tokenizer", str(tiny), str(tmp_path / "a-Q8_0.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert names(tmp_path) == []


def test_two_conversions_of_one_output_exclude_each_other(run, tiny: Path, tmp_path: Path) -> None:
    partial = partial_path(tmp_path / "a-F16.gguf")
    with partial.open("wb") as other:
        other.write(b"growing")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        done = run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
        assert done.code == 1
        assert "another conversion is writing this output" in done.err
        assert partial.read_bytes() == b"growing"
    # What a killed run left behind does not matter.
    assert run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf").code == 0
    assert names(tmp_path) == ["a-F16.gguf"]


@pytest.mark.parametrize("option", ["--spec", "--tokenizer", "--recipe", "--imatrix"])
def test_files_that_must_not_be_read_are_bad_input(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Not wrong usage, which a check of click's would make of them."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != secret)
    done = run("convert", option, secret, tiny, tmp_path / "a-Q8_0.gguf")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert str(secret) in done.err


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


def test_inspect_lists_tensors_and_json(run, tiny: Path) -> None:
    done = run("inspect", "--all", tiny)
    assert "tensor00013_000" in done.out
    values = json.loads(run("inspect", "--json", tiny).out)
    assert values["parameters"] == weightcast.open(tiny).parameters
    assert len(values["tensors"]) == 26
    assert values["tensors"][1]["stored_as"] == "I8 x BF16[1]"


def test_inspect_of_every_output(run, tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16"]
    run("convert", "--no-tokenizer", tiny, *outputs)
    for output in outputs:
        done = run("inspect", output)
        assert done.code == 0
        assert f"{weightcast.open(tiny).parameters:,} parameters" in done.out


def test_the_demo_runs_and_agrees(run) -> None:
    done = run("demo")
    assert done.code == 0
    assert "96 of 96 agree" in done.out
    assert "tiny-F32.gguf    llama.cpp" in done.out


def test_the_demo_can_keep_its_files(run, tmp_path: Path) -> None:
    assert run("demo", "--keep", tmp_path / "kept").code == 0
    assert "tiny-Q8_0.gguf" in names(tmp_path / "kept")


@pytest.mark.parametrize(
    ("text", "size"),
    [("48G", 48 * 10**9), ("500M", 5 * 10**8), ("4GiB", 4 * 2**30), ("1.5k", 1500), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert conversion.parse_size(text) == size


def test_progress_lines_name_the_share_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([5.0, 10.0, 25.0, 26.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.ProgressLines(100)
    for nbytes in (0, 5, 5, 5):
        lines.update(nbytes)
    assert capsys.readouterr().err == "10% done, about 3 min left\n"


def test_progress_does_not_count_what_an_interrupted_run_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time left follows from what is made now; nothing made yet is no division by zero."""
    clock = iter([100.0, 120.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.ProgressLines(100)
    for nbytes in (50, 0, 10):
        lines.update(nbytes)
    assert capsys.readouterr().err == "60% done, about 2 min left\n"


def test_disk_space_is_summed_per_file_system(tiny: Path, tmp_path: Path) -> None:
    plan = conversion.prepare(
        tiny, [tmp_path / "a-F16.gguf", tmp_path / "b-F16.gguf"], no_tokenizer=True
    )
    (space,) = disk_space(plan.outputs)
    assert isinstance(space, DiskSpace)
    assert space.needed == plan.write_bytes


def test_a_directory_above_the_source_is_not_replaced(run, tmp_path: Path) -> None:
    source = damaged(tmp_path) / "ckpt-0"
    (tmp_path / "damaged" / "config.json").write_text("{}")
    done = run("convert", "--no-tokenizer", "--type", "bf16", source, tmp_path / "damaged")
    assert (done.code, "is or holds the source" in done.err) == (1, True)
    assert len(names(source)) == 26


def test_a_directory_of_links_is_not_replaced_by_what_it_links_to(run, tmp_path: Path) -> None:
    """Downloads keep blobs elsewhere and link to them."""
    source = damaged(tmp_path)
    (tmp_path / "snapshot").mkdir()
    for shard in (source / "ckpt-0").iterdir():
        (tmp_path / "snapshot" / shard.name).symlink_to(shard)
    shutil.copy(source / "spec.json", tmp_path / "snapshot")
    assert run("inspect", tmp_path / "snapshot").code == 0
    target = tmp_path / "snapshot"
    done = run("convert", "--no-tokenizer", "--type", "f16", target, target)
    assert (done.code, "is or holds the source" in done.err) == (1, True)
    assert len(names(target)) == 27


def test_outputs_do_not_go_into_a_checkpoint(run, tmp_path: Path) -> None:
    source = damaged(tmp_path)
    done = run("convert", "--no-tokenizer", source, source / "ckpt-0" / "a-F16.gguf")
    assert (done.code, "write beside it" in done.err) == (1, True)
    assert run("inspect", source).code == 0


def test_a_converted_directory_with_something_of_yours_is_not_replaced(
    run, tiny: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a-bf16"
    assert run("convert", "--no-tokenizer", tiny, target).code == 0
    (target / "my-finetune").mkdir()
    (target / "my-finetune" / "weights.bin").write_bytes(b"weeks")
    done = run("convert", "--no-tokenizer", tiny, target)
    assert (done.code, "holds my-finetune" in done.err) == (1, True)
    assert (target / "my-finetune" / "weights.bin").read_bytes() == b"weeks"


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a file system where two directories cannot change places."""
    monkeypatch.setattr(output_files, "exchange", lambda a, b: False)


def test_a_directory_is_replaced_without_exchange_too(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exchange(monkeypatch)
    for _ in range(2):
        assert run("convert", "--no-tokenizer", tiny, tmp_path / "a-bf16").code == 0
    assert names(tmp_path) == ["a-bf16"]


def test_a_failed_rename_gives_the_earlier_directory_back(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a-bf16"
    assert run("convert", "--no-tokenizer", tiny, target).code == 0
    before = (target / "model.safetensors").stat().st_ino
    without_exchange(monkeypatch)
    real = os.rename

    def rename(source: Path, to: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        real(source, to)

    monkeypatch.setattr(os, "rename", rename)
    done = run("convert", "--no-tokenizer", tiny, target)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert names(tmp_path) == [*growing("a-bf16"), "a-bf16"]
    assert (target / "model.safetensors").stat().st_ino == before


def test_an_output_that_a_killed_run_put_aside_is_not_lost(run, tiny: Path, tmp_path: Path) -> None:
    target, aside = tmp_path / "a-bf16", tmp_path / ".a-bf16.replaced"
    assert run("convert", "--no-tokenizer", tiny, target).code == 0
    target.rename(aside)
    done = run("convert", "--no-tokenizer", tiny, target)
    assert (done.code, "rename or delete it" in done.err) == (1, True)
    assert names(tmp_path) == [".a-bf16.replaced"]
    assert (aside / "model.safetensors").is_file()


def test_a_signal_during_the_renames_waits_for_them(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = output_files._replace

    def replace(partial: Path, final: Path) -> None:
        real(partial, final)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(output_files, "_replace", replace)
    done = run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf", tmp_path / "a-bf16")
    assert done.code == 0
    assert names(tmp_path) == ["a-F16.gguf", "a-bf16"]


def test_something_that_appears_during_the_conversion_is_not_deleted(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a-bf16"
    real = executor.read_slab

    def read_slab(*arguments):
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").write_text("precious")
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    done = run("convert", "--no-tokenizer", tiny, target)
    assert (done.code, "appeared during the conversion" in done.err) == (1, True)
    assert (target / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", [".a-F16.gguf.partial", ".a-F16.gguf.replaced"])
def test_a_source_where_the_output_would_grow(run, tiny: Path, tmp_path: Path, name: str) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "b-F16.gguf")
    before = (tmp_path / "b-F16.gguf").read_bytes()
    (tmp_path / "b-F16.gguf").rename(tmp_path / name)
    done = run("convert", "--no-tokenizer", tmp_path / name, tmp_path / "a-F16.gguf")
    assert (done.code, "is or holds the source" in done.err) == (1, True)
    assert (tmp_path / name).read_bytes() == before


def test_a_source_under_another_name(run, tiny: Path, tmp_path: Path) -> None:
    """A hard link, like a directory that is mounted twice, is the same file elsewhere."""
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-F32.gguf")
    os.link(tmp_path / "a-F32.gguf", tmp_path / "b-F16.gguf")
    done = run("convert", "--no-tokenizer", tmp_path / "a-F32.gguf", tmp_path / "b-F16.gguf")
    assert (done.code, "is or holds the source" in done.err) == (1, True)


def test_nohup_is_respected(tiny: Path, tmp_path: Path) -> None:
    """A signal that was ignored from the start, as in background jobs too, stays ignored."""
    arguments = ["convert", "--no-tokenizer", str(tiny), str(tmp_path / "a-F16.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", "from weightcast.cli import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
    assert process.returncode == 0
    assert names(tmp_path) == ["a-F16.gguf"]


def test_closed_streams_do_not_matter(tiny: Path, tmp_path: Path) -> None:
    script = "from weightcast.cli import main; main()"
    command = f"{sys.executable} -c '{script}' convert --no-tokenizer {tiny} {tmp_path}/a-F16.gguf"
    for redirection in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{command} {redirection}"], capture_output=True)
        assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["a-F16.gguf"]


def test_an_output_that_is_a_link_is_written_where_it_leads(
    run, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("a-bf16", "a-F16.gguf"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        for _ in range(2):
            assert run("convert", "--no-tokenizer", tiny, tmp_path / name).code == 0
        assert (tmp_path / name).is_symlink()
    assert names(tmp_path / "disk") == ["a-F16.gguf", "a-bf16"]


@pytest.mark.parametrize("name", ["a-F16.gguf", "a-bf16"])
def test_a_link_under_the_partial_name_is_not_followed(
    run, tiny: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious") if name.endswith("gguf") else victim.mkdir()
    partial_path(tmp_path / name).symlink_to(victim)
    done = run("convert", "--no-tokenizer", tiny, tmp_path / name)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert victim.is_dir() or victim.read_text() == "precious"


def test_a_file_that_was_renamed_while_it_was_locked_is_not_touched(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another conversion finishes between our opening of the partial file and our lock."""
    final = tmp_path / "a-F16.gguf"
    partial_path(final).write_bytes(b"finished by another")
    real, calls = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if not calls:
            os.rename(partial_path(final), final)
        calls.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    plan = conversion.prepare(tiny, [final], no_tokenizer=True)
    with output_files.OutputFiles(plan):
        assert final.read_bytes() == b"finished by another"
    assert len(calls) == 2


def test_what_a_killed_run_left_counts_as_free(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 20_000_000
    partial_path(tmp_path / "a-F16.gguf").write_bytes(os.urandom(size))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert run("convert", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf").code == 0
    assert names(tmp_path) == ["a-F16.gguf"]


def test_a_relative_source_finds_what_lies_beside_it(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(damaged(tmp_path) / "ckpt-0")
    assert run("inspect", ".").code == 0
    assert run("inspect", "..").code == 0


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
    remedy = "--tensor-type 'token_embd.weight=BF16'"
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
    router = first_array(weightcast.open(source)["transformer/decoder_layer_0/router/w"])
    assert router.shape == (256, 8)  # [in, out]
    raw = bytearray(router.path.read_bytes())
    at = router.offset + 4 * (5 * router.shape[1] + 3)
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    router.path.write_bytes(raw)
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-F32.gguf")
    assert "blk.0.ffn_gate_inp.weight: NaN or infinity at [3, 5] (out, in)" in done.err


def test_sparse_shards_are_pointed_out(run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", tiny_spec(emb_size=1024, num_q_heads=64), sparse=True)
    done = run("convert", "--no-tokenizer", tmp_path / "m", tmp_path / "a-Q8_0.gguf")
    assert done.code == 0
    assert "mostly holes" in done.out


def test_a_tokenizer_with_fewer_pieces_is_pointed_out(
    run, tiny: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    done = run("convert", "--tokenizer", tokenizer_model, tiny, tmp_path / "a-F16.gguf")
    assert "the tokenizer has 400 pieces for a vocabulary of 1,024" in done.out


@pytest.mark.parametrize("option", ["--spec", "--tokenizer"])
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/nonexistent", "/"])
def test_options_that_are_no_files(run, tiny: Path, tmp_path: Path, option: str, path: str) -> None:
    done = run("convert", option, path, tiny, tmp_path / "a-F16.gguf")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert path in done.err


@pytest.mark.parametrize("name", ["x" * 300 + "-F16.gguf", "loop/a-F16.gguf"])
def test_output_names_that_cannot_be(run, tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = run("convert", "--no-tokenizer", tiny, tmp_path / name)
    assert (done.code, len(done.err.splitlines())) == (1, 1)


@pytest.mark.parametrize("name", ["x" * 300 + "-F16.gguf", "a\0-F16.gguf"])
def test_names_that_no_file_can_have(tiny: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be written: "):
        weightcast.convert(tiny, tmp_path / name, no_tokenizer=True)


def test_the_current_directory_as_output(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("convert", "--no-tokenizer", "--type", "f16", tiny, ".").code == 0
    assert "config.json" in names(tmp_path / "here")


def test_a_foreign_tensor_name_is_shown_in_one_short_line(run, tiny: Path, tmp_path: Path) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-f16")
    (tmp_path / "a-f16" / "model-2.safetensors").write_bytes(
        save({"evil\n\x1b[31m" + "x" * 5000: np.zeros(1, np.float32)})
    )
    done = run("inspect", tmp_path / "a-f16")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert len(done.err) < 500
    assert "\x1b" not in done.err


def test_printing_to_a_full_device(tiny: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from weightcast.cli import main; main()", "inspect", str(tiny)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device")


def test_a_reader_that_has_enough(tiny: Path) -> None:
    command = f"{sys.executable} -c 'from weightcast.cli import main; main()' inspect --all {tiny}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 1"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_recipes_and_overrides(run, tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("base = 'Q8_0'\n[[rule]]\npattern = 'attn_'\ntype = 'F16'\n")
    options = ("--recipe", recipe, "--tensor-type", "attn_v=BF16")
    out = tmp_path / "tiny-mine.gguf"
    done = run("convert", "--no-tokenizer", *options, tiny, out)
    assert done.code == 0
    assert "(BF16 2, F16 6, F32 11, Q8_0 7)" in done.out
    assert f"stored as F16, as {recipe}: rule 1: 'attn_' asks: 6 tensors" in done.out
    assert "stored as BF16, as --tensor-type attn_v=BF16 asks: 2 tensors" in done.out


def test_pure(run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-Q4_K_M.gguf"
    done = run("convert", "--dry-run", "--no-tokenizer", "--pure", tiny, out)
    assert "(F32 11, Q4_K 15)" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tensor-type", "atn_v=Q8_0"], "--tensor-type atn_v=Q8_0: no tensor has a name with"),
        (["--recipe", "absent.toml"], "absent.toml: no such file"),
        (["--imatrix", "absent.dat"], "absent.dat: no such file"),
    ],
)
def test_recipe_options_that_are_wrong_are_one_line(
    run, tiny: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = run("convert", "--no-tokenizer", *options, tiny, tmp_path / "m-Q4_K_M.gguf")
    assert done.code == 1
    assert said in done.err
    assert done.err.count("\n") == 1
    assert names(tmp_path) == []


def test_a_recipe_that_needs_importance_is_refused(run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "m-IQ2_XS.gguf"
    done = run("convert", "--no-tokenizer", tiny, out)
    assert done.code == 1
    assert done.err.startswith(f"error: {out}: needs an importance matrix; give one with --imatrix")
    assert names(tmp_path) == []
    done = run("convert", "--dry-run", "--no-tokenizer", tiny, out)
    assert done.code == 0
    assert "note: needs an importance matrix; give one with --imatrix FILE" in done.out


# GGUF files of any model.


@pytest.fixture
def any_gguf(tmp_path: Path) -> Path:
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    metadata = {
        "general.architecture": gguf_files.string("my-arch"),
        "my-arch.block_count": gguf_files.u32(3),
        "tokenizer.ggml.tokens": gguf_files.strings(*"abcdefghijklmnopqrstuvwxyz"),
        "general.name": gguf_files.string(b"\xff\n\x1b[31m"),
    }
    tensors = {"blk.0.a.weight": gguf_files.floats(x), "blk.1.a.weight": gguf_files.floats(x)}
    return gguf_files.write(tmp_path / "any.gguf", metadata, tensors)


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


def test_names_cannot_control_the_terminal(run, any_gguf: Path) -> None:
    x = gguf_files.floats(np.full((2, 256), np.inf, np.float32))
    metadata = {"key\n\x1b[31m": gguf_files.u32(1)}
    gguf_files.write(any_gguf, metadata, {"w\n\x1b[2J\u202e.weight": x})
    for command in (["inspect"], ["inspect", "--json"], ["convert", "--dry-run"], ["convert"]):
        outputs = [any_gguf.parent / "\x1b[2J-Q8_0.gguf"] if command[0] == "convert" else []
        done = run(*command, any_gguf, *outputs)
        assert done.code == (1 if command == ["convert"] else 0)
        printed = done.out + done.err
        assert all(line.isprintable() for line in printed.splitlines())
        assert printed.count("\n") == len(printed.splitlines())
    assert done.err.count("\n") == 1
    assert "w\\n\\x1b[2J\\u202e.weight: NaN or infinity at [0, 0]" in done.err


def test_what_an_interpreter_shows_is_short(any_gguf: Path) -> None:
    summary = weightcast.convert(any_gguf, any_gguf.parent / "a-Q8_0.gguf")
    for value in (weightcast.open(any_gguf), summary, summary.plan):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 200 + len(str(any_gguf))


def test_quantizing_twice(run, any_gguf: Path) -> None:
    folder = any_gguf.parent
    assert run("convert", any_gguf, folder / "a-Q4_K.gguf", "--pure").code == 0
    done = run("convert", folder / "a-Q4_K.gguf", folder / "b-Q8_0.gguf")
    assert done.code == 1
    assert done.err.startswith(f"error: {folder / 'a-Q4_K.gguf'}: 'blk.0.a.weight' is Q4_K")
    assert "--allow-requantize" in done.err
    done = run("convert", "--allow-requantize", folder / "a-Q4_K.gguf", folder / "b-Q8_0.gguf")
    assert done.code == 0
    assert run("convert", folder / "a-Q4_K.gguf", folder / "b-F16.gguf").code == 0


def test_dry_run_tells_the_exact_size_of_any_gguf(run, any_gguf: Path) -> None:
    target = any_gguf.parent / "b-Q8_0.gguf"
    done = run("convert", "--dry-run", "--json", any_gguf, target)
    assert not target.exists()
    run("convert", any_gguf, target)
    assert json.loads(done.out)["outputs"][0]["bytes"] == target.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a-bf16"], "architecture 'my-arch': directories, --spec, --tokenizer and"),
        (["a-F16.gguf", "--no-tokenizer"], "architecture 'my-arch': directories"),
        (["a-F16.gguf", "--imatrix", "any.gguf"], "no importance matrix"),
        (["any.gguf", "--type", "Q8_0"], "is or holds the source"),
    ],
)
def test_what_any_gguf_cannot_become(
    run, any_gguf: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(any_gguf.parent)
    done = run("convert", "any.gguf", *arguments)
    assert done.code == 1
    assert said in done.err
    assert done.err.count("\n") == 1
    assert names(any_gguf.parent) == ["any.gguf"]


def test_the_importance_matrix_is_no_place_for_an_output(run, tmp_path: Path) -> None:
    original = (GOLDEN.parent / "imatrix" / "tiny.gguf").read_bytes()
    model, matrix = tmp_path / "model", tmp_path / "model-Q8_0.gguf"
    model.mkdir()
    write_checkpoint(model, tiny_spec(emb_size=64, key_size=8, num_q_heads=8, vocab_size=512))
    matrix.write_bytes(original)
    done = run("convert", "--no-tokenizer", "--imatrix", matrix, model, matrix)
    assert done.code == 1
    assert "is or holds the source" in done.err
    assert matrix.read_bytes() == original


# Devices.


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
    assert done.out.endswith("GB/s read) on cuda:0 (Stand-in), cuda:1 (Stand-in)\n")
    assert len(machine.lanes) == 8
    done = run(*arguments, tmp_path / "c-Q4_K_M.gguf", "--device", "cuda:1", "--json")
    assert json.loads(done.out)["devices"] == ["cuda:1"]
    assert [lane.device.index for lane in machine.lanes[8:]] == [1] * 4
    done = run(*arguments, tmp_path / "d-Q4_K_M.gguf", "--device", "auto", "--jobs", 3)
    assert (done.code, done.err) == (0, "")
    assert len(machine.lanes) == 15
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
    assert (done.code, done.out) == (1, "")
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
    assert not machine.lanes
    assert not machine.pins


def test_a_device_that_fails_in_the_middle(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def during(lane: Lane) -> None:
        if lane.pieces == 2:
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

    def during(lane: Lane) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)
        time.sleep(0.05)

    machine = Machine(2, during=during).install(monkeypatch)
    arguments = ["convert", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf"]
    done = run(*arguments, tmp_path / "a-bf16", "--device", "cuda")
    assert done.code == 130
    assert "interrupted: nothing incomplete was left behind" in done.err
    assert names(tmp_path) == []
    assert machine.pieces.total()
    machine.assert_given_back()


def test_an_impatient_ctrl_c_in_python(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the command line's handlers every Ctrl-C would raise; lanes are waited for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def during(lane: Lane) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    machine = Machine(during=during).install(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        weightcast.convert(tiny, tmp_path / "a-Q8_0.gguf", no_tokenizer=True, device="cuda", jobs=1)
    assert names(tmp_path) in ([], growing("a-Q8_0.gguf"))
    machine.assert_given_back()


# Comparing.


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    weightcast.convert(tiny, folder / "a-F32.gguf", folder / "a-Q4_0.gguf", no_tokenizer=True)
    return folder


def test_compare(run, tiny: Path, converted: Path, tmp_path: Path) -> None:
    done = run("compare", tiny, converted / "a-Q4_0.gguf", "--report", tmp_path / "r.json")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].endswith(f"ckpt-0: grok-1, {weightcast.open(tiny).parameters:,} parameters")
    assert lines[1].startswith(f"{converted / 'a-Q4_0.gguf'}: Q4_0, ")
    kinds = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "no error" in kinds["attn_norm"]
    assert " dB " in kinds["ffn_down_exps"]
    assert " dB " in kinds["total"]
    assert "worst tensors:" in lines
    assert names(tmp_path) == ["r.json"]
    total = json.loads((tmp_path / "r.json").read_text())["outputs"][0]["total"]
    assert f"{total['sqnr_db']:.2f} dB" in kinds["total"]
    assert f"{total['sqnr_db']:.2f} dB" in run("report", tmp_path / "r.json", "-").out


def test_compare_line_by_line(run, tiny: Path, converted: Path) -> None:
    done = run("compare", "--all", tiny, converted / "a-Q4_0.gguf")
    named = [line.split()[0] for line in done.out.splitlines() if line.startswith("  ")]
    assert set(gguf_files.read(converted / "a-Q4_0.gguf").tensors) <= set(named)


def test_compare_as_json_or_not_at_all(run, tiny: Path, converted: Path) -> None:
    done = run("compare", "--json", "--jobs", 1, tiny, converted / "a-F32.gguf")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["outputs"][0]["total"]["error_squares"] == 0
    assert (found["only_in_a"], found["only_in_b"], found["reshaped"]) == ([], [], [])
    assert json.loads(run("compare", "--json", tiny, converted / "a-F32.gguf").out) == found
    quiet = run("compare", "--quiet", tiny, converted / "a-Q4_0.gguf")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_compare_what_lacks_a_tensor(run, tiny: Path, converted: Path, tmp_path: Path) -> None:
    """The rest is measured and told; the exit code says that it is not all."""
    whole = gguf_files.read(converted / "a-Q4_0.gguf")
    del whole.tensors["blk.1.attn_q.weight"]
    part = gguf_files.write(tmp_path / "b.gguf", whole.metadata, whole.tensors)
    for form in ([], ["--json"], ["--quiet"]):
        done = run("compare", *form, "--report", tmp_path / "r.json", tiny, part)
        assert done.code == 1
        assert done.err.startswith(f"error: {part} is not another form of ")
        assert done.err.count("\n") == 1
        measured = json.loads((tmp_path / "r.json").read_text())["outputs"][0]["tensors"]
        assert [tensor["name"] for tensor in measured] == list(whole.tensors)
    assert "ONLY IN" in run("compare", tiny, part).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{tiny}"], 2, "Missing argument 'B'"),
        (["{tiny}", "{a}", "--baseline", "f16"], 2, "'f16' is not one of 'stored', 'bf16'"),
        (["{tiny}", "{a}", "--jobs", "0"], 2, "0 is not in the range"),
        (["{tiny}", "{tmp}/a.gguf"], 1, "error: {tmp}/a.gguf: no such file or directory"),
        (["{tmp}", "{a}"], 1, "error: {tmp}: holds neither shards"),
        (["{tiny}", "{a}", "--spec", "{tmp}/s.json"], 1, "error: {tmp}/s.json: no such file"),
        (["{tiny}", "{a}", "--report", "{tmp}/x/r.json"], 1, "error: {tmp}/x: no such directory"),
        (["{tiny}", "{a}", "--report", "{tmp}"], 1, "error: {tmp}: is a directory"),
        (["{tiny}", "{a}", "--report", "{a}"], 1, "error: {a}: is or lies in what is read or wr"),
        (["{tiny}", "{a}", "--imatrix", "{tmp}/i"], 1, "error: {tmp}/i: no such file"),
        (["{tiny}", "{a}", "--fail-over", "relative_rms=-1"], 2, "relative_rms is at least 0;"),
        (["{tiny}", "{a}", "--fail-over", "weighted.sqnr_db=1"], 2, "nothing is weighed"),
    ],
)
def test_compare_bad_input(
    arguments: list[str], code: int, said: str, run, tiny: Path, converted: Path, tmp_path: Path
) -> None:
    places = {"tiny": tiny, "a": converted / "a-Q4_0.gguf", "tmp": tmp_path}
    before = places["a"].read_bytes()
    done = run("compare", *(argument.format(**places) for argument in arguments))
    assert done.code == code
    assert said.format(**places) in done.err
    assert done.out == ""
    assert places["a"].read_bytes() == before


def test_compare_with_a_report_that_cannot_be_written(
    run, tiny: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.json").write_text("earlier")

    def fail(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    done = run("compare", tiny, converted / "a-F32.gguf", "--report", tmp_path / "r.json")
    assert done.code == 1
    assert "r.json: cannot be written: No space left on device" in done.err
    assert names(tmp_path) == ["r.json"]
    assert (tmp_path / "r.json").read_text() == "earlier"


def test_compare_interrupted(
    run, tiny: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    monkeypatch.setattr(measure, "measure_rows", stop)
    done = run("compare", tiny, converted / "a-F32.gguf")
    assert done.code == 130
    assert done.out == ""
