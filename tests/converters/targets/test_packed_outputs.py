"""Directories for serving: every part is what the layouts say, made of the released weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import imatrices
from tests.directories import BFLOAT16, matrices, parts_of, read_directory, unpacked, wanted
from tests.support import Golden
from weightcast.commands.text.summary import summary_lines
from weightcast.converters import convert as conversion
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.plan import budget as memory
from weightcast.converters.recipes.weight_types import directory_type, name_in
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.packing import Packing
from weightcast.converters.targets.types import shapes_of
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.backend import CpuBackend
from weightcast.quant.cpu.library import BlockCounts, Matrix
from weightcast.quant.groups import Groups, dequantize_groups
from weightcast.quant.types import GroupType

NAMES = [
    "int8-g32",
    "int8-g32-gptq",
    "int8-g32-gptq_v2",
    "int8-channel-asym",
    "int4-g32",
    "int4-g64-asym",
    "int4-channel",
    "int4-g32-gptq",
    "int4-g32-asym-gptq_v2",
    "int4-g64-awq",
    "int4-g32-asym-awq",
    "weightcast-int4-g32",
    "int8-g32-weightcast",
    "mxfp4",
    "nvfp4",
    "fp8",
    "fp8-block",
]


@pytest.mark.parametrize("name", NAMES)
def test_readers_get_the_quantized_weights(name: str, tmp_path: Path) -> None:
    golden = Golden("wide")
    path = tmp_path / f"grok-{name}"
    summary = weightcast.convert(golden.path, path, no_tokenizer=True)
    kind = directory_type(name)
    assert kind is not None
    tensors = read_directory(path)
    left = set(tensors)
    for module, (place, _, values) in matrices(golden).items():
        weight_type = kind.experts if place.role.is_experts else kind.attention
        made = unpacked(tensors, module, kind.layout, weight_type, values.shape)
        # The released codes are carried where there are eight bits, so nothing is lost.
        expected = values if kind.keeps_codes else wanted(values, weight_type)
        np.testing.assert_array_equal(made, expected, err_msg=module)
        left -= {module + suffix for suffix in parts_of(tensors, module)}
    assert all(
        "norm" in n or n.endswith(("gate.weight", "embed_tokens.weight"))
        for n in left - {"lm_head.weight"}
    )
    assert all(tensors[n].dtype == np.float32 for n in left if "norm" in n or "gate" in n)
    method = json.loads((path / "config.json").read_text())["quantization_config"]["quant_method"]
    assert method == ("gptq" if "gptq" in kind.layout else kind.layout)
    described = summary.describe()["outputs"][0]
    assert described["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert described["type"] == name


def test_int8_as_released(tmp_path: Path) -> None:
    """Groups of 256 for experts, attention as the reference multiplies with it."""
    spec = tiny_spec(emb_size=2048, key_size=128, num_q_heads=16, widening_factor=3)
    write_checkpoint(tmp_path / "source", {**spec, "num_layers": 1}, seed=5)
    source = open_graph(tmp_path / "source")
    path = tmp_path / "grok-int8"
    weightcast.convert(tmp_path / "source", path, no_tokenizer=True)
    weightcast.convert(tmp_path / "source", tmp_path / "grok-f32", no_tokenizer=True)
    tensors, exact = read_directory(path), read_directory(tmp_path / "grok-f32")
    assert source.spec.num_experts == 8
    for name, values in exact.items():
        module = name.removesuffix(".weight")
        if ".experts." in name:
            assert tensors[f"{module}.weight_scale"].dtype == BFLOAT16
            shape = MatrixShape(GroupType(8, 256), *values.shape)
            layout = LAYOUTS["compressed-tensors"].matrix_layout(shape.type)
            groups = layout.unpack(parts_of(tensors, module), shape)
            np.testing.assert_array_equal(dequantize_groups(groups, GroupType(8, 256)), values)
        elif "self_attn" in name:
            np.testing.assert_array_equal(tensors[name], values.astype(BFLOAT16))
    ignored = json.loads((path / "config.json").read_text())["quantization_config"]["ignore"]
    assert ignored == ["lm_head", "re:.*gate$", "re:.*attn.*"]


def test_bytes_do_not_depend_on_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["int4-g32-asym", "int4-g32-awq", "int8-g32-gptq", "fp8-block", "nvfp4"]
    golden = Golden("wide")

    def made(folder: Path, **options: Any) -> dict[str, bytes]:
        folder.mkdir()
        outputs = [folder / f"m-{name}" for name in names]
        weightcast.convert(golden.path, *outputs, no_tokenizer=True, **options)
        files = (file for output in outputs for file in sorted(output.iterdir()))
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}

    whole = made(tmp_path / "whole", jobs=1)
    monkeypatch.setattr(memory, "SLAB_BYTES", 50_000)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    assert made(tmp_path / "cut", jobs=3) == whole


def test_parts_of_a_matrix_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m-int4-g32"
    weightcast.convert(Golden("wide").path, path, no_tokenizer=True, split="500K")
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    for name, file in index.items():
        if name.endswith(".weight_packed"):
            stem = name.removesuffix("_packed")
            assert index[f"{stem}_scale"] == index[f"{stem}_shape"] == file
    assert set(index) == set(read_directory(path))


def test_importance_weighs_the_search(tmp_path: Path) -> None:
    golden = Golden("wide")
    graph = open_graph(golden.path)
    shapes = dict(shapes_of(graph))
    file = imatrices.write_gguf(tmp_path / "i.gguf", imatrices.model_entries(shapes))
    from weightcast.formats.gguf.imatrix import read_imatrix

    entries = read_imatrix(file).entries
    path = tmp_path / "m-int4-g32"
    weightcast.convert(golden.path, path, no_tokenizer=True, imatrix=file)
    kind = directory_type("int4-g32")
    assert kind is not None
    tensors = read_directory(path)
    for module, (place, expert, values) in matrices(golden).items():
        importance = None
        if place.gguf in entries:  # one is left out, and made without
            importance = entries[place.gguf].reshape(-1, values.shape[1])[expert or 0]
        made = unpacked(tensors, module, kind.layout, kind.experts, values.shape)
        np.testing.assert_array_equal(made, wanted(values, kind.experts, importance))


def test_int8_that_would_not_be_exact_is_refused(tmp_path: Path) -> None:
    told = r"w2\.weight: its scales cover 64 values each, .* groups of 256: groups of 64 keep it"
    with pytest.raises(weightcast.LayoutError, match=told):
        weightcast.convert(Golden("wide").path, tmp_path / "m-int8", no_tokenizer=True)
    told = r"cover 16 values each, .* groups of 32: no smaller groups keep it exact, f32 does; "
    with pytest.raises(weightcast.LayoutError, match=told):
        weightcast.convert(Golden("deep").path, tmp_path / "m-int8-g32", no_tokenizer=True)
    assert not list(tmp_path.iterdir())


def test_rows_that_kernels_cannot_group_are_refused_in_the_plan(tmp_path: Path) -> None:
    changes = {"emb_size": 120, "key_size": 12, "num_q_heads": 10, "num_kv_heads": 2}
    source = write_checkpoint(tmp_path, tiny_spec(**changes, num_experts=2, num_layers=1))
    told = r"^model\.layers\.0\..*\.weight: a row of 120 values does not fill groups of 32$"
    with pytest.raises(weightcast.LayoutError, match=told):
        conversion.prepare(source, [tmp_path / "m-int4-channel"], ConvertOptions(no_tokenizer=True))


def test_int8_that_may_change_is_searched(tmp_path: Path) -> None:
    golden = Golden("wide")
    path = tmp_path / "m-int8"
    weightcast.convert(golden.path, path, no_tokenizer=True, allow_requantize=True)
    tensors, kind = read_directory(path), directory_type("int8")
    assert kind is not None
    changed = set()
    for module, (place, _, values) in matrices(golden).items():
        if place.role.is_experts:
            made = unpacked(tensors, module, kind.layout, kind.experts, values.shape)
            if not np.array_equal(made, values):
                changed.add(module.rsplit(".", 1)[1])
                np.testing.assert_array_equal(made, wanted(values, kind.experts))
    assert changed == {"w2"}  # its scales cover 64 values each, the others' whole rows


def test_scales_that_do_not_fit() -> None:
    """int8 with float32 scales that bfloat16 cannot hold."""
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    scales = np.float32([[0.1, 0.5]])
    matrix = Matrix(codes.reshape(-1), "I8", 2, 128, 128, 1, scales=scales)
    packing = Packing(LAYOUTS["weightcast"], GroupType(8, 128), keeps_codes=True)
    with pytest.raises(weightcast.LayoutError, match=r"\[0, 0\]"):
        packing.pack(matrix, 2, 0, None, CpuBackend())
    changed = replace(packing, allow_requantize=True).pack(matrix, 2, 0, None, CpuBackend())
    assert changed.counts == BlockCounts(requantized=2)
    parts = {segment.suffix for segment in changed.segments}
    assert parts == {part.suffix for part in packing.parts(2, 128)}


def test_what_was_carried_is_told(tmp_path: Path) -> None:
    """A scale that bfloat16 does not hold: its rows are quantized anew, all others carried."""
    golden = Golden("wide")
    outputs = [tmp_path / "m-int8-g32", tmp_path / "m-int4-g32"]
    summary = weightcast.convert(golden.path, *outputs, no_tokenizer=True)
    described = [output["int8_groups"] for output in summary.describe()["outputs"]]
    assert set(described[0]["lossless"]) == {f"{module}.weight" for module in matrices(golden)}
    assert not described[0]["quantized"]
    assert not described[0]["requantized"]
    assert not any(described[1].values())
    lines = "\n".join(summary_lines(summary))
    assert "56 tensors carry the source's int8 codes and scales unchanged: lossless, each" in lines


@pytest.mark.parametrize("name", ["int8-g32", "int8-g32-gptq", "int8-g32-weightcast"])
@pytest.mark.parametrize("fault", ["code", "scale", "place"])
def test_carrying_is_proved_on_the_bytes_written(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that flips as codes are packed, or bytes for another place, stop the conversion."""
    kind = directory_type(name)
    assert kind is not None
    layout = type(LAYOUTS[kind.layout].matrix_layout(kind.experts))
    pack = layout.pack

    def faulty(self: Any, groups: Groups, shape: MatrixShape[GroupType], row0: int) -> Any:
        segments = list(pack(self, groups, shape, row0))
        number = 1 if fault == "scale" else 0
        if fault == "place":
            segments[0] = replace(segments[0], offset=segments[0].offset + 4)
        else:
            data = segments[number].data.copy()
            data[-1, -1] ^= 1
            segments[number] = replace(segments[number], data=data)
        return iter(segments)

    monkeypatch.setattr(layout, "pack", faulty)
    said = "not where it belongs" if fault == "place" else r"w1\.weight.*memory of this machine"
    with pytest.raises(weightcast.CheckpointError, match=said):
        weightcast.convert(Golden("wide").path, tmp_path / f"m-{name}", no_tokenizer=True)
    assert not (tmp_path / f"m-{name}").exists()


