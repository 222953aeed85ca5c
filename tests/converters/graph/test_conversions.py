"""Models whose tensors are put together from parts, through everything that reads a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.gguf_files import read
from tests.stand_in_devices import Machine
from tests.support import Golden
from weightcast.converters.compare import compare
from weightcast.converters.engine import executor
from weightcast.converters.families.grok1.spec import grok1_spec
from weightcast.converters.files import page_cache
from weightcast.converters.graph import (
    Tensor,
    TensorGraph,
    affine,
    concatenated,
    matrices,
    sliced,
    split_pairs,
)
from weightcast.converters.graph.read import load_float32
from weightcast.converters.plan import budget as memory
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.containers import Shards
from weightcast.converters.verify import verify
from weightcast.quant.cpu.library import Matrix, quantize_matrix
from weightcast.quant.types import TYPES

WIDE = Golden("wide").path
OUTPUTS = [
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-F32.gguf",
    "m-int8-g32",
    "m-int8-g32-gptq",
    "m-int4-g32-awq",
    "m-fp8-block",
    "m-bf16",
]
QUERIES = "attn_q.weight"

Change = Callable[[TensorGraph, Tensor], Tensor]


def in_parts(axis: int, *cuts: float) -> Change:
    """Cut each tensor along an axis, and join what comes from one graph and from the other."""

    def change(other: TensorGraph, tensor: Tensor) -> Tensor:
        if len(tensor.shape) < 2:
            return tensor
        twin, size = other[tensor.name], tensor.shape[axis]
        bounds = [0, *(int(cut * size) for cut in cuts), size]
        parts = [
            sliced((tensor, twin)[n % 2], axis, first, last)
            for n, (first, last) in enumerate(pairwise(bounds))
        ]
        joined = concatenated(tensor.name, tuple(parts), axis)
        assert all(matrix.single is None for matrix in matrices(joined))
        return joined

    return change


# Columns are cut where scale groups end, so that codes can be carried.
CUTS = {"rows": in_parts(-2, 0.25, 0.4, 0.9), "columns": in_parts(-1, 0.5)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the golden checkpoint as it is."""
    folder = tmp_path_factory.mktemp("plain")
    report = folder / "report.json"
    paths = [folder / name for name in OUTPUTS]
    weightcast.convert(WIDE, *paths, no_tokenizer=True, report=report)
    return folder


def change_tensors(
    monkeypatch: pytest.MonkeyPatch, source: Path, twin: Path, change: Change
) -> None:
    """Change the tensors of one source as it is opened; `twin` is the same in other files."""
    real, other = Shards.open, open_graph(twin)

    def opened(self: Shards, path: Path, spec: Path | None) -> TensorGraph:
        graph = real(self, path, spec)
        if path != source:
            return graph
        return replace(graph, tensors={name: change(other, t) for name, t in graph.items()})

    monkeypatch.setattr(Shards, "open", opened)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("slab_bytes", [20_000, 192 << 20])
