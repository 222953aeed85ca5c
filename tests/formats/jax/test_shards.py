"""A directory is read as a checkpoint only if it is one: complete, finished, and nothing else."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.jax.arrays import QuantizedArray
from weightcast.formats.jax.shards import has_shards, list_shards, read_shards

PICKLES = Path(__file__).parents[2] / "data" / "pickles"


def shard(number: int, host: int = 0) -> str:
    return f"tensor{number:05}_{host:03}"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Twelve shards, each an array of its own number of values."""
    for number in range(12):
        (tmp_path / shard(number)).write_bytes(pickle.dumps(np.zeros(number, np.float32), 4))
    return tmp_path


def refused(directory: Path, error: type[CheckpointError], *words: str) -> None:
    with pytest.raises(error) as caught:
        list_shards(directory)
    for word in (str(directory), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_in_order(checkpoint: Path) -> None:
    assert [path.name for path in list_shards(checkpoint)] == [shard(n) for n in range(12)]
    arrays = read_shards(checkpoint)
    assert [a.shape for a in arrays if isinstance(a, StoredArray)] == [(n,) for n in range(12)]


def test_six_digits(tmp_path: Path) -> None:
    """tensor100000_000 is a shard too, and comes after tensor99999_000."""
    (tmp_path / shard(99_999)).touch()
    (tmp_path / shard(100_000)).touch()
    refused(tmp_path, MissingTensorError, "99994 more")


def test_arrays_and_quantized_arrays(tmp_path: Path) -> None:
    (tmp_path / shard(0)).symlink_to(PICKLES / "np1-p4-f32-c.pkl")
    (tmp_path / shard(1)).symlink_to(PICKLES / "np1-p4-quant.pkl")
    array, quantized = read_shards(tmp_path)
    assert isinstance(array, StoredArray)
    assert isinstance(quantized, QuantizedArray)


@pytest.mark.parametrize("name", ["", "readme.md", "tensor_0", "model.safetensors"])
def test_directory_without_shards(tmp_path: Path, name: str) -> None:
    if name:
        (tmp_path / name).touch()
    assert not has_shards(tmp_path)
    with pytest.raises(CheckpointError):
        list_shards(tmp_path)


def test_empty_directory_says_what_is_expected(tmp_path: Path) -> None:
    refused(tmp_path, MissingTensorError, "tensor00000_000")


@given(st.sets(st.integers(0, 10), min_size=1))
def test_gaps_are_named(tmp_path_factory: pytest.TempPathFactory, absent: set[int]) -> None:
    directory = tmp_path_factory.mktemp("gaps")
    for number in range(12):
        if number not in absent:
            (directory / shard(number)).touch()
    named = [shard(number) for number in sorted(absent)]
    more = [f"{len(absent) - 5} more"] if len(absent) > 5 else []
    refused(directory, MissingTensorError, ", ".join(named[:5]), *more)


def test_number_far_beyond_the_others(checkpoint: Path) -> None:
    """A gap of two million takes no more memory than one."""
    (checkpoint / "tensor2000000_000").touch()
    tracemalloc.start()
    try:
        refused(checkpoint, MissingTensorError, shard(12), "1999983 more")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


UNFINISHED = ["incomplete", "aria2", "part", "PART", "crdownload", "tmp", "!qB", "!ut", "lock"]


@pytest.mark.parametrize("suffix", UNFINISHED)
@pytest.mark.parametrize("stem", [shard(3), shard(12), "readme.md", ".hidden"])
def test_download_in_progress(checkpoint: Path, stem: str, suffix: str) -> None:
    (checkpoint / f"{stem}.{suffix}").touch()
    refused(checkpoint, MissingTensorError, f"{stem}.{suffix}", "in progress")


@pytest.mark.parametrize(
    "name",
    [
        f"{shard(3)}.pkl",
        f"{shard(3)} (1)",
        f"{shard(3)}~",
        f" {shard(3)}",
        "tensor0003_000",
        "tensor00003_00",
        "tensor00003",
        "Tensor00003_000",
        "model.safetensors",
        "notes",
        "a.out",
    ],
)
def test_extra_file(checkpoint: Path, name: str) -> None:
    (checkpoint / name).touch()
    refused(checkpoint, FormatError, name, "not a shard")


def test_extra_directory(checkpoint: Path) -> None:
    (checkpoint / "backup").mkdir()
    refused(checkpoint, FormatError, "backup")


@pytest.mark.parametrize(
    "name",
    [
        "spec.json",
        "logits_fp32.npz",
        "README",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "tokenizer.model",
        "SHA256SUMS",
        "checkpoint.sha256",
        "grok-1.torrent",
        ".DS_Store",
        ".gitattributes",
    ],
)
def test_companions_are_passed_over(checkpoint: Path, name: str) -> None:
    (checkpoint / name).touch()
    assert len(list_shards(checkpoint)) == 12


def test_hidden_directories_are_passed_over(checkpoint: Path) -> None:
    """huggingface_hub keeps its records in .cache."""
    (checkpoint / ".cache").mkdir()
    assert len(list_shards(checkpoint)) == 12


def test_second_host(checkpoint: Path) -> None:
    (checkpoint / shard(3, host=1)).touch()
    refused(checkpoint, FormatError, shard(3, host=1), "several hosts")


def test_same_tensor_twice(checkpoint: Path) -> None:
    (checkpoint / "tensor000003_000").touch()
    refused(checkpoint, FormatError, "the same tensor as")


def test_shard_that_is_a_directory(checkpoint: Path) -> None:
    (checkpoint / shard(12)).mkdir()
    refused(checkpoint, MissingTensorError, shard(12), "a directory, not a file")


def test_link_that_leads_nowhere(checkpoint: Path) -> None:
    (checkpoint / shard(12)).symlink_to(checkpoint / "gone")
    refused(checkpoint, MissingTensorError, shard(12), "a link to", "not there")


def test_shard_that_is_a_pipe(checkpoint: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(checkpoint / shard(12))
    refused(checkpoint, MissingTensorError, shard(12), "a pipe, not a regular file")


def test_unreadable_shard_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("weightcast.formats.jax.shards.read_pickle", fail)
    with pytest.raises(CheckpointError, match=f"{shard(0)}: cannot be read: Permission denied"):
        read_shards(checkpoint)


def test_damaged_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / shard(7)).write_bytes(b"")
    with pytest.raises(FormatError, match=shard(7)):
        read_shards(checkpoint)
