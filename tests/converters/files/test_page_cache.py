"""Large runs leave nothing in the page cache, small ones all; the bytes are the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import weightcast
from benchmarks.children import cached
from weightcast.converters.engine.hashing import FileToHash, hash_files
from weightcast.converters.files import page_cache
from weightcast.converters.files.page_cache import WrittenPages, outgrows

OUTPUTS = "x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-int8-g32-gptq", "x-int4-g32-gptq", "x-bf16"


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint on a file system whose cache can be looked at."""
    copy = tmp_path / "source"
    shutil.copytree(tiny, copy)
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(1 << 20))
    flush(probe)
    page_cache.forget_read(probe, 0, 1 << 20)
    if cached(probe):
        pytest.skip("files in memory cannot leave the cache: run with --basetemp on a disk")
    return copy


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every run for one that outgrows the cache."""
    monkeypatch.setattr(page_cache, "outgrows", lambda nbytes: True)


def flush(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def files_of(*paths: Path) -> list[Path]:
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.saf*"))]


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("tensor*"))


def convert(source: Path, folder: Path) -> list[Path]:
    outputs = [folder / name for name in OUTPUTS]
    folder.mkdir()
    flush(*shards_of(source))
    weightcast.convert(source, *outputs, no_tokenizer=True)
    return files_of(*outputs)


def test_a_large_run_leaves_little_in_the_cache(source: Path, tmp_path: Path, large: None) -> None:
    for shard in shards_of(source):
        shard.read_bytes()
    before = cached(*shards_of(source))
    written = convert(source, tmp_path / "out")
    assert before > 0.9
    # Pages at both ends of a matrix stay: many, of matrices as small as these.
    assert cached(*(s for s in shards_of(source) if s.stat().st_size > 1 << 16)) < 0.6
    assert cached(*written) < 0.1


def test_a_small_run_leaves_everything_in_the_cache(source: Path, tmp_path: Path) -> None:
    written = convert(source, tmp_path / "out")
    assert cached(*shards_of(source)) > 0.9
    assert cached(*written) > 0.9


def test_the_bytes_do_not_depend_on_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = convert(tiny, tmp_path / "small")
    monkeypatch.setattr(page_cache, "outgrows", lambda nbytes: True)
    large = convert(tiny, tmp_path / "large")
    assert [path.read_bytes() for path in small] == [path.read_bytes() for path in large]


@pytest.mark.parametrize("name", ["x-Q8_0.gguf", "x-int4-g32-gptq"])
def test_what_is_verified_and_compared_leaves_the_cache(
    name: str, source: Path, tmp_path: Path, large: None
) -> None:
    artifact = tmp_path / name
    weightcast.convert(source, artifact, no_tokenizer=True)
    for check in (weightcast.verify, weightcast.compare):
        for path in (*shards_of(source), *files_of(artifact)):
            path.read_bytes()
        arguments = (artifact, source) if check is weightcast.verify else (source, artifact)
        check(*arguments)
        assert cached(*(s for s in shards_of(source) if s.stat().st_size > 1 << 16)) < 0.6
        assert cached(*files_of(artifact)) < 0.5


def test_what_is_hashed_leaves_the_cache(source: Path, large: None) -> None:
    path = max(shards_of(source), key=lambda shard: shard.stat().st_size)
    flush(path)
    hash_files([FileToHash(path, check=lambda status: None)], 1)
    assert cached(path) < 0.1


def test_what_was_written_is_sent_at_once_and_forgotten_when_it_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advised: list[Any] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *what: advised.append(what[:3]))
    monkeypatch.setattr(page_cache, "_BEHIND_BYTES", 20)
    pages = WrittenPages()
    for start in range(0, 50, 10):
        pages.add(7, start, 10)
    sent = [(7, start, 10) for start in range(0, 50, 10)]
    assert advised == [*sent[:3], sent[0], sent[3], sent[1], sent[4], sent[2]]


@pytest.mark.parametrize(
    ("limit", "memory"), [("max\n", None), ("1048576\n", 1048576), (None,) * 2]
)
def test_a_quarter_of_memory_is_large(
    limit: str | None, memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(page_cache, "_CGROUP_LIMIT", file)
    most = (memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 4
    assert not outgrows(most)
    assert outgrows(most + 1)


def test_what_takes_no_advice_is_left_alone(tmp_path: Path) -> None:
    page_cache.forget_read(tmp_path / "none", 0, 1)
    reader, writer = os.pipe()
    page_cache.forget(reader)
    os.close(reader)
    os.close(writer)