def test_float_sources_are_searched(tmp_path: Path) -> None:
    golden = Golden("wide")
    weightcast.convert(golden.path, tmp_path / "m-f32", no_tokenizer=True)
    weightcast.convert(tmp_path / "m-f32", tmp_path / "m-int8-g32", no_tokenizer=True)
    kind = directory_type("int8-g32")
    assert kind is not None
    tensors = read_directory(tmp_path / "m-int8-g32")
    for module, (_, _, values) in matrices(golden).items():
        made = unpacked(tensors, module, kind.layout, kind.experts, values.shape)
        np.testing.assert_array_equal(made, wanted(values, kind.experts), err_msg=module)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("grok-1-int4-g128", "int4-g128"),
        ("out/Grok_INT8-GPTQ", "int8-gptq"),
        ("x.int4-channel-asym-gptq_v2", "int4-channel-asym-gptq_v2"),
        ("weightcast-int4", "weightcast-int4"),
        ("a-fp8-block", "fp8-block"),
        ("a-bf16", "bf16"),
        ("grok-1-int5", None),
        ("print8", None),
        ("grok-awq", None),
    ],
)
def test_names(path: str, name: str | None) -> None:
    assert name_in(Path(path).name) == name


@pytest.mark.parametrize("name", ["int8-awq", "weightcast-int4-awq", "int3", "int4-g48"])
def test_unknown_types(name: str, tmp_path: Path) -> None:
    with pytest.raises(weightcast.RequestError, match="is not a type of a safetensors directory"):
        weightcast.convert(Golden("wide").path, tmp_path / "m", types=[name], no_tokenizer=True)
