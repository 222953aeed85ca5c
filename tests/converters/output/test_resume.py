"""Interrupted conversions go on, with the bytes of undisturbed ones; nothing else ever counts."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

import weightcast
from tests.converters.output import faults
from weightcast.converters import convert
from weightcast.converters.engine import executor
from weightcast.converters.files.names import journal_path, partial_path
from weightcast.converters.output import fingerprint, journal
from weightcast.converters.output.journal import read_journal
from weightcast.converters.output.resume import kept_work
from weightcast.converters.sources.inputs import Inputs
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import ChangedError, OutputError


@pytest.mark.parametrize(("seed", "name"), enumerate(faults.KINDS))
def test_disturbed_conversions_end_as_undisturbed_ones(
    seed: int, name: str, tiny: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    wanted = faults.reference(faults.KINDS[name], source, out)
    shutil.rmtree(out)
    out.mkdir()
    trial = faults.Trial(faults.KINDS[name], source, out, wanted, random.Random(seed))
    everything = sorted(faults.FAULTS)
    trial.strike(faults.KILL)
    trial.strike(everything[seed % len(everything)])
    trial.strike("power lost" if seed % 2 else faults.KILL)
    trial.finish()


def interrupted(
    source: Path, *outputs: Path, monkeypatch: pytest.MonkeyPatch, reads: int = 30, **options: Any
) -> None:
    """Convert, until so many slabs were read."""
    real, done = executor.read_slab, []

    def read_slab(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == reads:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(executor, "read_slab", read_slab)
        with pytest.raises(KeyboardInterrupt):
            weightcast.convert(source, *outputs, no_tokenizer=True, jobs=1, **options)
    assert all(read_journal(journal_path(path)).finished for path in outputs)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    real, done = executor.read_slab, []

    def read_slab(*arguments: Any) -> Any:
        done.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_finished_is_not_read_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole-Q4_0.gguf", tmp_path / "cut-Q4_0.gguf"
    reads = count_reads(monkeypatch)
    weightcast.convert(tiny, whole, no_tokenizer=True)
    n_items = len(reads)
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    reads.clear()
    told: list[weightcast.Progress] = []
    done = weightcast.convert(tiny, cut, no_tokenizer=True, on_progress=told.append)
    assert n_items - 29 <= len(reads) <= n_items - 25
    assert list(dict.fromkeys(each.phase for each in told)) == ["plan", "check", "convert", "flush"]
    checked = [each for each in told if each.phase == "check"]
    assert checked[0].done_bytes == 0 < checked[-1].done_bytes == checked[-1].total_bytes
    read = [each for each in told if each.phase == "convert"]
    assert 0 < read[0].done_bytes < read[-1].done_bytes == done.plan.read_bytes
    assert cut.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["cut-Q4_0.gguf", "whole-Q4_0.gguf"]


def test_one_of_several_outputs_can_go_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [tmp_path / "a-Q4_0.gguf", tmp_path / "a-bf16"]
    interrupted(tiny, *outputs, monkeypatch=monkeypatch)
    reads = count_reads(monkeypatch)
    weightcast.convert(tiny, outputs[1], no_tokenizer=True)
    assert reads
    assert sorted(names(tmp_path)) == [".a-Q4_0.gguf.journal", ".a-Q4_0.gguf.partial", "a-bf16"]
    weightcast.convert(tiny, outputs[0], no_tokenizer=True)
    assert names(tmp_path) == ["a-Q4_0.gguf", "a-bf16"]


def test_bytes_that_are_not_those_noted_are_made_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole-Q4_0.gguf", tmp_path / "cut-Q4_0.gguf"
    weightcast.convert(tiny, whole, no_tokenizer=True)
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    write = next(iter(read_journal(journal_path(cut)).finished.values())).writes[0]
    with partial_path(cut).open("r+b") as file:
        file.seek(write.offset + write.run_bytes - 1)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 1]))
    weightcast.convert(tiny, cut, no_tokenizer=True)
    assert cut.read_bytes() == whole.read_bytes()


def damage_first_line(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])  # no digit of a checksum


def damage_all(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def of_another_version(path: Path) -> None:
    text = (
        path.read_bytes().split(b" ", 1)[1].split(b"\n")[0].replace(b'"journal":1', b'"journal":2')
    )
    path.write_bytes(journal.checksum(text) + b" " + text + b"\n")


@pytest.mark.parametrize("damage", [damage_first_line, damage_all, of_another_version, os.unlink])
def test_without_a_journal_everything_is_made_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    whole, cut = tmp_path / "whole-Q4_0.gguf", tmp_path / "cut-Q4_0.gguf"
    reads = count_reads(monkeypatch)
    weightcast.convert(tiny, whole, no_tokenizer=True)
    n_items = len(reads)
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    damage(journal_path(cut))
    reads.clear()
    weightcast.convert(tiny, cut, no_tokenizer=True)
    assert len(reads) == n_items
    assert cut.read_bytes() == whole.read_bytes()


def test_no_resume_starts_over(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tmp_path / "cut-Q4_0.gguf"
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    reads = count_reads(monkeypatch)
    weightcast.convert(tiny, cut, no_tokenizer=True, resume=False)
    first = len(reads)
    weightcast.convert(tiny, cut, no_tokenizer=True)
    assert len(reads) == 2 * first
    assert names(tmp_path) == [cut.name]


def other_option(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"tensor_types": ["attn_q=Q8_0"]}


def other_type(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"types": ["Q4_1"]}


def other_split(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"split": "1G"}


def other_version(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(fingerprint, "weightcast_version", lambda: "9.9")
    return {}


def other_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    shard = source / "ckpt-0" / "tensor00003_000"
    os.utime(shard, ns=(1, shard.stat().st_mtime_ns + 1))
    return {}


def other_spec(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = source / "spec.json"
    path.write_text(path.read_text() + "\n")
    return {}


CHANGES = {
    other_option: "tensor_types was not given and is attn_q=Q8_0",
    other_type: "the type was Q4_0 and is Q4_1",
    other_split: "split was not given and is 1,000,000,000 bytes",
    other_version: "weightcast was",
    other_source: "tensor00003_000 of the source has changed since",
    other_spec: "the spec file has changed since",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_named_and_nothing_is_lost(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, pytest.MonkeyPatch], dict[str, Any]],
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    cut = tmp_path / "cut.gguf"
    interrupted(source, cut, monkeypatch=monkeypatch, types=["Q4_0"])
    kept = {path: path.read_bytes() for path in (partial_path(cut), journal_path(cut))}
    options = {"types": ["Q4_0"]} | change(source, monkeypatch)
    with pytest.raises(OutputError, match="cannot be continued") as caught:
        weightcast.convert(source, cut, no_tokenizer=True, **options)
    assert CHANGES[change] in str(caught.value)
    assert "resume=False starts over" in str(caught.value)
    assert all(path.read_bytes().startswith(before) for path, before in kept.items())
    weightcast.convert(source, cut, no_tokenizer=True, resume=False, **options)
    assert names(tmp_path) == ["cut.gguf", "source"]


def test_a_report_is_that_of_an_undisturbed_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightcast.converters.plan.budget.SLAB_BYTES", 1 << 18)
    cut = tmp_path / "a-Q4_0.gguf"
    whole = weightcast.convert(tiny, cut, no_tokenizer=True, baseline="bf16").report
    cut.unlink()
    for reads in (3, 20):  # the first ends within the embedding, which is several items
        interrupted(tiny, cut, monkeypatch=monkeypatch, reads=reads, baseline="bf16")
    assert weightcast.convert(tiny, cut, no_tokenizer=True, baseline="bf16").report == whole
    # Nobody measured what a run without a report finished, so that is made anew.
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    reads_again = count_reads(monkeypatch)
    assert weightcast.convert(tiny, cut, no_tokenizer=True, baseline="bf16").report == whole
    assert len(reads_again) == len(whole_plan_items(tiny, cut))


def whole_plan_items(source: Path, output: Path) -> tuple[Any, ...]:
    return convert.prepare(source, [output], ConvertOptions(no_tokenizer=True)).items


def test_two_runs_exclude_each_other(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut-bf16"
    real, said = executor.read_slab, []

    def other() -> None:
        try:
            weightcast.convert(tiny, cut, no_tokenizer=True)
        except OutputError as problem:
            said.append(str(problem))

    def read_slab(*arguments: Any) -> Any:
        if not said:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    weightcast.convert(tiny, cut, no_tokenizer=True)
    assert len(said) == 1
    assert said[0].startswith(f"{cut}: another conversion is writing this output")
    assert names(tmp_path) == ["cut-bf16"]


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("how", "what"),
    [(append, "was changed while it was read"), (os.unlink, "cannot be read|vanished")],
)
def test_a_source_that_changes_under_way_is_refused(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Path], None],
    what: str,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    real = executor.read_slab

    def read_slab(view: Any, *arguments: Any) -> Any:
        slab = real(view, *arguments)
        if view.array.path.name == "tensor00001_000" and view.array.path.exists():
            how(view.array.path)
        return slab

    monkeypatch.setattr(executor, "read_slab", read_slab)
    with pytest.raises(weightcast.CheckpointError, match=what) as caught:
        weightcast.convert(source, tmp_path / "a-Q4_0.gguf", no_tokenizer=True)
    assert "tensor00001_000" in str(caught.value)
    if how is append:
        assert isinstance(caught.value, ChangedError)
        assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["cut-Q4_0.gguf", "cut-bf16"])
def test_other_parts_are_neither_forgotten_nor_left_behind(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cut = tmp_path / name
    interrupted(tiny, cut, monkeypatch=monkeypatch, split="1M")
    kept = names(tmp_path)
    with pytest.raises(OutputError, match="split was 1,000,000 bytes and is not given"):
        weightcast.convert(tiny, cut, no_tokenizer=True)
    assert names(tmp_path) == kept
    assert read_journal(journal_path(cut)).finished
    weightcast.convert(tiny, cut, no_tokenizer=True, resume=False)
    assert names(tmp_path) == [cut.name]


def test_messages_promise_only_what_the_same_command_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.gguf"
    interrupted(tiny, cut, monkeypatch=monkeypatch, types=["Q4_0"])
    with pytest.raises(OutputError, match=r"resume=False starts over$"):
        weightcast.convert(tiny, cut, no_tokenizer=True, types=["Q4_1"])
    real, done = executor.read_slab, []

    def read_slab(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == 30:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    with pytest.raises(weightcast.CheckpointError, match="without resume=False goes on"):
        weightcast.convert(tiny, cut, no_tokenizer=True, jobs=1, resume=False, types=["Q4_0"])
    partial_path(cut).unlink()  # what a run leaves that was killed when it was complete
    assert read_journal(journal_path(cut)).finished
    assert not kept_work([cut])


def test_a_journal_that_cannot_be_read_is_not_forgotten(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut-Q4_0.gguf"
    interrupted(tiny, cut, monkeypatch=monkeypatch)
    before = journal_path(cut).read_bytes()

    def fail(self: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "_read", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            weightcast.convert(tiny, cut, no_tokenizer=True)
    assert journal_path(cut).read_bytes() == before
    assert partial_path(cut).stat().st_size


def test_nobody_goes_on_in_the_files_of_an_earlier_output(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "a-bf16", shutil.rmtree
    weightcast.convert(tiny, target, no_tokenizer=True)
    seen = []

    def rmtree(path: Path, **named: Any) -> None:
        seen.append((path.name, journal_path(target).exists()))
        real(path, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    weightcast.convert(tiny, target, no_tokenizer=True)
    assert seen == [(".a-bf16.partial", False)]


def test_a_source_that_is_gone_at_the_end_costs_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cut = tmp_path / "source", tmp_path / "cut-Q4_0.gguf"
    shutil.copytree(tiny, source)
    real = Inputs.check

    def check(self: Inputs, *changed: str) -> None:
        if not changed and source.exists():  # not at the start
            source.rename(tmp_path / "gone")
        real(self, *changed)

    with monkeypatch.context() as patched:
        patched.setattr(Inputs, "check", check)
        with pytest.raises(weightcast.CheckpointError, match=r"vanished .* is finished and kept"):
            weightcast.convert(source, cut, no_tokenizer=True)
    (tmp_path / "gone").rename(source)
    reads = count_reads(monkeypatch)
    weightcast.convert(source, cut, no_tokenizer=True)
    assert not reads


def test_two_splits_of_one_name_are_refused(tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a.gguf"] * 2
    with pytest.raises(weightcast.RequestError, match="two outputs have the same name"):
        weightcast.convert(tiny, *outputs, types=["Q8_0", "Q4_0"], no_tokenizer=True, split="1M")


def journal_of(path: Path, *lines: object) -> Path:
    """A journal whose lines are whole by their checksums, and say anything."""
    texts = [json.dumps(line).encode() for line in ({"journal": 1, "settings": {}}, *lines)]
    path.write_bytes(b"".join(b"%s %s\n" % (journal.checksum(text), text) for text in texts))
    return path


ROWS, WRITE = ["x", None, 0, 1], [0, 0, 1, 1, 1, "digest"]


@pytest.mark.parametrize(
    "line",
    [
        7,
        {"rows": None},
        {"rows": ROWS},
        {"rows": ROWS, "counts": [0, 0, 0], "writes": [WRITE[:5]]},
        {"rows": ROWS, "counts": [0, "0", 0], "writes": [WRITE]},
        {"rows": ROWS, "counts": [0, 0, True], "writes": [WRITE]},
        {"rows": ["x", [], 0, 1], "counts": [0, 0, 0], "writes": [WRITE]},
        {"rows": [["x"], None, 0, 1], "counts": [0, 0, 0], "writes": [WRITE]},
        {"rows": ROWS, "counts": [0, 0, 0], "writes": [[0, -1, 1, 1, 1, "digest"]]},
        {"rows": ROWS, "counts": [0, 0, 0], "writes": [[0, 0, 1, 1, 1, None]]},
        {"errors": {}, "baseline": "stored", "values": {}},
        {"errors": ["x", None], "baseline": None, "values": {}},
        {"errors": ["x", None], "baseline": "stored", "values": []},
    ],
)
def test_lines_of_a_journal_that_say_something_else_are_none(line: object, tmp_path: Path) -> None:
    right = {"rows": ROWS, "counts": [0, 0, 0], "writes": [WRITE]}
    found = read_journal(journal_of(tmp_path / "journal", line, right))
    assert (list(found.finished), found.errors) == ([journal.RowRange("x", None, 0, 1)], {})


@pytest.mark.parametrize(
    "write",
    [
        journal.Write(0, 0, 0, 10**12, 0, xxhash.xxh3_128(b"").hexdigest()),
        journal.Write(0, 10**30, 0, 0, 10**30, xxhash.xxh3_128(b"").hexdigest()),
        journal.Write(0, 10**30, 1, 1, 1, "digest"),
        journal.Write(0, 0, 2, 2, 1, xxhash.xxh3_128(b"abbc").hexdigest()),
    ],
)
def test_writes_that_a_file_of_three_bytes_cannot_have(
    write: journal.Write, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with path.open("rb") as file:
        assert not write.is_in(file.fileno())
        assert journal.Write(0, 0, 1, 2, 2, xxhash.xxh3_128(b"ac").hexdigest()).is_in(file.fileno())
