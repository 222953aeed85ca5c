"""PyTorch's files: what torch.save writes is read where it lies, and nothing in them runs."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightcast.errors import CheckpointError, FormatError, UnsafePickleError
from weightcast.formats import torch_zip
from weightcast.formats.array import StoredArray

BITS = {torch.bfloat16: torch.int16}
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


def values(path: Path, array: StoredArray, dtype: torch.dtype) -> torch.Tensor:
    """The array as its place in the file says."""
    raw = path.read_bytes()[array.offset : array.offset + array.nbytes]
    flat = torch.frombuffer(bytearray(raw), dtype=dtype)
    if array.axis_strides is None:
        return flat.reshape(array.shape)
    return flat.as_strided(array.shape, array.axis_strides)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name: str, tmp_path: Path) -> None:
    path, dtype = tmp_path / "m.bin", DTYPES[name]
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    torch.save({"a.weight": tensor, "b": tensor[0, 0]}, path)
    found = torch_zip.read_torch(path)
    assert {key: (array.dtype, array.shape) for key, array in found.items()} == {
        "a.weight": (name, (2, 3, 4)),
        "b": (name, (4,)),
    }
    assert torch.equal(values(path, found["a.weight"], dtype), tensor)
    assert torch.equal(values(path, found["b"], dtype), tensor[0, 0])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_modules(protocol: int, tmp_path: Path) -> None:
    """Parameters, tied ones, transposed ones, an empty one; metadata of modules beside."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 5))
    state = model.state_dict()
    state["tied"] = state["0.weight"]
    state["turned"] = state["0.weight"].T
    state["scalar"] = torch.tensor(1.5)
    state["empty"] = torch.zeros(0, 4)
    state["one"] = torch.ones(1, 7)[:, :1]
    torch.save(state, tmp_path / "m.bin", pickle_protocol=protocol)
    found = torch_zip.read_torch(tmp_path / "m.bin")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        if tensor.numel():
            read = values(tmp_path / "m.bin", found[name], torch.float32)
            assert torch.equal(read.reshape(tensor.shape), tensor), name
        assert found[name].shape == tuple(tensor.shape)
    parameters = dict(model.named_parameters())
    torch.save({"state_dict": parameters, "step": 3}, tmp_path / "p.pt", pickle_protocol=protocol)
    assert torch_zip.read_torch(tmp_path / "p.pt").keys() == parameters.keys()


def test_dictionaries_around_the_tensors(tmp_path: Path) -> None:
    """One in itself, and what is no tensor."""
    tensor, value = torch.ones(2, 3), {}
    value |= {"state_dict": value, "a": tensor, "epoch": 3, "model": None}
    torch.save(value, tmp_path / "m.bin")
    found = torch_zip.read_torch(tmp_path / "m.bin")
    assert found.keys() == {"a"}


@pytest.mark.parametrize(
    "around",
    [
        lambda held: {"module": {"state_dict": held}},
        lambda held: {"state_dict": {}, "model": held},
        lambda held: {"model": {"epoch": 1}, **held},
        lambda held: {"model": {"model": {"module": held}}, "step": torch.ones(())},
    ],
)
def test_where_a_state_dict_may_lie(around: Any, tmp_path: Path) -> None:
    torch.save(around({"a": torch.ones(2, 3)}), tmp_path / "m.bin")
    assert torch_zip.read_torch(tmp_path / "m.bin").keys() == {"a"}


def test_two_models_in_one_file(tmp_path: Path) -> None:
    tensor = torch.ones(2, 3)
    torch.save({"model": {"a": tensor}, "module": {"b": tensor}}, tmp_path / "m.bin")
    with pytest.raises(FormatError, match="tensors in several dictionaries"):
        torch_zip.read_torch(tmp_path / "m.bin")


