"""Weights that `weightcast.open` reads: under any name, whole, by rows, in chunks, as stored."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

import weightcast
from tests import gguf_files
from tests.public.conftest import CONTAINERS
from tests.support import Golden
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph.read import load_float32
from weightcast.formats import array as array_of_file
from weightcast.quant.types import TYPES

QUERY = "blk.0.attn_q.weight"
EXPERTS = "blk.1.ffn_down_exps.weight"
NAMES = (QUERY, EXPERTS, "token_embd.weight", "blk.0.ffn_gate_inp.weight", "output_norm.weight")
SHARD = "transformer/decoder_layer_0/multi_head_attention/query/w"
INDICES: tuple[Any, ...] = (
    3,
    -1,
    np.int64(2),
    slice(1, 5),
    slice(None, None, -3),
    slice(5, 5),
    slice(6, 2),
    slice(-2, 10**9),
    slice(None, None, 100),
    ...,
    (..., 7),
    (..., slice(3, 50, 2)),
    (..., slice(None, None, -1)),
    (-1, slice(1, 4)),
    (2, ..., 5),
    (slice(None), 5),
    (slice(0, 0), 5),
    (1, 2, 3),
    (1, -1),
    (2, slice(4, 1, -1), slice(0, 100, 7)),
    (slice(None, None, 3), 5, slice(60, 70)),
    (0,),
    (),
)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_index_is_what_numpy_makes_of_the_whole(
    name: str, kind: str, made: dict[str, Path]
) -> None:
    tensor = weightcast.open(made[kind])[name]
    whole = tensor.numpy()
    assert whole.dtype == tensor.dtype == np.float32
    assert whole.shape == tensor.shape
    for index in INDICES:
        if isinstance(index, tuple) and sum(i is not ... for i in index) > tensor.ndim:
            with pytest.raises(IndexError, match="indices for"):
                tensor[index]
            continue
        try:
            expected = whole[index]
        except IndexError:
            with pytest.raises(IndexError, match="out of bounds"):
                tensor[index]
            continue
        found = tensor[index]
        assert np.shape(found) == np.shape(expected), index
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), index


@pytest.mark.parametrize("kind", CONTAINERS)
def test_values_are_those_that_conversions_use(kind: str, made: dict[str, Path]) -> None:
    checkpoint = weightcast.open(made[kind])
    for name, tensor in checkpoint.items():
        assert np.array_equal(tensor.numpy(), load_float32(checkpoint.graph.tensors[name]))


def test_shards_are_codes_times_scales() -> None:
    golden = Golden("wide")
    checkpoint = weightcast.open(golden.path)
    for name, stored in golden.exact().items():
        values = stored if stored.ndim == 1 or "embed" in name else np.swapaxes(stored, -1, -2)
        assert np.array_equal(checkpoint[name].numpy(), values)
    codes = golden.codes()
    for name, stored in codes.items():
        parts = checkpoint[name].stored()
        assert np.array_equal(parts["codes"], np.swapaxes(stored, -1, -2))
        size = parts["codes"].shape[-1] // parts["scales"].shape[-1]
        values = parts["codes"].astype(np.float32) * parts["scales"].repeat(size, axis=-1)
        assert np.array_equal(checkpoint[name].numpy(), values)


@pytest.mark.parametrize("kind", ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf", "m-BF16.gguf"])
def test_gguf_is_what_its_own_package_reads(kind: str, made: dict[str, Path]) -> None:
    checkpoint = weightcast.open(made[kind])
    for tensor in gguf.GGUFReader(made[kind]).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = checkpoint[tensor.name]
        np.testing.assert_allclose(ours.numpy(), expected.reshape(ours.shape), rtol=2e-6, atol=1e-9)
        stored = ours.stored()
        if "blocks" in stored:
            assert np.array_equal(stored["blocks"], tensor.data)
            blocks = weightcast.dequantize(stored["blocks"], ours.type)
            assert np.array_equal(blocks, ours.numpy())


def test_every_type_of_gguf(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 6, 512), np.float32)
    blocks = {name: weightcast.quantize(values, name, np.ones(512, np.float32)) for name in TYPES}
    parts = {
        name: gguf_files.Part(TYPES[name].ggml_id, values.shape, rows.tobytes())
        for name, rows in blocks.items()
    }
    metadata = {"general.architecture": gguf_files.string("any")}
    checkpoint = weightcast.open(gguf_files.write(tmp_path / "a.gguf", metadata, parts))
    for name, tensor in checkpoint.items():
        expected = weightcast.dequantize(blocks[name], name)
        assert (tensor.type, tensor.nbytes) == (name, blocks[name].nbytes)
        assert np.array_equal(tensor.numpy(), expected)
        for index in (1, (2, slice(1, 4)), (..., slice(3, 300, 7)), (0, slice(None, None, -2))):
            assert np.array_equal(tensor[index], expected[index])
        stored = tensor.stored()
        is_float = name in ("F32", "F16", "BF16")
        raw = stored["values" if is_float else "blocks"]
        assert raw.tobytes() == blocks[name].tobytes()


def test_parts_of_a_split_file(tiny: Path, made: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "m-Q8_0.gguf"
    summary = weightcast.convert(tiny, output, no_tokenizer=True, split="1M")
    first, *others = summary.outputs[0].files
    assert others
    whole = weightcast.open(made["m-Q8_0.gguf"])
    for name, tensor in weightcast.open(first).items():
        assert np.array_equal(tensor[-3:], whole[name][-3:])


def test_a_split_output_goes_by_the_name_that_was_asked_for(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "m-Q8_0.gguf"
    summary = weightcast.convert(tiny, output, no_tokenizer=True, split="1M")
    (made,) = summary.outputs
    assert made.path == output
    assert not output.exists()
    checkpoint = weightcast.open(made.path)
    assert checkpoint.path == made.files[0]
    assert np.array_equal(checkpoint[QUERY].numpy(), weightcast.open(made.files[0])[QUERY].numpy())
    assert weightcast.verify(made.path, tiny).is_good
    assert weightcast.compare(made.path, made.files[0]).total.relative_rms == 0
    again = weightcast.convert(made.path, tmp_path / "w-Q8_0.gguf")
    assert weightcast.verify(again.outputs[0].path, made.path).is_good


def test_a_name_that_parts_of_two_splits_go_by(tiny: Path, tmp_path: Path) -> None:
    for split in ("1M", "3M"):
        output = tmp_path / split / "m-Q8_0.gguf"
        output.parent.mkdir()
        for part in (
            weightcast.convert(tiny, output, no_tokenizer=True, split=split).outputs[0].files
        ):
            part.rename(tmp_path / part.name)
    with pytest.raises(weightcast.CheckpointError, match=r"split in several ways .*name one of"):
        weightcast.open(tmp_path / "m-Q8_0.gguf")
    with pytest.raises(weightcast.CheckpointError, match="no such file"):
        weightcast.open(tmp_path / "q8_0.gguf")


def test_parts_of_a_name_without_the_first(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "m-Q8_0.gguf"
    first, *_ = weightcast.convert(tiny, output, no_tokenizer=True, split="1M").outputs[0].files
    first.unlink()
    with pytest.raises(weightcast.CheckpointError, match=f"give {first}, which is missing"):
        weightcast.open(output)


@pytest.mark.parametrize("kind", ["m-bf16", "m-int4-g128", "m-fp8", "m-nvfp4"])
def test_directories_have_the_parts_that_safetensors_reads(
    kind: str, made: dict[str, Path]
) -> None:
    checkpoint = weightcast.open(made[kind])
    name = "model.layers.0.self_attn.q_proj"
    stored = checkpoint[f"{name}.weight"].stored()
    (file,) = made[kind].glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        for part, array in stored.items():
            found = opened.get_tensor(f"{name}.{'weight' if part == 'values' else part}")
            raw = found.contiguous().view(torch.uint8).numpy()
            assert np.array_equal(array.view(np.uint8), raw)


# Names


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_tensor_has_the_names_of_every_convention(kind: str, made: dict[str, Path]) -> None:
    checkpoint = weightcast.open(made[kind])
    query = checkpoint[QUERY]
    assert query.name == QUERY
    for name in (SHARD, "model.layers.0.self_attn.q_proj.weight"):
        assert name in checkpoint
        assert checkpoint[name].name == QUERY
        assert np.array_equal(checkpoint[name][:2], query[:2])
    expert = checkpoint["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    assert np.array_equal(expert.numpy(), checkpoint[EXPERTS][3])
    assert checkpoint["lm_head.weight"].name == "token_embd.weight"


def test_no_name_stands_for_two_tensors(tiny: Path) -> None:
    graph = weightcast.open(tiny).graph
    seen: dict[str, tuple[str, int | None]] = {}
    for convention, names in graph.family.names.items():
        for own, place in graph.places.items():
            stored = names.get(place.role.name)
            if stored is None:
                continue
            for expert in range(8) if stored.is_one_expert else [None]:
                name = graph.family.name_in(place, convention, expert)
                assert seen.setdefault(name, (own, expert)) == (own, expert)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("blk.0.attn_q.weigth", "did you mean 'blk.0.attn_q.weight'?"),
        ("blk.0.attn_q", "did you mean 'blk.0.attn_q.weight'?"),
        ("BLK.0.ATTN_Q.WEIGHT", "did you mean 'blk.0.attn_q.weight'?"),
        ("model.layers.0.self_attn.q_proj", "mean 'model.layers.0.self_attn.q_proj.weight'?"),
        ("x", "there are 26 tensors, such as 'token_embd.weight'"),
        (7, "no tensor 7; names are text"),
        ("a\nb\x1b", r"no tensor 'a\nb\x1b'"),
    ],
)
def test_a_name_that_there_is_not(name: Any, meant: str, tiny: Path) -> None:
    checkpoint = weightcast.open(tiny)
    assert name not in checkpoint
    assert checkpoint.get(name) is None
    with pytest.raises(KeyError) as caught:
        checkpoint[name]
    assert isinstance(caught.value, weightcast.UnknownTensorError)
    assert isinstance(caught.value, weightcast.CheckpointError)
    said = str(caught.value)
    assert said.startswith(f"{checkpoint.path}: no tensor ")
    assert meant in said
    assert said.isprintable()


# Indices and dtypes that make no sense


@pytest.mark.parametrize("index", [True, None, [1, 2], np.array([1]), np.array(True), "x", 1.5])
def test_an_index_of_another_kind(index: Any, tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    with pytest.raises(TypeError, match=f"^{QUERY}: index with whole numbers, slices and ..., not"):
        tensor[index]
    with pytest.raises(IndexError, match="only have one ellipsis"):
        tensor[..., ...]


@pytest.mark.parametrize("dtype", ["f2", "float32", float, ml_dtypes.bfloat16, "bfloat16"])
def test_values_in_another_dtype(dtype: Any, tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    assert tensor.numpy(dtype).dtype == np.dtype(dtype)
    assert np.array_equal(tensor.numpy(dtype), tensor.numpy().astype(dtype))


@pytest.mark.parametrize("dtype", [int, "int8", complex, "nothing", "U3", object])
def test_a_dtype_that_values_cannot_have(dtype: Any, tiny: Path) -> None:
    with pytest.raises(weightcast.LayoutError, match=f"^{QUERY}: "):
        weightcast.open(tiny)[QUERY].numpy(dtype)


def test_numpy_sees_an_array(tiny: Path) -> None:
    tensor = weightcast.open(tiny)[QUERY]
    whole = tensor.numpy()
    assert np.array_equal(np.asarray(tensor), whole)
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    assert np.array(tensor, copy=True).flags.owndata
    assert np.allclose(np.abs(tensor).max(), np.abs(whole).max())
    assert np.array_equal(weightcast.quantize(tensor, "Q4_K"), weightcast.quantize(whole, "Q4_K"))
    if int(np.__version__.split(".")[0]) >= 2:
        with pytest.raises(ValueError, match="cannot be had without a copy"):
            np.asarray(tensor, copy=False)


@pytest.mark.parametrize("kind", ["shards", "m-Q4_K_M.gguf", "m-bf16"])
def test_torch_tensors(kind: str, made: dict[str, Path]) -> None:
    tensor = weightcast.open(made[kind])[EXPERTS]
    found = tensor.torch()
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), tensor.numpy())
    assert torch.equal(tensor.torch(torch.bfloat16), found.to(torch.bfloat16))
    assert torch.equal(torch.from_numpy(tensor[::-1, 2:4]), found.flip(0)[:, 2:4])
    with pytest.raises(weightcast.LayoutError, match=r"cannot be torch\.int8"):
        tensor.torch(torch.int8)


def test_without_torch_a_message_says_what_to_do(tiny: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        f"import weightcast; weightcast.open({str(tiny)!r})[{QUERY!r}].torch()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = "MissingPackageError: torch is not installed: pip install 'weightcast[torch]'"
    assert done.stderr.splitlines()[-1].startswith(f"weightcast.errors.{said}")


# What is not finite, and what are no weights


def test_values_that_are_not_finite_are_read(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    values[0, 3], values[1, 5] = np.nan, -np.inf
    metadata = {"general.architecture": gguf_files.string("any")}
    parts = {"a": gguf_files.floats(values), "b": gguf_files.floats(values.astype(np.float16))}
    checkpoint = weightcast.open(gguf_files.write(tmp_path / "a.gguf", metadata, parts))
    for name in parts:
        assert np.array_equal(checkpoint[name].numpy(), values, equal_nan=True)
        assert np.isnan(checkpoint[name][0, 3])
        assert checkpoint[name][1, 5] == -np.inf


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (gguf_files.I8, np.int8),
        (gguf_files.I16, np.int16),
        (gguf_files.I32, np.int32),
        (gguf_files.I64, np.int64),
        (gguf_files.F64, np.float64),
    ],
)
def test_numbers_that_are_no_weights(kind: int, dtype: Any, tmp_path: Path) -> None:
    values = np.arange(-60, 60).reshape(2, 3, 4, 5).astype(dtype)
    metadata = {"general.architecture": gguf_files.string("any")}
    part = gguf_files.Part(kind, values.shape, values.tobytes())
    tensor = weightcast.open(gguf_files.write(tmp_path / "a.gguf", metadata, {"a": part}))["a"]
    assert tensor.dtype == dtype
    assert np.array_equal(tensor.numpy(), values)
    for index in (1, (..., 2), (1, 2, slice(None, None, -2)), (0, 1, 2, 3), (slice(None), 1)):
        assert np.array_equal(tensor[index], values[index])
    assert np.array_equal(
        np.concatenate([found for _, found in tensor.chunks(1)]), values.reshape(-1, 5)
    )
    assert np.array_equal(tensor.stored()["values"], values)
    assert np.array_equal(tensor.torch().numpy(), values)
    wrong = np.int8 if dtype == np.float64 else np.float16
    if dtype != np.int8:
        with pytest.raises(weightcast.LayoutError, match="values cannot be"):
            tensor.numpy(wrong)


# What is read, and what it takes


class Meter:
    """Counts the bytes that are read of files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        self._read = os.preadv
        monkeypatch.setattr(array_of_file.os, "preadv", self.preadv)

    def preadv(self, fd: int, buffers: Any, offset: int) -> int:
        count = self._read(fd, buffers, offset)
        self.nbytes += count
        return count

    def of(self, tensor: weightcast.Tensor, index: Any) -> int:
        before = self.nbytes
        tensor[index]
        return self.nbytes - before


