"""`convert`: where outputs may go; never over a source, foreign files or another run's."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

import weightcast
from tests.commands.command_line import damaged, growing, names
from tests.support import GOLDEN
from weightcast.converters import convert as conversion
from weightcast.converters.engine import executor
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.files.names import partial_path
from weightcast.converters.output import files as output_files
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import OutputError


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".a-F16.gguf.partial", "what an interrupted conversion left; run the same command again"),
        (".a-F16.gguf.replaced", "is or holds the source"),
    ],
)
def test_a_source_where_the_output_would_grow(
    run, tiny: Path, tmp_path: Path, name: str, said: str
) -> None:
    run("convert", "--no-tokenizer", tiny, tmp_path / "b-F16.gguf")
    before = (tmp_path / "b-F16.gguf").read_bytes()
    (tmp_path / "b-F16.gguf").rename(tmp_path / name)
    done = run("convert", "--no-tokenizer", tmp_path / name, tmp_path / "a-F16.gguf")
    assert (done.code, said in done.err) == (1, True)
    assert (tmp_path / name).read_bytes() == before


def test_a_source_under_another_name(run, tiny: Path, tmp_path: Path) -> None:
    """A hard link, like a directory that is mounted twice, is the same file elsewhere."""
    run("convert", "--no-tokenizer", tiny, tmp_path / "a-F32.gguf")
    os.link(tmp_path / "a-F32.gguf", tmp_path / "b-F16.gguf")
    done = run("convert", "--no-tokenizer", tmp_path / "a-F32.gguf", tmp_path / "b-F16.gguf")
    assert (done.code, "is or holds the source" in done.err) == (1, True)


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
    plan = conversion.prepare(tiny, [final], ConvertOptions(no_tokenizer=True))
    with output_files.OutputFiles(plan):
        assert final.read_bytes() == b"finished by another"
    assert len(calls) == 2


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