def test_names_of_files(tmp_path: Path) -> None:
    """The usual ones, or else whatever is an archive."""
    for name in ("model.bin", "training_args.bin"):
        torch.save({"a": torch.ones(2)}, tmp_path / name)
    (tmp_path / "other.bin").write_bytes(b"no archive")
    assert [file.name for file in torch_zip.files_in(tmp_path)] == [
        "model.bin",
        "training_args.bin",
    ]
    for name in ("pytorch_model.bin", "pytorch_model_optim.bin"):
        (tmp_path / name).write_bytes(b"cut")
    assert [file.name for file in torch_zip.files_in(tmp_path)] == ["pytorch_model.bin"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("ran", "w"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_runs(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "m.bin", pickle_protocol=protocol)
    with pytest.raises(UnsafePickleError, match="it was not imported and nothing was run"):
        torch_zip.read_torch(Path("m.bin"))
    assert not Path("ran").exists()


def rewritten(path: Path, change: Any, **options: Any) -> Path:
    """Write the archive again with other files in it."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, tmp_path / "m.bin")
    return tmp_path / "m.bin"


def data(files: dict[str, bytes], name: str) -> str:
    return next(key for key in files if key.endswith(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop(data(f, "data/1")), "storage '1' is not in the archive"),
        (lambda f: f.update({data(f, "data/0"): b"\0" * 20}), "fewer bytes than its tensors take"),
        (lambda f: f.pop(data(f, "data.pkl")), "not one of PyTorch"),
        (lambda f: f.update({"other/data.pkl": b""}), "not one of PyTorch"),
        (lambda f: f.update({data(f, "byteorder"): b"big"}), "big-endian"),
        (lambda f: f.update({data(f, "data.pkl"): pickle.dumps([1], 2)}), "does not occur"),
        (lambda f: f.update({data(f, "data.pkl"): pickle.dumps(1, 2)}), "no dictionary of tensors"),
        (lambda f: f.update({data(f, "data.pkl"): b""}), "empty"),
        (lambda f: f.update({data(f, "data.pkl"): b"\x80\x02}."[:3]}), "truncated or damaged"),
        (lambda f: f.update({data(f, "data.pkl"): b"\x80\x02(I1\nt."}), "does not occur"),
        (lambda f: f.update({data(f, "data.pkl"): b"\x80\x02NQ."}), "not a storage of numbers"),
    ],
)
def test_archives_that_are_not_right(change: Any, words: str, plain: Path) -> None:
    rewritten(plain, change)
    with pytest.raises(FormatError, match=words) as caught:
        torch_zip.read_torch(plain)
    assert str(plain) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [1 << 20, 0xFFFFFFFE, 0xFFFFFFFF, 5])
def test_entries_that_are_elsewhere(at: int, plain: Path) -> None:
    """As the archive's directory says; 0xFFFFFFFF sends readers to a field of zip64."""
    raw = bytearray(plain.read_bytes())
    start = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"data/1"))
    raw[start + 42 : start + 46] = at.to_bytes(4, "little")
    plain.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        torch_zip.read_torch(plain)
    assert str(plain) in str(caught.value)


def test_compressed_storages_are_refused(plain: Path) -> None:
    rewritten(plain, lambda files: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="is compressed"):
        torch_zip.read_torch(plain)


def test_parts_of_tensors_are_refused_where_they_are_not_dense(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole[:, :2]}, tmp_path / "m.bin")
    with pytest.raises(FormatError, match=r"a tensor in .* is part of another"):
        torch_zip.read_torch(tmp_path / "m.bin")


@pytest.mark.parametrize("cut", [0, 100, -1, -30])
def test_files_that_are_cut(cut: int, plain: Path) -> None:
    plain.write_bytes(plain.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"comes last: cut; download it again|an empty file"):
        torch_zip.read_torch(plain)


def test_files_before_version_1_6(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    assert not torch_zip.is_torch(tmp_path / "m.bin")
    with pytest.raises(
        FormatError, match=r"as PyTorch wrote it before 1\.6; save it again with PyTorch"
    ):
        torch_zip.read_torch(tmp_path / "m.bin")


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_pickles_end_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(4, dtype=torch.bfloat16))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = tmp_path_factory.mktemp("torch") / "m.bin"
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
    raw = bytearray(path.read_bytes())
    start = raw.index(b"\x80\x02", entry.header_offset)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[start + data.draw(st.integers(0, entry.file_size - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    found: dict[str, StoredArray] = {}
    with contextlib.suppress(CheckpointError):
        found = torch_zip.read_torch(path)
    assert all(array.offset + array.nbytes <= len(raw) for array in found.values())


def test_directories(tmp_path: Path) -> None:
    """With an index or without."""
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    (tmp_path / "training_args.bin").write_bytes(b"not an archive")
    assert torch_zip.read_directory(tmp_path).keys() == {"a", "b"}
    index = '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "x.bin"}}'
    (tmp_path / torch_zip.INDEX_NAME).write_text(index)
    with pytest.raises(CheckpointError, match=r"x\.bin: missing, but pytorch_model\.bin\.index"):
        torch_zip.read_directory(tmp_path)
    assert np.prod(torch_zip.read_torch(tmp_path / "pytorch_model-00001-of-00002.bin")["a"].shape)