@pytest.mark.parametrize("cut", CUTS)
def test_parts_make_the_same_files(
    cut: str, slab_bytes: int, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, twin, folder = tmp_path / "source", tmp_path / "twin", tmp_path / "made"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    folder.mkdir()
    change_tensors(monkeypatch, source, twin, CUTS[cut])
    monkeypatch.setattr(memory, "SLAB_BYTES", slab_bytes)
    monkeypatch.setattr(page_cache, "outgrows", lambda nbytes: True)
    paths = [folder / name for name in OUTPUTS]
    told: list[weightcast.Progress] = []
    summary = weightcast.convert(
        source,
        *paths,
        no_tokenizer=True,
        jobs=3,
        report=folder / "report.json",
        on_progress=told.append,
    )
    converted = [each for each in told if each.phase == "convert"]
    assert converted[-1].done_bytes == converted[-1].total_bytes == summary.plan.read_bytes
    # Squares of FP8 need 128 rows.
    assert summary.plan.slab_bytes <= max(slab_bytes, 2 * 128 * 1024)
    found, expected = contents(folder), contents(plain)
    assert found.keys() == expected.keys()
    for name, raw in found.items():
        if name != "report.json":
            assert raw == expected[name], name
        else:
            wanted = expected[name].replace(bytes(plain), bytes(folder))
            assert raw == wanted.replace(bytes(WIDE), bytes(source))


@pytest.mark.parametrize("cut", CUTS)
def test_parts_are_made_on_devices(
    cut: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, twin = tmp_path / "source", tmp_path / "twin"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    change_tensors(monkeypatch, source, twin, CUTS[cut])
    monkeypatch.setattr(memory, "DEVICE_TASK_BYTES", 20_000)
    machine = Machine().install(monkeypatch)
    machine.takes_pageable = True
    weightcast.convert(source, tmp_path / "m-Q4_K_M.gguf", no_tokenizer=True, device="cuda")
    assert read(tmp_path / "m-Q4_K_M.gguf") == read(plain / "m-Q4_K_M.gguf")
    machine.assert_given_back()


@pytest.mark.parametrize("cut", CUTS)
def test_parts_are_verified_and_compared(
    cut: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, twin = tmp_path / "source", tmp_path / "twin"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    names = ["m-Q4_K_M.gguf", "m-int8-g32", "m-fp8-block"]
    expected = [verify(plain / name, source) for name in names]
    compared = [compare(source, plain / name) for name in names]
    backwards = compare(plain / names[0], source)
    change_tensors(monkeypatch, source, twin, CUTS[cut])
    for name, wanted, errors in zip(names, expected, compared, strict=True):
        assert wanted.is_good
        found = verify(plain / name, source)
        assert (found.describe(), found.report) == (wanted.describe(), wanted.report)
        assert compare(source, plain / name).describe() == errors.describe()
    found, wanted = compare(plain / names[0], source).describe(), backwards.describe()
    for tensor in (*found["outputs"][0]["tensors"], *wanted["outputs"][0]["tensors"]):
        if cut == "columns":  # each half has scales of its own
            del tensor["type"], tensor["bytes"], tensor["bits_per_weight"]
    assert found["outputs"][0]["tensors"] == wanted["outputs"][0]["tensors"]


@pytest.mark.parametrize("cut", CUTS)
def test_mistakes_are_explained(
    cut: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers exchanged, a norm shifted: told as of a source of whole arrays."""
    source, twin = tmp_path / "source", tmp_path / "twin"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    wrong = tmp_path / "m-F32.gguf"
    raw, tensors = (plain / wrong.name).read_bytes(), read(plain / wrong.name).tensors
    first, second = (tensors[f"blk.{n}.attn_q.weight"].data for n in range(2))
    norm = tensors["output_norm.weight"].data
    shifted = (np.frombuffer(norm, np.float32) + 1).tobytes()
    assert raw.count(norm) == raw.count(first) == raw.count(second) == 1
    raw = raw.replace(first, b"!" * len(first)).replace(second, first).replace(norm, shifted)
    wrong.write_bytes(raw.replace(b"!" * len(first), second))
    expected = verify(wrong, source).describe()
    assert len(expected["problems"]) == 3
    change_tensors(monkeypatch, source, twin, CUTS[cut])
    assert verify(wrong, source).describe() == expected


def test_computed_tensors_are_quantized_as_numpys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of rows split, values scaled and shifted: what numpy makes, quantized."""

    def change(graph: TensorGraph, tensor: Tensor) -> Tensor:
        if tensor.name.endswith(QUERIES):
            return affine(split_pairs(tensor, grok1_spec(graph.spec).num_q_heads), 0.3)
        return affine(tensor, 1, 1) if "norm" in tensor.name else tensor

    source = shutil.copytree(WIDE, tmp_path / "source")
    change_tensors(monkeypatch, source, source, change)
    monkeypatch.setattr(memory, "SLAB_BYTES", 30_000)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K"):
        path = tmp_path / f"m-{name}.gguf"
        weightcast.convert(source, path, no_tokenizer=True, pure=True, jobs=2)
        tensors, graph = read(path).tensors, open_graph(WIDE)
        for layer in range(graph.spec.num_layers):
            values = load_float32(graph[f"blk.{layer}.{QUERIES}"])
            heads = values.reshape(grok1_spec(graph.spec).num_q_heads, -1, 2, values.shape[1])
            expected = heads.swapaxes(1, 2).reshape(values.shape) * np.float32(0.3)
            assert tensors[f"blk.{layer}.attn_q.weight"].data == quantized(expected, name)
            norm = load_float32(graph[f"blk.{layer}.attn_norm.weight"])
            assert tensors[f"blk.{layer}.attn_norm.weight"].data == quantized(norm[None] + 1, "F32")
        assert verify(path, source).is_good


def quantized(values: Any, name: str) -> bytes:
    values = np.ascontiguousarray(values)
    n_out, n_in = values.shape
    made = np.empty(n_out * TYPES[name].row_bytes(n_in), np.uint8)
    quantize_matrix(Matrix(values.reshape(-1), "F32", n_out, n_in, n_in, 1), TYPES[name], made)
    return made.tobytes()


def test_messages_name_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, twin = tmp_path / "source", tmp_path / "twin"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    name = f"blk.0.{QUERIES}"
    (view,) = matrices(open_graph(twin)[name])
    assert view.scales is not None
    n_out = view.shape[0]
    raw = bytearray(view.path.read_bytes())
    row = int(0.95 * n_out)  # of the last part, which is the twin's
    place = view.scales.array.offset + (view.scales.start + row * view.scales.strides[0]) * 2
    raw[place : place + 2] = b"\xff\x7f"
    view.path.write_bytes(raw)
    change_tensors(monkeypatch, source, twin, CUTS["rows"])
    with pytest.raises(weightcast.CheckpointError) as caught:
        weightcast.convert(source, tmp_path / "m-Q4_K.gguf", no_tokenizer=True)
    assert str(caught.value).startswith(f"{view.path}: blk.0.attn_q.weight: a scale that is NaN")
    assert f" at [{row}, 0] (out, in)" in str(caught.value)
    view.path.unlink()
    with pytest.raises(weightcast.CheckpointError, match=f"^{view.path}: (vanished|cannot be)"):
        weightcast.convert(source, tmp_path / "m-Q4_K.gguf", no_tokenizer=True)


def test_a_part_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, twin = tmp_path / "source", tmp_path / "twin"
    shutil.copytree(WIDE, source)
    shutil.copytree(WIDE, twin)
    change_tensors(monkeypatch, source, twin, CUTS["rows"])
    real = executor.read_slab

    def read_slab(view: Any, *arguments: Any) -> Any:
        for window in view.views:
            if twin in window.path.parents and window.path.exists():
                window.path.unlink()
        return real(view, *arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    with pytest.raises(weightcast.CheckpointError, match=f"^{twin}.*: cannot be read: No such"):
        weightcast.convert(source, tmp_path / "m-Q4_K.gguf", no_tokenizer=True)
