"""Files that change under what was opened or planned: nothing of theirs is taken for the old."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.public.conftest import CONTAINERS

QUERY = "blk.0.attn_q.weight"
SAID = "was changed since it was opened; open it again"


def replaced(path: Path) -> None:
    """Give another file its name, of the same size and time."""
    raw, status = bytearray(path.read_bytes()), path.stat()
    raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    other = path.with_name(f"{path.name}.new")
    other.write_bytes(raw)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


READS: dict[str, Callable[[weightcast.Tensor], Any]] = {
    "numpy": lambda t: t.numpy(),
    "torch": lambda t: t.torch(),
    "chunks": lambda t: list(t.chunks()),
    "stored": lambda t: t.stored(),
    "index": lambda t: t[3],
    "iter": list,
    "asarray": np.asarray,
    "copy": copy.copy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
}


def copied(source: Path, folder: Path) -> Path:
    made = folder / source.name
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, made)
    return made


@pytest.mark.parametrize("change", [replaced, overwritten, cut])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_no_value_is_read_of_a_file_that_changed(
    kind: str, change: Callable[[Path], None], made: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = weightcast.open(copied(made[kind], tmp_path))
    tensor = checkpoint[QUERY]
    for read in READS.values():
        read(tensor)
    pickled = pickle.dumps(checkpoint), pickle.dumps(tensor)
    assert np.array_equal(pickle.loads(pickled[0])[QUERY].numpy(), tensor.numpy())
    change(tensor.files[-1])
    for read in READS.values():
        with pytest.raises(weightcast.ChangedError, match=SAID) as caught:
            read(tensor)
        assert str(caught.value).startswith(f"{tensor.files[-1]}: ")
    for each in pickled:
        with pytest.raises(weightcast.ChangedError, match=SAID):
            pickle.loads(each)


def test_a_file_of_another_tensor_may_change(tiny: Path, tmp_path: Path) -> None:
    checkpoint = weightcast.open(copied(tiny, tmp_path))
    norm, query = checkpoint["output_norm.weight"], checkpoint[QUERY]
    assert not set(norm.files) & set(query.files)
    overwritten(norm.files[0])
    assert query[0].shape == (256,)
    with pytest.raises(weightcast.ChangedError):
        norm.numpy()
    with pytest.raises(weightcast.ChangedError):
        len(checkpoint.notes)


def test_a_change_between_two_chunks(made: dict[str, Path], tmp_path: Path) -> None:
    tensor = weightcast.open(copied(made["m-Q8_0.gguf"], tmp_path))[QUERY]
    chunks = tensor.chunks(tensor.shape[1] * 4 * 16)
    next(chunks)
    replaced(tensor.files[0])
    with pytest.raises(weightcast.ChangedError, match=SAID):
        next(chunks)


def test_an_output_in_the_place_of_what_is_open(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, path, no_tokenizer=True)
    tensor = weightcast.open(path)["blk.0.ffn_up_exps.weight"]
    weightcast.convert(tiny, path, no_tokenizer=True, tensor_types="ffn=Q4_K")
    with pytest.raises(weightcast.ChangedError, match=SAID):
        tensor.numpy()


def test_scales_in_another_file_count_too(made: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copied(made["m-int4-g32-awq"], tmp_path)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(".scales")}
    file.unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    save_file(scales, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    tensor = weightcast.open(folder)["blk.0.ffn_up_exps.weight"]
    assert {path.name[:11] for path in tensor.files} == {"model-00001", "model-00002"}
    overwritten(folder / "model-00002-of-00002.safetensors")
    with pytest.raises(weightcast.ChangedError, match="model-00002"):
        tensor[0]


@pytest.mark.parametrize("change", [overwritten, cut])
def test_a_source_that_changes_after_it_was_planned(
    change: Callable[[Path], None], made: dict[str, Path], tmp_path: Path
) -> None:
    source = copied(made["m-BF16.gguf"], tmp_path)
    planned = weightcast.plan(source, tmp_path / "n-Q8_0.gguf")
    change(source)
    with pytest.raises(weightcast.ChangedError, match="since the conversion was planned") as caught:
        planned.run()
    assert str(caught.value).startswith(f"{source}: ")
    assert os.listdir(tmp_path) == [source.name]