LITTLE: list[tuple[int, tuple[int, ...]]] = [
    *((kind, ()) for kind in (gguf_files.F32, gguf_files.F16, gguf_files.I32, gguf_files.F64)),
    *((kind, (0,)) for kind in (gguf_files.F32, gguf_files.BF16, gguf_files.Q8_0, gguf_files.I64)),
    *((gguf_files.F32, shape) for shape in ((3, 0), (0, 3), (2, 0, 4), (1, 1, 1, 1))),
    (gguf_files.Q8_0, (0, 32)),
    (gguf_files.F32, (2, 1, 2, 1, 3)),
]
STORED = {
    gguf_files.F32: "<f4",
    gguf_files.F16: "<f2",
    gguf_files.I32: "<i4",
    gguf_files.F64: "<f8",
    gguf_files.I64: "<i8",
}


@pytest.mark.parametrize(("kind", "shape"), LITTLE)
def test_one_value_none_and_many_axes(kind: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    size = int(np.prod(shape))
    values = np.arange(1, size + 1).astype(STORED.get(kind, "<f4")).reshape(shape)
    part = gguf_files.Part(kind, shape, values.tobytes() if size else b"")
    gguf_files.write(tmp_path / "a.gguf", {}, {"a": part, "b": gguf_files.floats(np.ones(4, "f4"))})
    t = weightcast.open(tmp_path / "a.gguf")["a"]
    is_weights = kind not in (gguf_files.I32, gguf_files.I64, gguf_files.F64)
    wanted = values.astype(np.float32) if is_weights else values
    assert (t.shape, t.ndim, t.size, t.dtype) == (shape, len(shape), size, wanted.dtype)
    assert t.nbytes == len(part.data)
    assert t.bits_per_weight == (8 * len(part.data) / size if size else 0)
    for found in (t.numpy(), np.asarray(t), t[...], np.array(t.torch() if is_weights else t)):
        assert np.shape(found) == shape
        np.testing.assert_array_equal(found, wanted)
        assert np.asarray(found).dtype == wanted.dtype
    made = np.zeros(shape, wanted.dtype)
    for index, chunk in t.chunks(1):
        made[index] = chunk
    np.testing.assert_array_equal(made, wanted)
    [(name, stored)] = t.stored().items()
    assert name == ("blocks" if kind == gguf_files.Q8_0 else "values")
    assert stored.tobytes() == part.data
    assert stored.shape[:-1] == shape[:-1]
    assert str(list(shape)) in repr(t)
    if not shape:
        with pytest.raises(TypeError, match="a: one value, without axes, has no length"):
            len(t)
        with pytest.raises(IndexError, match="a: 1 indices for 0 axes"):
            t[0]
        assert t[()] == 1
    else:
        assert len(t) == len(wanted)
        np.testing.assert_array_equal([*t], [*wanted])
        for index in (slice(0, 0), slice(None, None, -1), (..., slice(0, 1))):
            np.testing.assert_array_equal(t[index], wanted[index])


@pytest.mark.parametrize("kind", CONTAINERS)
def test_rows_are_read_without_the_rest(
    kind: str, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = weightcast.open(made[kind])
    meter = Meter(monkeypatch)
    # Rows of columns that share words, and scales, come along.
    for tensor, index, share in (
        (checkpoint[QUERY], 16, 1 / 256),
        (checkpoint[EXPERTS], (slice(None), 16), 1 / 256),
        (checkpoint[QUERY], slice(16, 24), 8 / 256),
        (checkpoint[EXPERTS], (3, slice(16, 24)), 8 / 256 / 8),
        (checkpoint[EXPERTS], 3, 1 / 8),
    ):
        scales = 70_000 if kind == "shards" or "awq" in kind or "gptq" in kind else 9_000
        read = meter.of(tensor, index)
        assert tensor.nbytes * share * 0.9 < read < tensor.nbytes * share * 1.2 + scales, read
    assert meter.of(checkpoint[QUERY], slice(5, 5)) == 0


@pytest.mark.parametrize("kind", CONTAINERS)
def test_chunks_are_all_values_in_order(kind: str, made: dict[str, Path]) -> None:
    checkpoint = weightcast.open(made[kind])
    for name in NAMES:
        tensor = checkpoint[name]
        whole, seen = tensor.numpy(), np.zeros(tensor.shape, int)
        for index, values in tensor.chunks(20_000):
            assert values.nbytes <= 20_000 or values.size == tensor.shape[-1] * 8
            assert np.array_equal(values, whole[index])
            assert np.array_equal(values, tensor[index])
            seen[index] += 1
        assert np.all(seen == 1)
        assert np.array_equal(np.stack(list(tensor)), whole)
        assert len(tensor) == len(whole)


@pytest.mark.parametrize("kind", ["shards", "m-Q4_K_M.gguf", "m-bf16", "m-int4-g128"])
def test_a_checkpoint_goes_through_bounded_memory(kind: str, made: dict[str, Path]) -> None:
    checkpoint = weightcast.open(made[kind])
    total = 0.0
    list(checkpoint[QUERY].chunks(1 << 16))  # what is imported and built once
    tracemalloc.start()
    for tensor in checkpoint.values():
        for _, values in tensor.chunks(1 << 16):
            total += float(np.square(values, dtype=np.float64).sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 0
    assert peak < 1 << 20  # the experts of a layer take 4 MiB each as float32


def test_a_large_tensor_takes_little_beside_its_values(tmp_path: Path) -> None:
    shape = (40_000, 1024)
    data = tmp_path / "data"
    with data.open("wb") as file:
        file.truncate(shape[0] * shape[1] * 4)
    metadata = {"general.architecture": gguf_files.string("any")}
    head = gguf_files.Part(gguf_files.F32, (1, 32), bytes(128))
    path = gguf_files.write(tmp_path / "a.gguf", metadata, {"a": head})
    raw = path.read_bytes().replace(
        np.array([32, 1], "<u8").tobytes(), np.array(shape[::-1], "<u8").tobytes()
    )
    path.write_bytes(raw)
    os.truncate(path, len(raw) - 128 + shape[0] * shape[1] * 4)
    tensor = weightcast.open(path)["a"]
    tracemalloc.start()
    rows = tensor[39_990:]
    peak_of_rows = tracemalloc.get_traced_memory()[1]
    for _ in tensor.chunks():
        pass
    peak_of_chunks = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (10, 1024)
    assert peak_of_rows < 1 << 20
    assert peak_of_chunks < 200 << 20


# Files that change, and what an interpreter shows


def test_a_file_that_is_gone_is_named(any_file: Path) -> None:
    tensor = weightcast.open(any_file)["a"]
    any_file.unlink()
    with pytest.raises(weightcast.CheckpointError, match=f"^{any_file}: cannot be read: No such"):
        tensor.numpy()


def test_a_file_that_was_cut_is_named(any_file: Path) -> None:
    tensor = weightcast.open(any_file)["a"]
    os.truncate(any_file, any_file.stat().st_size - 40)
    with pytest.raises(weightcast.ChangedError, match=f"^{any_file}: was changed since"):
        tensor[-1]


@pytest.fixture
def any_file(tmp_path: Path) -> Path:
    metadata = {"general.architecture": gguf_files.string("any")}
    values = np.ones((2, 32), np.float32)
    return gguf_files.write(tmp_path / "a.gguf", metadata, {"a": gguf_files.floats(values)})


def test_what_an_interpreter_shows(tiny: Path, any_file: Path) -> None:
    checkpoint = weightcast.open(tiny)
    title, *rows = repr(checkpoint).splitlines()
    assert title.startswith(f"<Checkpoint {checkpoint.path}: grok-1, 26 tensors, 6,953,216 param")
    assert len(rows) == 11
    assert rows[-1].split() == ["output_norm.weight", "[256]", "F32", "1.02", "kB"]
    assert repr(checkpoint[QUERY]) == f"<Tensor {QUERY} [256, 256]  I8 x BF16[1]  66 kB>"
    assert len(repr(weightcast.open(any_file)).splitlines()) == 2


def test_what_a_checkpoint_tells(tiny: Path, made: dict[str, Path]) -> None:
    with weightcast.open(tiny) as checkpoint:
        assert (checkpoint.family, checkpoint.container) == ("grok-1", "shards")
        assert checkpoint.spec.num_layers == checkpoint.hyperparameters["num_layers"] == 2
        assert checkpoint.nbytes == sum(tensor.nbytes for tensor in checkpoint.values())
        assert checkpoint.notes == ()
        query = checkpoint[QUERY]
    assert query[0].shape == (256,)
    assert query.type == "I8 x BF16[1]"
    assert query.bits_per_weight == pytest.approx(8 + 16 / 256)
    again = weightcast.open(tiny)
    assert query == again[SHARD]
    assert query != again[EXPERTS]
    assert len({query, again[QUERY], again[EXPERTS]}) == 2
    assert np.all(query == query.numpy())
    assert [path.name for path in query.files] == ["tensor00007_000"]
    assert weightcast.open(made["torch"]).container == "torch"


def test_a_checkpoint_says_that_shards_were_never_written(tmp_path: Path) -> None:
    spec = tiny_spec(emb_size=1024, num_q_heads=64)
    checkpoint = weightcast.open(write_checkpoint(tmp_path, spec, sparse=True))
    (note,) = checkpoint.notes
    assert "shards with parts that were never written, such as" in note
